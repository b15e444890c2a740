"""One shard of `tarmill verify`, in a worker: read whole and summed up, or read again to find which samples differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

from xxhash import xxh3_64_intdigest, xxh3_128

from tarmill import storage
from tarmill.engine.meter import Meter, current
from tarmill.errors import FormatError
from tarmill.formats.compression import decompress
from tarmill.formats.digest import MASK_64, to_hex
from tarmill.formats.samples import ReadOptions, Tally
from tarmill.formats.tar_read import iter_samples
from tarmill.jobs.shard_io import open_samples, reopener, sample_digests
from tarmill.planning.tasks import Shard
from tarmill.values import valueclass

ROW_BYTES = 16
"""What `collect_digests` notes of a sample."""

_DRAIN_BYTES = 256 << 10


@valueclass
class VerifyTask:
    """Read one shard."""

    index: int
    shard: Shard
    key_function: str
    settings: Any
    """`storage.StorageSettings`, to be put in force in the worker."""
    part: tuple[int, int] = (0, 1)
    """(i, n): the samples whose key's hash is i modulo n."""
    wanted: frozenset[int] = frozenset()
    """Low halves of the digests of the samples to be named."""

    @property
    def label(self) -> str:
        """What messages call the task."""
        return self.shard.label


@valueclass
class ShardFound:
    """What was read of one shard."""

    samples: int
    members: int
    size_bytes: int
    content_hash: str
    """xxh3_128 of the stored bytes."""
    digest: str
    """Multiset hash of the samples, 32 hex digits."""
    reason: str = ""
    """That of the error where the shard is no whole tar; counts and digest are of what comes before it."""
    error: str = ""
    """The error's message."""


def read_shard(task: VerifyTask) -> ShardFound:
    """Read all of one shard, and what of it can be read of a damaged one; a function that engines run.

    Raises:
        StorageError: reading failed for good.
    """
    storage.configure(task.settings)
    found = _read(task, current())
    if task.shard.content_hash not in ("", found.content_hash):
        found = _read(task, current())  # damage on the way may pass; what lies in the store stays
    return found


def _read(task: VerifyTask, meter: Meter) -> ShardFound:
    shard, tally, total = task.shard, Tally(), 0
    fault: FormatError | None = None
    meter.samples = meter.read_bytes = 0
    with storage.open_read(shard.url, version=shard.version) as stream, ExitStack() as again:
        raw = _Hashed(stream, meter)
        try:
            contents, _ = decompress(raw, shard.label)
            samples = iter_samples(contents, shard.label, ReadOptions(task.key_function), tally, reopener(shard, again))
            for _, digest in sample_digests(samples, meter):
                total += digest
        except FormatError as error:
            fault = error
        raw.drain()
        stream.verify()
    return ShardFound(
        tally.samples,
        tally.members,
        raw.size_bytes,
        raw.hexdigest(),
        to_hex(total),
        fault.reason if fault else "",
        fault.message if fault else "",
    )


class _Hashed:
    """A raw input that hashes and counts all that passes; it cannot seek, since everything has to pass."""

    def __init__(self, stream: storage.ReadStream, meter: Meter) -> None:
        self._stream = stream
        self._meter = meter
        self._hash = xxh3_128()
        self.size_bytes = 0
        self.hexdigest = self._hash.hexdigest

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._stream.readinto(buffer) or 0
        self._hash.update(buffer[:count])
        self.size_bytes += count
        self._meter.read_bytes += count
        return count

    def seekable(self) -> bool:
        return False

    def drain(self) -> None:
        """Read what nobody has read."""
        block = memoryview(bytearray(_DRAIN_BYTES))
        while self.readinto(block):
            pass


def _digests_again(task: VerifyTask) -> Iterator[tuple[str, int]]:
    """Read the shard once more: key and digest of each sample."""
    storage.configure(task.settings)
    meter = current()
    with (
        open_samples(task.shard, ReadOptions(task.key_function), Tally(), meter, verify=False) as samples,
        closing(samples),  # type: ignore[type-var]  # a generator
    ):
        yield from sample_digests(samples, meter)


def collect_digests(task: VerifyTask) -> bytes:
    """Note each sample of `task.part`: low half of its digest, hash of its key; a function that engines run."""
    part, parts = task.part
    rows = bytearray()
    for key, digest in _digests_again(task):
        key_hash = xxh3_64_intdigest(key.encode("utf-8", "surrogateescape"))
        if key_hash % parts == part:
            rows += (digest & MASK_64 | key_hash << 64).to_bytes(ROW_BYTES, "little")
    return bytes(rows)


def name_samples(task: VerifyTask) -> dict[int, str]:
    """Give the keys of the samples that `task.wanted` knows by their digests; a function that engines run."""
    found: dict[int, str] = {}
    with closing(_digests_again(task)) as samples:  # type: ignore[type-var]  # a generator
        for key, digest in samples:
            if digest & MASK_64 in task.wanted:
                found[digest & MASK_64] = key
                if len(found) == len(task.wanted):
                    break
    return found
