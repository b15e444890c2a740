"""Reading compressed streams member by member, in bounded memory; `compression` has the rules.

The decompressor objects of isal, bz2, lzma and lz4 are alike: one class serves the four. zstd is in `codec_zstd`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol, cast

from tarmill.errors import CompressionError, LimitError, TruncatedError
from tarmill.formats.tar_window import RawInput
from tarmill.heap import own_memory

MAX_WINDOW_BYTES = 1 << 27
_READ = 32 << 10
_QUICK_READ = 128 << 10
_PIECE = 96 << 10  # below the 128 KiB from which malloc fetches fresh pages each time
_XZ_MEMORY = MAX_WINDOW_BYTES + (16 << 20)

GZIP, XZ, ZSTD, LZ4 = b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"
SKIPPABLE = tuple(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))
# With the mark of the first block or of the end of the stream: "BZh1" alone may begin the name of a tar member.
_BZIP2 = tuple(b"BZh%d" % level + mark for level in range(1, 10) for mark in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"))
SIGNATURES: dict[str, tuple[bytes, ...]] = {
    "gz": (GZIP,),
    "bz2": _BZIP2,
    "xz": (XZ,),
    "zst": (ZSTD, *SKIPPABLE),
    "lz4": (LZ4, *SKIPPABLE),
}


def truncated(what: str, shard: str, offset: int) -> TruncatedError:
    """Make the error for a stream that ends within `what`; offset in compressed bytes, as in all of these."""
    return TruncatedError(
        f"{shard}: {what} ends after {offset:,} bytes, before its end mark; the shard was cut: fetch or write it again",
        shard=shard,
        offset=offset,
        reason="truncated",
    )


def garbage(codec: str, shard: str, offset: int) -> CompressionError:
    """Make the error for bytes after the compressed data that are none of it."""
    return CompressionError(
        f"{shard}: after the end of its {codec} data, at byte {offset:,}, something else follows; expected the end or "
        f"more {codec} data: cut the file there if what follows is of no use",
        shard=shard,
        offset=offset,
        reason="garbage",
    )


def damaged(codec: str, shard: str, offset: int, error: Exception) -> CompressionError:
    """Make the error for data that a decompressor refused; the damage lies before `offset`."""
    return CompressionError(
        f"{shard}: the {codec} data is damaged before byte {offset:,} ({error}); fetch or write the shard again",
        shard=shard,
        offset=offset,
        reason="bad-compression",
    )


def too_large(codec: str, shard: str, offset: int, window_bytes: int | None) -> LimitError:
    """Make the error for a window beyond the limit."""
    needs = f"a window of {window_bytes:,} bytes" if window_bytes is not None else "more memory"
    return LimitError(
        f"{shard}: its {codec} data at byte {offset:,} needs {needs} to be read; the limit is "
        f"{MAX_WINDOW_BYTES:,} bytes: compress it again without --long or with a lower level",
        shard=shard,
        offset=offset,
        limit_bytes=MAX_WINDOW_BYTES,
        size_bytes=window_bytes,
        reason="too-large",
    )


def close_raw(raw: Any) -> None:
    """Close an input, where it can be closed."""
    close = getattr(raw, "close", None)
    if close is not None:
        close()


class _Decoder(Protocol):
    """What the decompressor objects of isal, bz2, lzma and lz4 have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def _gzip_decoder() -> _Decoder:
    from isal.igzip_lib import DECOMP_GZIP, IgzipDecompressor

    return IgzipDecompressor(flag=DECOMP_GZIP)


def _bzip2_decoder() -> _Decoder:
    import bz2

    return bz2.BZ2Decompressor()


def _xz_decoder() -> _Decoder:
    import lzma

    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


def _lz4_decoder() -> _Decoder:
    import lz4.frame

    return lz4.frame.LZ4FrameDecompressor()  # type: ignore[no-any-return]


_DECODERS: dict[str, Callable[[], _Decoder]] = {
    "gz": _gzip_decoder,
    "bz2": _bzip2_decoder,
    "xz": _xz_decoder,
    "lz4": _lz4_decoder,
}


class MemberInput(io.RawIOBase):
    """The contents of a stream of compressed members, by any decompressor object with a bounded output.

    Every offset in an error is exact, and so is the difference between a cut and garbage behind the end.
    """

    def __init__(self, raw: RawInput, shard: str, codec: str) -> None:
        super().__init__()
        self._raw = raw
        self._shard = shard
        self._codec = codec
        self._make_decoder = _DECODERS[codec]
        self._decoder: _Decoder | None = None
        self._ahead = b""
        """Read from `raw`, not yet given to a decoder."""
        self._offset = 0
        """Compressed bytes read from `raw`."""
        self._members = 0
        self._window = memoryview(own_memory(_READ))

    def readable(self) -> bool:
        """Tell io that this can be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill the start of `buffer`, 96 KiB at most; 0 at the end of the last member."""
        limit = min(len(buffer), _PIECE)
        while limit:
            decoder = self._decoder
            if decoder is None:
                if not self._at_member():
                    return 0
                self._decoder = decoder = self._make_decoder()
            data = b""
            if decoder.needs_input:
                data = self._ahead or self._read()
                self._ahead = b""
                if not data:
                    raise truncated(f"its {self._codec} data", self._shard, self._offset)
            try:
                piece = decoder.decompress(data, limit)
            except _codec_errors(self._codec) as error:
                raise self._fault(error) from error
            if decoder.eof:
                self._ahead = decoder.unused_data or b""
                self._decoder = None
            if count := len(piece):
                buffer[:count] = piece
                return count
        return 0

    def _read(self) -> bytes:
        count = self._raw.readinto(self._window) or 0
        self._offset += count
        return bytes(self._window[:count])

    def _at_member(self) -> bool:
        """Whether another member begins here; False at a proper end of the stream."""
        padding = self._skip_padding() if self._members else 0
        signatures = SIGNATURES[self._codec]
        longest = max(map(len, signatures))
        while len(self._ahead) < longest and (more := self._read()):
            self._ahead += more
        where = self._offset - len(self._ahead)
        if self._codec == "xz" and padding % 4:
            raise garbage(self._codec, self._shard, where - padding)
        if not self._ahead:
            return False
        if not self._ahead.startswith(signatures):
            if any(known.startswith(self._ahead) for known in signatures):
                raise truncated(f"its {self._codec} data", self._shard, self._offset)
            raise garbage(self._codec, self._shard, where)
        self._members += 1
        return True

    def _skip_padding(self) -> int:
        """Pass over zeros after a member, where the format allows them; how many."""
        skipped = 0
        while self._codec in ("gz", "xz"):
            rest = self._ahead.lstrip(b"\0")
            skipped += len(self._ahead) - len(rest)
            self._ahead = rest or self._read()
            if rest or not self._ahead:
                break
        return skipped

    def _fault(self, error: Exception) -> Exception:
        if "emory usage limit" in str(error):
            return too_large(self._codec, self._shard, self._offset, None)
        return damaged(self._codec, self._shard, self._offset, error)

    def close(self) -> None:
        """Close it, and the raw input below it."""
        if not self.closed:
            super().close()
            self._decoder = None
            close_raw(self._raw)


class _AsFile(io.RawIOBase):
    """A raw input with the other methods of a file, which isal wants to see and does not call."""

    def __init__(self, raw: RawInput) -> None:
        super().__init__()
        self._raw = raw

    def readinto(self, buffer: Any, /) -> int:
        return self._raw.readinto(buffer) or 0


class QuickGzipInput(io.RawIOBase):
    """The contents of gzip members, decoded by isal straight into the caller's buffer.

    That spares a copy, some 7 % of the decoding, but isal does not tell where a member ended. So as soon as anything is
    wrong a `MemberInput` begins again from the start and goes on from where this stood: it tells what is wrong, and
    where.

    Args:
        raw: can seek.
        shard: goes into errors.
    """

    def __init__(self, raw: Any, shard: str) -> None:
        from isal.isal_zlib import _GzipReader

        super().__init__()
        self._raw = raw
        self._shard = shard
        self._start = raw.tell()
        self._given = 0
        self._reader: Any = _GzipReader(cast(BinaryIO, _AsFile(raw)), _QUICK_READ)

    def readable(self) -> bool:
        """Tell io that this can be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill the start of `buffer`; 0 at the end of the last member."""
        if not isinstance(self._reader, MemberInput):
            try:
                count: int = self._reader.readinto(buffer)
            except _codec_errors("gz"):
                self._reader = self._begin_again()
            else:
                self._given += count
                return count
        return int(self._reader.readinto(buffer))

    def _begin_again(self) -> MemberInput:
        self._raw.seek(self._start)
        careful = MemberInput(self._raw, self._shard, "gz")
        left = self._given
        scratch = memoryview(bytearray(_PIECE))
        while left and (count := careful.readinto(scratch[:left])):
            left -= count
        return careful

    def close(self) -> None:
        """Close it, and the raw input below it."""
        if not self.closed:
            super().close()
            self._reader = None
            close_raw(self._raw)


def _codec_errors(codec: str) -> tuple[type[Exception], ...]:
    """Tell what a codec's library raises for damage (asked only when something was raised, so imports stay lazy)."""
    general = (ValueError, RuntimeError, EOFError, OSError)
    if codec == "gz":
        from isal.igzip_lib import IsalError

        return (*general, cast(type[Exception], IsalError))
    if codec == "xz":
        from lzma import LZMAError

        return (*general, LZMAError)
    return general
