"""Reading zstd: the library decodes, and a walk over the frames beside it tells what the library does not say.

zstandard's stream reader fills a caller's buffer in bounded memory, but ends in silence where its input does. The frame
format (RFC 8878) is simple enough to follow: sizes stand before what they measure, so one look per block (128 KiB of
contents) tells where a frame ends, whether the input was cut, what window it needs, and where something else begins.
"""

from __future__ import annotations

import io
from typing import Any, cast

from tarmill.formats.codec_read import (
    MAX_WINDOW_BYTES,
    SKIPPABLE,
    ZSTD,
    close_raw,
    damaged,
    garbage,
    too_large,
    truncated,
)
from tarmill.formats.tar_window import RawInput

_READ = 64 << 10
_PIECE = 128 << 10
_CONTENT_SIZE_BYTES = (0, 2, 4, 8)
_DICTIONARY_ID_BYTES = (0, 1, 2, 4)


class ZstdInput(io.RawIOBase):
    """The contents of a stream of zstd frames."""

    def __init__(self, raw: RawInput, shard: str) -> None:
        super().__init__()
        import zstandard

        self._raw = raw
        self._shard = shard
        self._frames = _Frames(raw, shard)
        self._failure: type[Exception] = zstandard.ZstdError
        self._reader: Any = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(
            cast(Any, self._frames), read_size=_READ, read_across_frames=True, closefd=False
        )

    def readable(self) -> bool:
        """Tell io that this can be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill the start of `buffer`, 128 KiB at most: that is what an error in the next block may cost."""
        view = memoryview(buffer)[:_PIECE]
        if not view:
            return 0
        try:
            count: int = self._reader.readinto(view)
        except self._failure as error:
            raise (self._frames.fault or damaged("zst", self._shard, self._frames.offset, error)) from error
        if not count:
            self._frames.check_end()
        return count

    def close(self) -> None:
        """Close it, and the raw input below it."""
        if not self.closed:
            super().close()
            self._reader.close()
            close_raw(self._raw)


class _Frames:
    """The compressed bytes on their way to the library, and where in the frames they are.

    What cannot be decoded is not passed on; `fault` is raised once all before it was handed out.
    """

    def __init__(self, raw: RawInput, shard: str) -> None:
        self._raw = raw
        self._shard = shard
        self._buffer = memoryview(bytearray(_READ))
        self.offset = 0
        """Compressed bytes read."""
        self.fault: Exception | None = None
        self._pending = b""
        """The beginning of a mark that the next bytes complete."""
        self._skip = 0
        """Bytes until the next mark."""
        self._next = self._magic
        self._checksum = 0

    def read(self, _size: int) -> bytes:
        """Read the next compressed bytes, as the library asks for them."""
        if self.fault is not None:
            return b""
        count = self._raw.readinto(self._buffer) or 0
        chunk = bytes(self._buffer[:count])
        self.offset += count
        return chunk[: self._walk(chunk)]

    def check_end(self) -> None:
        """Raise what is wrong with the end of the stream, if anything is."""
        if self.fault is not None:
            raise self.fault
        if self._skip or self._pending or self._next != self._magic:
            raise truncated("its zst data", self._shard, self.offset)

    def _walk(self, chunk: bytes) -> int:
        """Go over the marks in a chunk; how much of it can be decoded."""
        pending = len(self._pending)
        data, pos = self._pending + chunk, 0
        self._pending = b""
        while True:
            step = min(self._skip, len(data) - pos)
            pos += step
            self._skip -= step
            if pos == len(data):
                return len(chunk)
            self._position = self.offset - len(data) + pos
            used = self._next(data, pos)
            if self.fault is not None:
                return max(0, pos - pending)
            if not used:
                self._pending = data[pos:]
                return len(chunk)
            pos += used

    def _magic(self, data: bytes, pos: int) -> int:
        magic = data[pos : pos + 4]
        known = (ZSTD, *SKIPPABLE)
        if magic in known:
            self._next = self._header if magic == ZSTD else self._skippable
            return 4
        if not any(mark.startswith(magic) for mark in known):
            self.fault = garbage("zst", self._shard, self._position)
        return 0

    def _skippable(self, data: bytes, pos: int) -> int:
        if len(data) < pos + 4:
            return 0
        self._skip = int.from_bytes(data[pos : pos + 4], "little")
        self._next = self._magic
        return 4

    def _header(self, data: bytes, pos: int) -> int:
        descriptor = data[pos]
        single_segment = descriptor >> 5 & 1
        content = _CONTENT_SIZE_BYTES[descriptor >> 6] or single_segment
        fixed = 2 - single_segment + _DICTIONARY_ID_BYTES[descriptor & 3]
        if len(data) < pos + fixed + content:
            return 0
        if single_segment:
            size = data[pos + fixed : pos + fixed + content]
            window = int.from_bytes(size, "little") + (256 if content == 2 else 0)
        else:
            window = 1 << 10 + (data[pos + 1] >> 3)
            window += (window >> 3) * (data[pos + 1] & 7)
        if window > MAX_WINDOW_BYTES:
            self.fault = too_large("zst", self._shard, self._position, window)
        self._checksum = 4 if descriptor & 4 else 0
        self._next = self._block
        return fixed + content

    def _block(self, data: bytes, pos: int) -> int:
        if len(data) < pos + 3:
            return 0
        head = int.from_bytes(data[pos : pos + 3], "little")
        repeated = head >> 1 & 3 == 1
        self._skip = 1 if repeated else head >> 3
        if head & 1:
            self._skip += self._checksum
            self._next = self._magic
        return 3
