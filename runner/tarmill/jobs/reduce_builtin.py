"""The built-in ways to make few samples of a group: first, last, dedup, count, merge and concat.

Each is a function of (group key, samples) that goes through the samples once, holds no more than its result and yields
(record, storable key). A result that is one of the samples keeps that sample's key; a result that is made of several
(count, merge, concat) has the group's, in a form that can be stored (`storable_key`), or, where samples are grouped by
their own key, that.

What a combiner gives (`partial`) is an ordinary tar sample that only the same reduce reads again. Count and merge need
more than their result has, so they mark such samples by a field of their own. The mark is looked for under `--combine`
only, and is no name alone: a user's sample is taken for a partial result only when it has just these fields with just
these contents.

    count    fields "count" (the sum so far) and "count.partial" (b"tarmill")
    merge    the fields' contents as "0", "1", ...; "merge.partial" is JSON that says for each its name, part, sample
             and shard, and which parts have been seen
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial as bound
from typing import Any, NamedTuple

from xxhash import xxh3_64_hexdigest

from tarmill.errors import LimitError, SampleError
from tarmill.formats.digest import sample_digest
from tarmill.formats.keys import base_plus_ext
from tarmill.formats.samples import Record
from tarmill.formats.sort_keys import parse_sort_keys
from tarmill.formats.tar_write import check_key
from tarmill.jobs.script import short
from tarmill.spec import SortSpec

Step = Callable[[Any, Iterator[Record]], Iterator[tuple[Record, str]]]
"""(group key, its samples) -> (record, storable key) of each sample that is left."""

_MAX_KEY_CHARACTERS = 200
_COUNT_MARK = {"count.partial": b"tarmill"}
_MERGE_MARK = "merge.partial"


def builtin_step(spec: SortSpec, parts: int, *, partial: bool) -> Step:
    """Make the step that `spec.reduce` names; `partial` gives what the same step of the same spec completes later."""
    if spec.reduce == "count":
        return bound(_count, spec, partial)
    if spec.reduce == "merge":
        return _Merge(spec, parts, partial)
    if spec.reduce == "concat":
        return bound(_concat, spec, by_own_key(spec))
    if spec.reduce == "last":
        return bound(_last, spec)
    return bound(_distinct if spec.reduce == "dedup" and spec.dedup_by == "content" else _first, spec)


def by_own_key(spec: SortSpec) -> bool:
    """Tell whether samples are grouped by nothing but their own key."""
    key, *others = parse_sort_keys(spec.group_by or spec.keys or ("__key__",))
    return not others and key.column is not None and key.column.special == "__key__" and not key.column.path


def storable_key(key: Any) -> str:
    """Make a sample's key of a group's: 1.5 -> "1_5", ("a", 5) -> "a-5", None -> "missing", no text -> "empty".

    Bytes that are no text come in hex; a long key is cut, and a hash of the whole stands at its end.
    """
    text = _text(key).replace("\0", "_") or "empty"
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair
        data = text.encode("utf-8", "replace")
        text = data.decode()
    if len(text) > _MAX_KEY_CHARACTERS:
        text = f"{text[:_MAX_KEY_CHARACTERS]}-{xxh3_64_hexdigest(data)}"
    folder, slash, last = text.rpartition("/")
    text = folder + slash + (last.replace(".", "_") or "_")
    return text if base_plus_ext(text + ".x") is not None else f"key{text}"  # __x__/ in front is reserved


def _text(key: Any) -> str:
    if key is None:
        return "missing"
    if isinstance(key, bytes):
        try:
            return key.decode()
        except UnicodeDecodeError:
            return key.hex()
    if isinstance(key, bool):
        return str(key).lower()
    return "-".join(map(_text, key)) if isinstance(key, tuple | list) else str(key)


def _value(key: Any) -> bytes:
    """Write a group's key as a field's contents: text or the bytes themselves, nothing for None, JSON for tuples."""
    if isinstance(key, bytes):
        return key
    if isinstance(key, tuple | list | bool):
        key = json.dumps(key, ensure_ascii=False, default=_text)
    text = "" if key is None else str(key)
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def _kept(spec: SortSpec, record: Record) -> tuple[Record, str]:
    """Keep a sample under its own key."""
    return record, _own_key(spec, record["__key__"])


def _own_key(spec: SortSpec, key: str) -> str:
    if spec.key_function != "base_plus_ext":  # whose keys can always be stored
        check_key(key)
    return key


def _fields(record: Record) -> Iterator[tuple[str, Any]]:
    """Give the fields that would be written: no `__names__`, no str under "key" (the key's alias)."""
    for name, value in record.items():
        if not name.startswith("__") and (name != "key" or not isinstance(value, str)):
            yield name, value


# One or some of the samples, as they are


def _first(spec: SortSpec, key: Any, samples: Iterator[Record]) -> Iterator[tuple[Record, str]]:
    for record in samples:
        yield _kept(spec, record)
        return


def _last(spec: SortSpec, key: Any, samples: Iterator[Record]) -> Iterator[tuple[Record, str]]:
    record = None
    for record in samples:  # noqa: B007
        pass
    if record is not None:
        yield _kept(spec, record)


def _distinct(spec: SortSpec, key: Any, samples: Iterator[Record]) -> Iterator[tuple[Record, str]]:
    """Keep the first of each content; about 100 bytes of memory for each."""
    seen: set[int] = set()
    for record in samples:
        digest = sample_digest("", dict(_fields(record)))
        if digest not in seen:
            seen.add(digest)
            yield _kept(spec, record)


# One sample made of all


def _count(spec: SortSpec, partial: bool, key: Any, samples: Iterator[Record]) -> Iterator[tuple[Record, str]]:
    total = 0
    for record in samples:
        total += _count_in(record) if spec.combine else 1
    if total:
        result_key = storable_key(key)
        result: Record = {"__key__": result_key, "count": b"%d" % total}
        yield result | (_COUNT_MARK if partial else {"value": _value(key)}), result_key


def _count_in(record: Record) -> int:
    """Tell how many samples a sample stands for."""
    fields = dict(_fields(record))
    count = fields.pop("count", b"")
    return int(count) if fields == _COUNT_MARK and count.isdigit() else 1


def _concat(spec: SortSpec, own: bool, key: Any, samples: Iterator[Record]) -> Iterator[tuple[Record, str]]:
    """Join the contents of equal fields; a part of it is of the same form as the whole."""
    held: dict[str, bytes | bytearray] = {}
    result_key = "" if own else storable_key(key)
    for record in samples:
        result_key = result_key or _own_key(spec, record["__key__"])
        for name, value in _fields(record):
            before = held.get(name)
            if before is None:
                held[name] = value
                continue
            _check_size(spec, key, name, len(before) + len(value))
            if not isinstance(before, bytearray):
                before = held[name] = bytearray(before)
            before += value
    for name, body in held.items():
        held[name] = bytes(body)
    if held:
        yield {"__key__": result_key, **held}, result_key


def _check_size(spec: SortSpec, key: Any, field: str, size: int) -> None:
    if size > spec.max_member:
        raise LimitError(
            f"group {short(key)}: field {field!r} of its samples together has {size:,} bytes or more; expected at most "
            f"{spec.max_member:,}, since it is held in memory; raise --max-member, or reduce by a script that yields "
            "several samples",
            key=storable_key(key),
            field=field,
            size_bytes=size,
            limit_bytes=spec.max_member,
        )


class _Held(NamedTuple):
    """A field's contents and where they are from."""

    part: int
    sample: str
    shard: str
    value: Any


class _Merge:
    """The union of fields over the parts, in the order of parts and within one as the samples come."""

    def __init__(self, spec: SortSpec, parts: int, partial: bool) -> None:
        self._spec, self._partial = spec, partial
        self._own = by_own_key(spec)
        self._wanted = {"inner": frozenset(range(parts)), "left": frozenset({0}), "outer": frozenset[int]()}[spec.join]

    def __call__(self, key: Any, samples: Iterator[Record]) -> Iterator[tuple[Record, str]]:
        held: dict[str, list[_Held]] = {}
        sizes: dict[str, int] = {}  # of fields that come several times
        seen: set[int] = set()
        leader: tuple[int, str] | None = None  # of the part that comes first
        for record in samples:
            part, sample, parts, fields = self._unpacked(record)
            seen.update(parts)
            if leader is None or part < leader[0]:
                leader = part, sample
            for name, found in fields:
                self._take(key, name, held.setdefault(name, []), found, sizes)
        if leader is None:
            return
        for several in held.values():
            several.sort(key=lambda found: found.part)  # stable
        if self._partial:
            yield _packed(leader, seen, held), storable_key(key)
        elif seen >= self._wanted:
            result_key = _own_key(self._spec, leader[1]) if self._own else storable_key(key)
            yield {"__key__": result_key, **_renamed(held)}, result_key

    def _unpacked(self, record: Record) -> tuple[int, str, list[int], list[tuple[str, _Held]]]:
        """Give part and key of a sample, the parts that it stands for, and its fields."""
        if self._spec.combine and _MERGE_MARK in record and (state := _state(record)) is not None:
            origins = enumerate(state["fields"])
            found = [(name, _Held(origin, key, shard, record[str(i)])) for i, (name, origin, key, shard) in origins]
            return *state["leader"], state["parts"], found
        part, sample, shard = record["__part__"], record["__key__"], record["__url__"]
        return part, sample, [part], [(name, _Held(part, sample, shard, value)) for name, value in _fields(record)]

    def _take(self, key: Any, name: str, held: list[_Held], found: _Held, sizes: dict[str, int]) -> None:
        """Treat what may be the second of a field as the rule says."""
        rule = self._spec.same_field
        if not held:
            held.append(found)
        elif rule == "error":
            one, two = sorted((held[0], found), key=lambda item: item.part)
            raise SampleError(
                f"group {short(key)}: field {name!r} comes twice, from sample {one.sample!r} of {one.shard} and from "
                f"sample {two.sample!r} of {two.shard}; expected it in one of them; choose by --same-field first, last "
                "or rename",
                key=storable_key(key),
                field=name,
                shard=two.shard,
                shards=(one.shard, two.shard),
                reason="same-field",
            )
        elif rule == "rename":
            held.append(found)
            sizes[name] = sizes.get(name, len(held[0].value)) + len(found.value)
            _check_size(self._spec, key, name, sizes[name])
        elif found.part < held[0].part if rule == "first" else found.part >= held[0].part:
            held[0] = found


def _renamed(held: dict[str, list[_Held]]) -> dict[str, Any]:
    """Name each of several contents of a field: `jpg`, `2.jpg`, `3.jpg`; a name that samples have is passed over."""
    result: dict[str, Any] = {name: several[0].value for name, several in held.items()}
    for name, several in held.items():
        number = 2
        for found in several[1:]:
            while f"{number}.{name}" in result:
                number += 1
            result[f"{number}.{name}"] = found.value
    return result


def _packed(leader: tuple[int, str], seen: set[int], held: dict[str, list[_Held]]) -> Record:
    """Write what has been merged so far as a sample."""
    items = [(name, found) for name, several in held.items() for found in several]
    state = {
        "tarmill": 1,
        "leader": leader,
        "parts": sorted(seen),
        "fields": [(name, found.part, found.sample, found.shard) for name, found in items],
    }
    result: Record = {"__key__": leader[1], _MERGE_MARK: json.dumps(state).encode()}
    return result | {str(i): found.value for i, (_, found) in enumerate(items)}


def _state(record: Record) -> dict[str, Any] | None:
    """Read what `_packed` wrote; None for a user's field of the same name."""
    try:
        state = json.loads(record[_MERGE_MARK])
        names = {str(i) for i in range(len(state["fields"]))} | {_MERGE_MARK}
        ours = state["tarmill"] == 1 and names == {name for name, _ in _fields(record)}
    except (ValueError, KeyError, TypeError):
        return None
    return state if ours else None
