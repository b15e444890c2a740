"""Compressed shards: what a stream is compressed with is found by its content; what is written, by its name.

Reading: gzip, bzip2, xz, zstd and lz4, each with any number of members, streams or frames one after the other, as
parallel compressors write them. After a gzip member zero bytes may follow (gzip(1) accepts them too), after an xz
stream zeros in fours (its format's padding). Any other byte there is an error, never an end. A stream that stops before
its end mark is always a `TruncatedError`; a cut exactly between two members cannot be told from a whole stream here,
but it can by the tar's missing end mark. What was decoded up to the piece with a fault is handed out before the error.

Damage is found by the checksums of the formats: gzip, bzip2 and xz always have one; zstd and lz4 frames may lack it
(ours and those of the zstd and lz4 commands have it): then a flipped bit may go unnoticed, or show only in the tar
inside. A signature that is damaged names no codec: such a stream counts as a plain tar, which a tar reader refuses.

Memory is bounded whatever a stream claims: contents go into the caller's buffer, in pieces of 96 KiB on the way;
windows are limited to 128 MiB, as zstd(1) does (`xz -9` needs half of it).

Writing:

| codec | level (default) | |
|---|---|---|
| none | - | |
| gz | 0-3: isal's, fast; 4-9: zlib's, 5-15 times slower and about 10 % smaller (2) | one member, no time or name |
| zst | -7 to 22 (3) | one frame with a checksum, no size |
| xz | 0-9 (6) | one stream, CRC-64 |
| bz2 | 1-9 (9) | one stream |

The same contents and level give the same bytes, however they are cut into writes, as long as the libraries are
the same. isal's level 0 is its fastest, not "stored". lz4 is read, not written.
"""

from __future__ import annotations

import io
from typing import Any, Protocol

from tarmill.errors import SpecError
from tarmill.formats.codec_read import SIGNATURES, SKIPPABLE, MemberInput, QuickGzipInput, close_raw, truncated
from tarmill.formats.codec_write import CompressedOutput, PlainOutput, RawOutput, check_level
from tarmill.formats.codec_zstd import ZstdInput
from tarmill.formats.shard_grammar import file_name
from tarmill.formats.tar_window import RawInput

_SNIFF = 512
_EXTENSIONS = {
    "tar": "none",
    **dict.fromkeys(("gz", "tgz", "taz"), "gz"),
    **dict.fromkeys(("bz2", "tbz", "tbz2", "tb2"), "bz2"),
    **dict.fromkeys(("xz", "txz"), "xz"),
    **dict.fromkeys(("zst", "tzst", "zstd"), "zst"),
    **dict.fromkeys(("lz4", "tlz4"), "lz4"),
}


class ByteInput(Protocol):
    """What `decompress` gives."""

    def readinto(self, buffer: Any, /) -> int | None:
        """Fill the start of `buffer`; the number of bytes, 0 at the end."""

    def close(self) -> None:
        """Close it, and the raw input below it."""


class ByteOutput(Protocol):
    """What `compress` gives."""

    def write(self, data: Any, /) -> int:
        """Take all of `data`; the number of its bytes."""

    def finish(self) -> None:
        """Write the end mark; the raw output below stays open."""


def codec_for(name: str) -> str:
    """Tell what an output is compressed with, by its name: "none", "gz", "bz2", "xz" or "zst"; "-" is a plain tar.

    Raises:
        SpecError: for an extension that names no compression that can be written; never a plain tar in silence.
    """
    if name == "-":
        return "none"
    codec = _EXTENSIONS.get(file_name(name).rpartition(".")[2].lower()) if "." in file_name(name) else None
    if codec is None or codec == "lz4":
        what = "lz4, which is only read" if codec else "no known format"
        raise SpecError(
            f"the extension of output {file_name(name)!r} names {what}; "
            "expected .tar, .tar.gz (.tgz), .tar.zst, .tar.xz or .tar.bz2",
            field="output",
            value=name,
        )
    return codec


def sniff(head: bytes) -> str | None:
    """Tell the codec from the first bytes of a stream; None when they are the beginning of a signature and no more.

    Skippable frames, which zstd and lz4 share, are passed over as far as `head` goes; frames behind it count as zstd.
    """
    rest, after_skippable = head, "none"
    while rest[:4] in SKIPPABLE:
        rest, after_skippable = rest[8 + int.from_bytes(rest[4:8], "little") :], "zst"
    for codec, signatures in SIGNATURES.items():
        if rest.startswith(signatures):
            return codec
    if rest and len(head) < _SNIFF and any(known.startswith(rest) for group in SIGNATURES.values() for known in group):
        return None
    return after_skippable


def decompress(raw: RawInput, shard: str) -> tuple[ByteInput, str]:
    """Find out how a stream is compressed, and give its contents.

    Args:
        raw: the stream, at the beginning of the shard.
        shard: goes into errors.

    Returns:
        The contents (their `close` closes `raw` too) and the codec. For "none" this is `raw` itself where it can seek.

    Raises:
        TruncatedError: the stream ends within its signature. While reading: within a member.
        CompressionError: while reading, for damage; facts shard, offset (compressed bytes before the fault), reason.
        LimitError: while reading, when a window larger than 128 MiB is needed.
    """
    seekable = getattr(raw, "seekable", None)
    start = raw.tell() if seekable is not None and seekable() else None  # type: ignore[attr-defined]
    head = _read_head(raw)
    codec = sniff(head)
    if codec is None:
        raise truncated("the compressed stream", shard, len(head))
    source: Any = raw
    if start is not None:
        raw.seek(start)  # type: ignore[attr-defined]
    else:
        source = _Prefixed(head, raw)
    if codec == "none":
        return source, codec
    if codec == "zst":
        return ZstdInput(source, shard), codec
    if codec == "gz" and getattr(raw, "positional", None) is not None:
        return QuickGzipInput(raw, shard), codec  # a file of this machine: beginning again costs little
    return MemberInput(source, shard, codec), codec


def compress(raw_output: RawOutput, codec: str, level: int | None = None) -> ByteOutput:
    """Compress what is written, into `raw_output`; `finish()` makes it valid, and does not close `raw_output`.

    Args:
        raw_output: takes the compressed bytes.
        codec: as `codec_for` gives it.
        level: see the table above; None for the codec's default.

    Raises:
        SpecError: for a codec or level that cannot be written.
    """
    check_level(codec, level)
    return PlainOutput(raw_output) if codec == "none" else CompressedOutput(raw_output, codec, level)


def _read_head(raw: RawInput) -> bytes:
    head = bytearray(_SNIFF)
    have = 0
    while have < _SNIFF and (count := raw.readinto(memoryview(head)[have:])):
        have += count
    return bytes(head[:have])


class _Prefixed(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, raw: RawInput) -> None:
        super().__init__()
        self._head = head
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        if not self._head:
            return self._raw.readinto(buffer)
        count = min(len(buffer), len(self._head))
        buffer[:count] = self._head[:count]
        self._head = self._head[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            super().close()
            close_raw(self._raw)
