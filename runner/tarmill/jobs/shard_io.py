"""Shards in and out: store, compression and tar joined, with hashes and meters on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from xxhash import xxh3_128

from tarmill import storage
from tarmill.engine.meter import Meter
from tarmill.errors import ChangedError, FormatError, ScriptError
from tarmill.formats.compression import ByteInput, codec_for, compress, decompress
from tarmill.formats.digest import sample_digest, to_hex
from tarmill.formats.samples import ReadOptions, Record, Tally
from tarmill.formats.tar_read import iter_samples
from tarmill.formats.tar_values import iter_values
from tarmill.formats.tar_window import RawInput
from tarmill.formats.tar_write import TarSink
from tarmill.planning.tasks import OutputShard, Shard
from tarmill.values import replace

_DRAIN_BYTES = 256 << 10
JOIN_BELOW = 32 << 10
"""Pieces of less than this, on average, are joined before they are written."""


class _Metered:
    """A raw input that tells the meter what passed, and hashes it where a manifest knows what must come out."""

    def __init__(self, stream: storage.ReadStream, shard: Shard, meter: Meter) -> None:
        self._stream = stream
        self._shard = shard
        self._meter = meter
        self._hash = xxh3_128() if shard.content_hash else None
        self.seek = stream.seek
        self.tell = stream.tell
        # where everything has to be hashed there is nothing to jump over
        self.positional = stream.positional if self._hash is None else None
        if self.positional is not None:
            self.positional.counter = meter

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer; at the end compare the hash."""
        count = self._stream.readinto(buffer) or 0
        self._meter.read_bytes += count
        if self._hash is not None:
            if count:
                self._hash.update(buffer[:count])
            else:
                self._compare(self._hash.hexdigest())
        return count

    def verify(self) -> None:
        """Read what nobody has read, and compare the hash.

        Raises:
            ChangedError: the bytes are not those that the manifest knows.
        """
        if self._hash is not None:
            block = memoryview(bytearray(_DRAIN_BYTES))
            while self.readinto(block):
                pass

    def seekable(self) -> bool:
        """Tell whether parts can be passed over; not when everything has to be hashed."""
        return self._hash is None and self._stream.seekable()

    def _compare(self, found: str) -> None:
        if found != self._shard.content_hash:
            raise ChangedError(
                f"{self._shard.label}: its bytes have the hash {found}, but the data set's manifest says "
                f"{self._shard.content_hash}; it was damaged on the way or overwritten: read or write it again",
                url=self._shard.label,
                retryable=True,
            )


@contextmanager
def open_contents(shard: Shard, meter: Meter) -> Iterator[tuple[ByteInput, str]]:
    """Open a shard at its pinned version; its decompressed bytes, and the codec ("none" for a plain tar)."""
    with storage.open_read(shard.url, version=shard.version) as stream:
        metered = _Metered(stream, shard, meter)
        try:
            yield decompress(metered, shard.label)
        except FormatError:
            metered.verify()  # damage on the way is no fault of the shard, and may pass
            raise


@contextmanager
def open_samples(
    shard: Shard, options: ReadOptions, tally: Tally, meter: Meter, *, verify: bool = True
) -> Iterator[Iterator[Record]]:
    """Open a shard and give the iterator over its samples (see `formats.tar_read.iter_samples`).

    Args:
        shard: read at its pinned version; the whole of it is compared with `content_hash` where that is known.
        verify: False leaves that comparison out, which lets unwanted fields be passed over.
    """
    with _opened(shard, tally, meter, verify=verify) as (raw, reopen):
        yield iter_samples(raw, shard.label, options, tally, reopen)


@contextmanager
def open_values(
    shard: Shard, field: str, options: ReadOptions, tally: Tally, meter: Meter
) -> Iterator[Iterator[list[bytes] | Record]]:
    """Open a shard and give the iterator over one field's contents (see `formats.tar_values.iter_values`)."""
    with _opened(shard, tally, meter, verify=False) as (raw, reopen):
        yield iter_values(raw, shard.label, field, options, tally, reopen)


@contextmanager
def _opened(
    shard: Shard, tally: Tally, meter: Meter, *, verify: bool
) -> Iterator[tuple[RawInput, Callable[[], RawInput] | None]]:
    """Give a shard's decompressed stream, and how to get it once more where that is possible."""
    if not verify and shard.content_hash:
        shard = replace(shard, content_hash="")
    with storage.open_read(shard.url, version=shard.version) as stream, ExitStack() as again:
        metered = _Metered(stream, shard, meter)
        try:
            raw, _ = decompress(metered, shard.label)
            yield raw, None if shard.url == "-" else reopener(shard, again)
        except (FormatError, ScriptError):
            metered.verify()  # damage on the way is no fault of the shard or the script, and may pass
            raise
        if tally.unread:
            metered.verify()


def reopener(shard: Shard, again: ExitStack) -> Callable[[], RawInput]:
    """Give a function that opens a shard once more, from its beginning, and closes what it opened before."""

    def reopen() -> RawInput:
        again.close()  # the one before
        return decompress(again.enter_context(storage.open_read(shard.url, version=shard.version)), shard.label)[0]

    return reopen


def sample_digests(samples: Iterable[Record], meter: Meter) -> Iterator[tuple[str, int]]:
    """Give key and digest of each sample, and tell the meter."""
    for record in samples:
        meter.samples += 1
        meter.key = key = record.pop("__key__")
        del record["__url__"]
        if record["key"] is key:  # else a field of that name has taken its place
            del record["key"]
        yield key, sample_digest(key, record)


class ShardOutput:
    """One output shard in the making: samples in, hashed and compressed bytes out, committed whole or not at all."""

    def __init__(self, url: str, name: str, owner: str, level: int, meter: Meter) -> None:
        self._name = name
        self._meter = meter
        self._hash = xxh3_128()
        self._stream = storage.open_write(url, owner=owner, content_type="application/x-tar")
        codec = codec_for(url)
        self._packer = compress(_Hashed(self), codec, None if level < 0 else level)
        self.sink = TarSink(self._packer.write, self.write_all if codec == "none" else None)
        self.copied = 0
        """Samples that were copied as they were."""

    def write(self, block: Any) -> None:
        """Take packed bytes: hash them and hand them to the store."""
        self._hash.update(block)
        self._meter.written_bytes += self._stream.write(block)

    def write_all(self, pieces: Sequence[Any]) -> None:
        """Take packed bytes in many pieces, as `write` does."""
        for piece in pieces:
            self._hash.update(piece)
        self._meter.written_bytes += self._stream.write_all(pieces)

    def copy(self, samples: int, pieces: Sequence[Any]) -> None:
        """Append samples as they lie in another shard, headers and all, behind those that went through the sink."""
        self.sink.drain()
        write = self._packer.write
        large = len(pieces) < 2 or sum(map(len, pieces)) > JOIN_BELOW * len(pieces)
        for block in pieces if large else [b"".join(pieces)]:
            write(block)
        self.copied += samples

    def commit(self) -> OutputShard:
        """End the archive and publish it; of a shard with copied samples neither members nor digest are known."""
        self.sink.finish()
        self._packer.finish()
        receipt = self._stream.commit()
        return OutputShard(
            name=self._name,
            size_bytes=self._stream.bytes_written,
            version=receipt.version,
            content_hash=self._hash.hexdigest(),
            samples=self.sink.samples + self.copied,
            members=0 if self.copied else self.sink.members,
            digest="" if self.copied else to_hex(self.sink.digest),
        )

    def __enter__(self) -> ShardOutput:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._stream.abort()  # nothing happens after a commit


class _Hashed:
    """The raw output that a packer writes to."""

    def __init__(self, output: ShardOutput) -> None:
        self._output = output

    def write(self, data: Any, /) -> int:
        self._output.write(data)
        return len(data)
