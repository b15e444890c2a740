"""One shard of an index, in a worker: what is in it, and the small files that lie beside it alone."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tarmill import storage
from tarmill.engine.meter import Meter, current
from tarmill.errors import NotFoundError
from tarmill.formats import sidecars
from tarmill.formats.compression import decompress
from tarmill.formats.digest import to_hex
from tarmill.formats.index import index_shard
from tarmill.formats.samples import ReadOptions, Record, Tally
from tarmill.formats.sidecar_names import refuse_compressed
from tarmill.jobs.shard_io import open_samples, sample_digests
from tarmill.planning.tasks import Shard
from tarmill.values import fields, valueclass


@valueclass
class IndexTask:
    """Look at one shard, and write what lies beside it alone."""

    index: int
    shard: Shard
    write: tuple[str, ...]
    """Names of `sidecar_names.SIDECARS`; () to read everything and give the digest."""
    energon: str
    """URL of energon's index of the shard; "" for none."""
    dali: str
    owner: str
    """Of temp files: a job id, or the name of a command."""
    state: str
    """Folder URL of the job, where to note that the shard is done; "" for none."""
    settings: Any
    """`storage.StorageSettings`, to be put in force in the worker."""

    @property
    def label(self) -> str:
        """What messages call the task."""
        return self.shard.label

    @property
    def note(self) -> str:
        """URL of the note that the shard is done."""
        return f"{self.state}index-{self.index:07d}.json"


@valueclass
class ShardSummary:
    """What was found in one shard."""

    samples: int
    members: int
    size_bytes: int
    """Of the file, as it is stored."""
    digest: str = ""
    """Multiset hash of the samples, 32 hex digits, where contents were read."""
    md5: str = ""
    """md5sum of the file, where that was asked for."""


def look_at_shard(task: IndexTask) -> ShardSummary:
    """Summarise one shard and write its own files, each whole or not at all; the function that engines run.

    Raises:
        FormatError: something is wrong with the shard.
        SpecError: what was asked for cannot be written for this shard.
        StorageError: reading or writing failed for good.
    """
    storage.configure(task.settings)
    if not task.write:
        return _digest(task.shard, current())
    found = _index(task, current())
    if task.state:
        _write_note(task, found)
    return found


def _digest(shard: Shard, meter: Meter) -> ShardSummary:
    """Read every sample, and compare the whole with the data set's manifest where there is one."""
    tally = Tally()
    with open_samples(shard, ReadOptions(), tally, meter) as samples:
        total = sum(digest for _, digest in sample_digests(samples, meter))
    return ShardSummary(tally.samples, tally.members, shard.size_bytes or meter.read_bytes, to_hex(total))


def _index(task: IndexTask, meter: Meter) -> ShardSummary:
    """Pass over the contents, or through all bytes where their md5 is wanted."""
    label, tally = task.label, Tally()
    dali = sidecars.DaliIndex(label) if task.dali else None
    visits = [dali.add] if dali else []
    if "wids" in task.write:
        visits.append(lambda record: sidecars.check_for_wids(record, label))

    def visit(record: Record) -> None:
        for one in visits:
            one(record)

    with storage.open_read(task.shard.url, version=task.shard.version) as stream:
        raw = _Input(stream, meter, "wids" in task.write)
        contents, codec = decompress(raw, label)
        refuse_compressed(label, codec, task.write)
        index = index_shard(contents, label, tally=tally, visit=visit if visits else None)
        md5 = raw.md5()
        stream.verify()
    meter.samples = len(index)
    if task.energon:
        storage.write_bytes(task.energon, sidecars.energon_index(index, label), owner=task.owner)
    if dali:
        storage.write_bytes(task.dali, dali.to_bytes(), owner=task.owner)
    return ShardSummary(len(index), index.members, task.shard.size_bytes or meter.read_bytes, md5=md5)


class _Input:
    """A raw input that tells the meter what passed, and sums it up where that is wanted (then it cannot seek)."""

    def __init__(self, stream: storage.ReadStream, meter: Meter, md5: bool) -> None:
        self._stream = stream
        self._meter = meter
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self.seek = stream.seek
        self.tell = stream.tell

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._stream.readinto(buffer) or 0
        self._meter.read_bytes += count
        if self._md5 is not None:
            self._md5.update(buffer[:count])
        return count

    def seekable(self) -> bool:
        return self._md5 is None and self._stream.seekable()

    def md5(self) -> str:
        """Give the md5sum, 32 hex digits, of all that was read: of the whole, since a shard is read to its end."""
        return self._md5.hexdigest() if self._md5 is not None else ""


# ---- notes, by which a later run of a job finds what is done ---------------------------------------------------------


def _write_note(task: IndexTask, found: ShardSummary) -> None:
    summary = {one.name: getattr(found, one.name) for one in fields(found)}
    note = {"write": list(task.write), "version": task.shard.version, "summary": summary}
    storage.write_bytes(task.note, (json.dumps(note) + "\n").encode(), owner=task.owner)


def found_before(task: IndexTask) -> ShardSummary | None:
    """Read what an earlier run of the job found in a shard; None where this, or a file of it, is not there or old."""
    try:
        note = json.loads(storage.read_bytes(task.note))
        found = ShardSummary(**note["summary"])
        same = (note["version"], found.size_bytes) == (task.shard.version, task.shard.size_bytes)
        if not same or not set(task.write) <= set(note["write"]):
            return None
        for url in filter(None, (task.energon, task.dali)):
            storage.stat(url)
    except (NotFoundError, ValueError, KeyError, TypeError):
        return None
    return found
