"""Writing compressed streams: one member or frame, no time, no name, the same bytes for the same contents.

isal's output depends on how its input is cut into pieces, so contents are first gathered into blocks of one size, and
on where in memory its state lies, which `_SteadyIsal` mends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tarmill.errors import SpecError, StorageError
from tarmill.values import valueclass

_BLOCK = 256 << 10
_FLUSHED_FIRST = 8
"""Bytes: enough to be hashed (4), too few for the code of the first byte (17); the flush costs 6 bytes of output."""


class RawOutput(Protocol):
    """What a writer needs of an output."""

    def write(self, data: Any, /) -> int | None:
        """Take bytes; the number of bytes taken."""


class _Encoder(Protocol):
    def compress(self, data: Any, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _gzip_encoder(level: int) -> _Encoder:
    if level > 3:
        import zlib

        return zlib.compressobj(level, zlib.DEFLATED, 31)
    return _SteadyIsal(level)


class _SteadyIsal:
    """isal's gzip compressor, whose output is the same at every place in memory.

    Alone it now and then is not: the code that takes a stream's first byte (`.write_first_byte` in its
    igzip_icf_body_h1_gr_bt.asm and igzip_body.asm, up to release 2.32) hashes a register which still holds the address
    of the state, and so may overwrite the place of a match. A few bytes that are flushed first go through other code.
    """

    def __init__(self, level: int) -> None:
        from isal import isal_zlib

        self._flush_mode = isal_zlib.Z_SYNC_FLUSH
        self.isal = isal_zlib.compressobj(level, isal_zlib.DEFLATED, 31)
        self._begun = False

    def compress(self, data: Any, /) -> bytes:
        """Take contents; what there is of the stream so far."""
        if self._begun:
            return self.isal.compress(data)
        self._begun = True
        view = memoryview(data)
        return b"".join((
            self.isal.compress(view[:_FLUSHED_FIRST]),
            self.isal.flush(self._flush_mode),
            self.isal.compress(view[_FLUSHED_FIRST:]),
        ))  # fmt: skip

    def flush(self) -> bytes:
        """End the stream; the rest of it."""
        return self.isal.flush()


def _zstd_encoder(level: int) -> _Encoder:
    import zstandard

    return zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()


def _xz_encoder(level: int) -> _Encoder:
    import lzma

    return lzma.LZMACompressor(lzma.FORMAT_XZ, preset=level)


def _bzip2_encoder(level: int) -> _Encoder:
    import bz2

    return bz2.BZ2Compressor(level)


@valueclass
class _Writable:
    make: Callable[[int], _Encoder]
    levels: range
    default: int


WRITABLE = {
    "gz": _Writable(_gzip_encoder, range(10), 2),
    "zst": _Writable(_zstd_encoder, range(-7, 23), 3),
    "xz": _Writable(_xz_encoder, range(10), 6),
    "bz2": _Writable(_bzip2_encoder, range(1, 10), 9),
}


def check_level(codec: str, level: int | None) -> None:
    """Make sure that a codec can be written at a level.

    Raises:
        SpecError: when it cannot; says what could.
    """
    if codec == "none":
        if level is not None:
            raise SpecError(
                f"level is {level}, but a plain tar is not compressed; leave the level out, or name the output .tar.gz",
                field="level",
                value=level,
            )
    elif codec not in WRITABLE:
        raise SpecError(
            f"codec {codec!r} cannot be written; expected none, {', '.join(WRITABLE)}", field="codec", value=codec
        )
    elif level is not None and level not in (levels := WRITABLE[codec].levels):
        raise SpecError(
            f"level is {level}; expected {levels[0]} to {levels[-1]} for {codec}", field="level", value=level
        )


class PlainOutput:
    """An output that is not compressed: every byte goes on, also where the raw output takes only a part at a time."""

    def __init__(self, raw: RawOutput) -> None:
        self._raw = raw
        self._finished = False

    def write(self, data: Any, /) -> int:
        """Write all of `data`; the number of its bytes."""
        if self._finished:
            raise ValueError("write to a finished output")
        return write_all(self._raw, data)

    def finish(self) -> None:
        """Say that no more comes; `raw` stays open."""
        self._finished = True


class CompressedOutput:
    """An output that compresses; without `finish` it is cut and no reader takes it for whole."""

    def __init__(self, raw: RawOutput, codec: str, level: int | None) -> None:
        self._raw = raw
        kind = WRITABLE[codec]
        self._encoder: _Encoder | None = kind.make(kind.default if level is None else level)
        self._block = memoryview(bytearray(_BLOCK))
        self._filled = 0

    def write(self, data: Any, /) -> int:
        """Take all of `data` (any bytes-like); the number of its bytes."""
        if self._encoder is None:
            raise ValueError("write to a finished output")
        view = memoryview(data).cast("B")
        size, pos = len(view), 0
        if self._filled:
            pos = min(_BLOCK - self._filled, size)
            self._block[self._filled : self._filled + pos] = view[:pos]
            self._filled += pos
            if self._filled < _BLOCK:
                return size
            self._encode(self._encoder, self._block)
        while size - pos >= _BLOCK:
            self._encode(self._encoder, view[pos : pos + _BLOCK])
            pos += _BLOCK
        self._filled = size - pos
        self._block[: self._filled] = view[pos:]
        return size

    def finish(self) -> None:
        """Write what is left and the end mark; `raw` stays open. Once is enough, more do nothing."""
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            self._encode(encoder, self._block[: self._filled])
            write_all(self._raw, encoder.flush())

    def _encode(self, encoder: _Encoder, block: memoryview) -> None:
        if out := encoder.compress(block):
            write_all(self._raw, out)


def write_all(raw: RawOutput, data: Any) -> int:
    """Write all bytes to an output that may take fewer at a time (files do, near a full disk); their number."""
    view = memoryview(data)
    size = view.nbytes
    count = raw.write(data)
    if count == size:
        return size
    view = view.cast("B")
    while True:
        if not count:
            raise StorageError(f"the output takes no more bytes: {len(view):,} of {size:,} are left; is it full?")
        view = view[count:]
        if not view:
            return size
        count = raw.write(view)
