"""What a shuffle or sort needs to know of each sample: its encoded sort key, and the group that it belongs to."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_64_intdigest

from tarmill.errors import FormatError, ScriptError
from tarmill.formats.samples import OnError, Record
from tarmill.spec import ReorderSpec, SortSpec

if TYPE_CHECKING:
    from tarmill.formats.sort_keys import KeyEncoder

DEFAULT_KEYS = ("__key__",)


class Ordering:
    """The keys of one spec, compiled; made once per process and shard.

    Attributes:
        key_of, load, key_of_stem: as `tar_scan.scan_plain` takes them; all unset for a shuffle.
        groups: hash of each sample's group so far, in order; None where nothing is reduced, or where the group is the
            sample's key, whose hash the scan gives.
        placed, dropped: samples with missing or unparsable keys, by reason.
    """

    def __init__(self, spec: ReorderSpec) -> None:
        self.placed: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.key_of: Callable[[Record], bytes | None] | None = None
        self.key_of_stem: Callable[[bytes], bytes] | None = None
        self.load: frozenset[str] | None = frozenset()
        self.groups: array[int] | None = None
        self.by_key = False
        """Whether samples are in one group if and only if they have one key."""
        self._group: KeyEncoder | None = None
        """Encodes the key that groups are made by."""
        if not isinstance(spec, SortSpec):
            return
        from tarmill.formats.sort_keys import KeyEncoder, encode_name, parse_sort_keys
        from tarmill.jobs.reduce import load_sort_key

        script = load_sort_key(spec)
        order = KeyEncoder(parse_sort_keys(spec.keys or DEFAULT_KEYS), spec.missing, script)
        group = KeyEncoder(parse_sort_keys(spec.group_by), spec.missing, script) if spec.group_by else None
        self._group = group or order
        self.by_key = spec.reduces and self._group.plain_key
        self._policy, self._stopped = OnError(spec.on_error), False
        if order.plain_key and (group is None or group.plain_key):
            self.key_of_stem = encode_name
            return
        encoders = [order] if group is None or (self.by_key and order.plain_key) else [group, order]
        needs = [encoder.needs for encoder in encoders]
        self.load = None if None in needs else frozenset[str]().union(*(need for need in needs if need is not None))
        self.groups = array("Q") if spec.reduces and not self.by_key else None
        self._encoders = encoders
        self.key_of = self._encode

    def _encode(self, record: Record) -> bytes | None:
        """Encode a record's keys, the group's first; None for a sample that is left out."""
        if self._stopped:
            self.dropped["after-stop"] += 1
            return None
        parts = []
        try:
            for encoder in self._encoders:
                part = encoder.encode(record)
                if part is None:
                    self.dropped += encoder.dropped
                    encoder.dropped.clear()
                    return None
                parts.append(part)
        except (FormatError, ScriptError) as error:
            if self._policy == OnError.FAIL:
                raise
            # "missing-key" itself is what `--missing drop` leaves out on purpose
            self.dropped[f"{error.reason.removesuffix('-error')}-error"] += 1
            self._stopped = self._policy == OnError.STOP
            return None
        if self.groups is not None:
            self.groups.append(xxh3_64_intdigest(parts[0]))
        for encoder in self._encoders:
            if encoder.placed:
                self.placed += encoder.placed
                encoder.placed.clear()
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def group_value(self, record: Record) -> Any:
        """Give the typed key of a record's group, for `reduce_samples`."""
        assert self._group is not None
        return self._group.value(record)

    def full_key(self, record: Record) -> bytes:
        """Encode a record's keys once more, without counting it."""
        if self.key_of_stem is not None:
            return self.key_of_stem(record["__key__"].encode("utf-8", "surrogateescape"))
        kept = Counter(self.placed), self.groups
        self.groups = None
        encoded = self._encode(record)
        self.placed, self.groups = kept
        assert encoded is not None
        return encoded


_kept: dict[str, Ordering] = {}


def cached_ordering(spec: ReorderSpec) -> Ordering:
    """Give an ordering for `group_value` and `full_key`, made once per process and spec."""
    identity = json.dumps(spec.to_dict(), sort_keys=True)
    if identity not in _kept:
        _kept.clear()
        _kept[identity] = Ordering(spec)
    return _kept[identity]
