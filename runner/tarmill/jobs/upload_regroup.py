"""Members of any tar put together to samples, which need not be neighbours: as far apart as memory is given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from tarmill.errors import FormatError, LimitError, SampleError
from tarmill.formats.keys import key_function
from tarmill.formats.tar_members import END_MARK, MemberReader
from tarmill.formats.tar_window import RawInput, Window
from tarmill.jobs.upload_collect import hash_of_key
from tarmill.planning.counts import Counts
from tarmill.planning.tasks import Shard, ShardDone
from tarmill.planning.upload_names import another_key, fault_of_field, fault_of_key, folder_test, name_test
from tarmill.spec import UploadSpec
from tarmill.values import field, valueclass

INPUT = Shard("-", "standard input")
_LINE_LIMIT = 1 << 20  # of the rejected: a stream of nothing else must not fill the memory


@valueclass(frozen=False)
class StreamDone:
    """What became of the stream."""

    shards: list[ShardDone] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    """Of what is in no shard."""


class Regrouper:
    """Puts members together to samples, in the order in which samples begin.

    Args:
        spec: key_function, key_prefix, same_key, on_error, include, exclude, hidden, regroup, max_member.
        done: takes counts and what is left out.
    """

    def __init__(self, spec: UploadSpec, done: StreamDone) -> None:
        self.spec = spec
        self.done = done
        self._split = key_function(spec.key_function)
        self._keep = name_test(spec.include, spec.exclude)
        self._leave = folder_test(spec.exclude)
        self._open: OrderedDict[str, dict[str, bytes]] = OrderedDict()
        self._held = 0
        self._names: dict[str, str] = {}
        """Keys that were given in place of those that were taken, while their samples are open."""
        self._past: set[int] = set()
        """Hashes of the keys of samples that were handed on or left out."""
        self._bad: set[int] = set()

    def samples(self, raw: RawInput) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Read a (decompressed) tar; give (key, fields) of each sample.

        Raises:
            FormatError: under `--on-error fail`, at the first thing that is wrong.
        """
        members = MemberReader(Window(raw), INPUT.label, self.spec.max_member)
        key = ""
        try:
            while (member := members.next()) is not None:
                if member.kind == END_MARK:
                    continue
                pair = self._pair(member.text.removeprefix("./"), member.kind)
                if pair is None:
                    members.skip_data(member)
                    continue
                key = self.spec.key_prefix + pair[0]
                try:
                    yield from self._take(key, pair[1], members.read_data(member))
                except (LimitError, SampleError) as error:
                    self._drop(key, error)
                key = ""
                while self._held > self.spec.regroup and len(self._open) > 1:  # the last one may go on
                    yield self._close(next(iter(self._open)))
        except FormatError as error:
            if self.spec.on_error == "fail" or isinstance(error, _SameKey):
                raise
            self.done.counts.unread[error.reason] += 1
            self._note("", error.reason, error.message)
            if key and hash_of_key(key) not in self._bad:  # it was cut in the middle of this one
                self._drop(key, error)
        while self._open:
            yield self._close(next(iter(self._open)))

    def _pair(self, name: str, kind: str) -> tuple[str, str] | None:
        """Find key and field of a member; None, and counted, where it is in no sample."""
        skipped = self.done.counts.skipped_members
        folders = name.split("/")[:-1]
        if kind not in ("file", "sparse", "hardlink"):
            skipped[kind] += 1
        elif not self.spec.hidden and (name[:1] == "." or "/." in name):
            skipped["hidden"] += 1
        elif self._leave is not None and any(self._leave("/".join(folders[: n + 1])) for n in range(len(folders))):
            skipped["excluded"] += 1
        elif self._keep is not None and not self._keep(name):
            skipped["not-included"] += 1
        elif (pair := self._split(name)) is None:
            skipped["no-extension" if self.spec.key_function == "base_plus_ext" else "no-key"] += 1
        else:
            return pair
        return None

    def _take(self, key: str, name: str, data: bytes) -> Iterator[tuple[str, dict[str, bytes]]]:
        digest = hash_of_key(key)
        if digest in self._bad:
            return
        fields = self._open.get(self._names.get(key, key))
        if fields is not None and name in fields:
            self._same_key(key)
            yield self._close(self._names.get(key, key))
            fields = None
        if fields is None:
            if (fault := fault_of_key(key)) is not None:
                raise SampleError(f"{INPUT.label}: {fault[1]}", key=key, reason=fault[0])
            if digest in self._past:
                self._same_key(key)
                self._names[key] = another_key(key, lambda other: hash_of_key(other) in self._past)
                self._past.add(hash_of_key(self._names[key]))
                self.done.counts.renamed += 1
            self._past.add(digest)
            fields = self._open[self._names.get(key, key)] = {}
        if (fault := fault_of_field(name)) is not None:
            raise SampleError(f"{INPUT.label}, sample {key!r}: {fault[1]}", key=key, reason=fault[0])
        fields[name] = data
        self._held += len(data) + 1024

    def _same_key(self, key: str) -> None:
        if self.spec.same_key == "fail":
            raise _SameKey(
                f"{INPUT.label} has two samples with the key {key!r}, or members of one that are more than "
                f"{self.spec.regroup} bytes apart; raise --regroup, or let the second have another key with --same-key "
                "rename",
                key=key,
                reason="same-key",
            )

    def _close(self, name: str) -> tuple[str, dict[str, bytes]]:
        fields = self._open.pop(name)
        self._held -= sum(map(len, fields.values())) + 1024 * len(fields)
        return name, fields

    def _drop(self, key: str, error: FormatError) -> None:
        """Leave a sample out, whole, or raise what is wrong with it."""
        if self.spec.on_error == "fail" or isinstance(error, _SameKey):
            raise error
        name = self._names.get(key, key)
        if name in self._open:
            self._close(name)
        self._bad.add(hash_of_key(key))
        self._past.add(hash_of_key(key))
        self.done.counts.read += 1
        self.done.counts.dropped[error.reason] += 1
        self._note(key, error.reason, error.message)

    def _note(self, key: str, reason: str, message: str) -> None:
        if len(self.done.rejected) < _LINE_LIMIT:
            line = {"shard": INPUT.label, "key": key, "reason": reason, "message": message, "kept": False}
            self.done.rejected.append(line)


class _SameKey(SampleError):
    """Two samples have one key: `--same-key` decides about that, not `--on-error`."""
