"""Compression: found by content, read whole or refused, bounded in memory, written the same each time."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
import zstandard
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support import tars

from tarmill.errors import CompressionError, FormatError, LimitError, SpecError, StorageError, TruncatedError
from tarmill.formats.compression import codec_for, compress, decompress, sniff

CODECS = ["none", "gz", "bz2", "xz", "zst", "lz4"]
WRITABLE = ["none", "gz", "bz2", "xz", "zst"]
COMPRESSED = CODECS[1:]
SKIPPABLE = struct.pack("<II", 0x184D2A5E, 5) + b"\x28\xb5\x2f\xfd."


class Pipe:
    """A raw input that cannot seek and gives at most `step` bytes at a time."""

    def __init__(self, data: bytes, step: int = 1 << 20) -> None:
        self._stream = io.BytesIO(data)
        self._step = step
        self.closed = False

    def readinto(self, buffer: memoryview) -> int:
        return self._stream.readinto(memoryview(buffer)[: self._step])

    def close(self) -> None:
        self.closed = True


class Sink:
    """A raw output that takes at most `step` bytes at a time."""

    def __init__(self, step: int = 1 << 30) -> None:
        self.data = bytearray()
        self._step = step

    def write(self, data: Any) -> int:
        taken = bytes(data)[: self._step]
        self.data += taken
        return len(taken)


def drain(raw: Any, piece: int = 1 << 20) -> tuple[bytes, FormatError | None]:
    """Read to the end or to an error, as far as it goes."""
    out, buffer = bytearray(), bytearray(piece)
    try:
        source, _ = decompress(raw, "s.tar")
        while count := source.readinto(memoryview(buffer)):
            out += buffer[:count]
    except FormatError as error:
        return bytes(out), error
    return bytes(out), None


def read(data: bytes, piece: int = 1 << 20) -> bytes:
    out, error = drain(io.BytesIO(data), piece)
    if error is not None:
        raise error
    return out


def write(
    data: bytes, codec: str, level: int | None = None, cuts: list[int] | None = None, step: int = 1 << 30
) -> bytes:
    sink = Sink(step)
    out = compress(sink, codec, level)
    edges = [0, *sorted(cuts or []), len(data)]
    for start, end in itertools.pairwise(edges):
        assert out.write(memoryview(data)[start:end]) == end - start
    out.finish()
    return bytes(sink.data)


def pack(data: bytes, codec: str) -> bytes:
    """Compress in one go, with checksums, by the library of each codec."""
    return {
        "none": bytes,
        "gz": lambda body: gzip.compress(body, mtime=0),
        "bz2": bz2.compress,
        "xz": lzma.compress,
        "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
        "lz4": lambda body: lz4.frame.compress(body, content_checksum=True),
    }[codec](data)


TEXT = b"".join(b"%d green bottles, " % (i * i) for i in range(60))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("make", [io.BytesIO, Pipe, lambda data: Pipe(data, 1), lambda data: Pipe(data, 7)])
def test_codec_is_found_by_content(codec: str, make: Callable[[bytes], Any]) -> None:
    source, found = decompress(make(pack(TEXT, codec)), "misnamed.bin")
    buffer = bytearray(len(TEXT) + 10)
    out = b""
    while count := source.readinto(memoryview(buffer)):
        out += buffer[:count]
    assert (found, out) == (codec, TEXT)
    assert source.readinto(memoryview(buffer)) == 0


def test_plain_file_comes_back_itself_where_it_stood(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 2000)
    with open(tmp_path / "a", "rb", buffering=0) as raw:
        source, codec = decompress(raw, "a")
        assert source is raw
        assert (codec, raw.tell()) == ("none", 0)


@pytest.mark.parametrize("codec", CODECS)
def test_closing_closes_the_raw_input(codec: str) -> None:
    pipe = Pipe(pack(TEXT, codec))
    decompress(pipe, "s")[0].close()
    assert pipe.closed


@pytest.mark.parametrize("name", [b"BZh1.jpg", b"BZh9", b"PK.txt", b"P*M.txt", b"(.txt", b"\x1f\x8b.txt"])
def test_tar_whose_first_name_looks_like_a_signature_is_a_tar(name: bytes) -> None:
    tar = name.ljust(512, b"\0") + bytes(1024)
    source, codec = decompress(io.BytesIO(tar), "s")
    assert codec == "none"
    assert source.readinto(memoryview(bytearray(4096))) == len(tar)


def test_empty_input_is_plain_and_empty() -> None:
    assert decompress(io.BytesIO(b""), "s")[1] == "none"
    assert read(b"") == b""


@pytest.mark.parametrize("codec", ["zst", "lz4"])
def test_skippable_frames_are_skipped_wherever_they_stand(codec: str) -> None:
    frame = pack(TEXT, codec)
    assert sniff(SKIPPABLE + frame) == codec
    assert read(SKIPPABLE + frame + SKIPPABLE + SKIPPABLE + frame + SKIPPABLE) == TEXT * 2


bodies = st.binary(max_size=600) | st.builds(
    lambda seed, size: random.Random(seed).randbytes(size), st.integers(), st.integers(0, 700_000)
)


@settings(max_examples=40)
@given(st.sampled_from(WRITABLE), bodies, st.data())
def test_round_trip_over_any_cuts(codec: str, body: bytes, data: st.DataObject) -> None:
    assume(codec != "none" or sniff(body[:512]) == "none")  # a plain tar begins with no signature
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=5))
    packed = write(body, codec, cuts=cuts, step=data.draw(st.sampled_from([1000, 1 << 30])))
    assert packed == write(body, codec)
    piece = data.draw(st.sampled_from([1, 511, 70_000, 1 << 20] if len(body) < 1000 else [70_000, 1 << 20]))
    assert read(packed, piece) == body


@pytest.mark.parametrize("codec", COMPRESSED)
@pytest.mark.parametrize("step", [1, 3, 64, 1 << 20])
def test_members_one_after_the_other_are_read_whole(codec: str, step: int) -> None:
    members = pack(TEXT, codec) + pack(b"", codec) + pack(b"second", codec) + pack(b"x", codec) * 30
    assert drain(Pipe(members, step)) == (TEXT + b"second" + b"x" * 30, None)


@pytest.mark.parametrize("codec", COMPRESSED)
def test_cut_at_every_byte_is_an_error_or_complete(codec: str) -> None:
    first, second = pack(TEXT, codec), pack(b"second" * 20, codec)
    complete = {0: b"", len(first): TEXT, len(first + second): TEXT + b"second" * 20}
    for end in range(len(first + second) + 1):
        out, error = drain(Pipe((first + second)[:end], 50))
        assert (TEXT + b"second" * 20).startswith(out)
        if end in complete:
            assert (out, error) == (complete[end], None)
        else:
            assert isinstance(error, TruncatedError)
            assert (error.shard, error.offset, error.reason) == ("s.tar", end, "truncated")


@pytest.mark.parametrize("codec", COMPRESSED)
def test_flipped_bit_is_an_error_or_changes_nothing(codec: str) -> None:
    packed = pack(TEXT, codec)
    unnoticed = 0
    for bit in range(len(packed) * 8):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        if sniff(bytes(damaged[:512])) == "none":
            continue  # a damaged signature: the tar reader refuses what follows
        out, error = drain(io.BytesIO(bytes(damaged)))
        if error is None:
            assert out == TEXT
            unnoticed += 1
        else:
            assert isinstance(error, CompressionError | TruncatedError | LimitError)
            assert error.shard == "s.tar"
            assert 0 < error.offset <= len(packed)
    assert unnoticed < 60  # times, names and flags that no checksum covers


def test_damage_deep_in_a_stream_costs_one_piece_at_most() -> None:
    body = random.Random(1).randbytes(1_000_000)
    for codec, piece in (("gz", 96 << 10), ("zst", 256 << 10)):
        packed = bytearray(pack(body, codec))
        packed[900_000] ^= 1
        if codec == "gz":
            packed[900_000:] = packed[900_000:-8] + bytes(8)
        out, error = drain(io.BytesIO(bytes(packed)))
        assert isinstance(error, CompressionError)
        assert len(out) >= 900_000 - 2 * piece


@pytest.mark.parametrize("codec", COMPRESSED)
@pytest.mark.parametrize("tail", [b"x", b"xx", b"garbage that is longer than any signature is"])
def test_garbage_after_the_end_is_an_error_that_tells_where(codec: str, tail: bytes) -> None:
    packed = pack(TEXT, codec)
    out, error = drain(Pipe(packed + tail, 64))
    assert out == TEXT
    assert isinstance(error, CompressionError)
    assert (error.reason, error.offset) == ("garbage", len(packed))
    assert "something else follows" in error.message


def test_zeros_after_gzip_are_padding() -> None:
    packed = pack(TEXT, "gz")
    for zeros in (1, 100, 200_000):
        assert read(packed + bytes(zeros)) == TEXT
        assert read(packed + bytes(zeros) + packed) == TEXT * 2
        error = drain(io.BytesIO(packed + bytes(zeros) + b"?"))[1]
        assert isinstance(error, CompressionError)
        assert (error.reason, error.offset) == ("garbage", len(packed) + zeros)


def test_zeros_after_xz_are_padding_in_fours() -> None:
    packed = pack(TEXT, "xz")
    assert read(packed + bytes(8) + packed + bytes(4)) == TEXT * 2
    for zeros in (1, 2, 7):
        for rest in (b"", packed):
            assert isinstance(drain(io.BytesIO(packed + bytes(zeros) + rest))[1], CompressionError)


@pytest.mark.parametrize("codec", ["bz2", "zst", "lz4"])
def test_zeros_after_other_codecs_are_garbage(codec: str) -> None:
    assert isinstance(drain(io.BytesIO(pack(TEXT, codec) + bytes(8)))[1], CompressionError)


def test_gzip_header_with_all_its_parts_is_read_and_its_checksum_verified() -> None:
    raw = zlib.compressobj(6, zlib.DEFLATED, -15)
    head = b"\x1f\x8b\x08\x1e" + bytes(4) + b"\0\xff" + struct.pack("<H", 4) + b"abcd" + b"name\0comment\0"
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    packed = head + raw.compress(TEXT) + raw.flush() + struct.pack("<II", zlib.crc32(TEXT), len(TEXT))
    assert read(packed) == TEXT
    assert isinstance(drain(io.BytesIO(packed.replace(b"comment", b"cOmment")))[1], CompressionError)


zstd_options = st.fixed_dictionaries(
    {"level": st.integers(-5, 5), "write_checksum": st.booleans(), "write_content_size": st.booleans()}
)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.binary(max_size=300) | st.just(bytes(700_000)), zstd_options), min_size=1, max_size=4),
    st.data(),
)
@example([(b"", {"level": 1, "write_checksum": False, "write_content_size": True})], None)
def test_zstd_frames_of_every_layout_are_followed_to_their_end(frames: list[tuple[bytes, Any]], data: Any) -> None:
    packed = b"".join(zstandard.ZstdCompressor(**options).compress(body) for body, options in frames)
    assert drain(Pipe(packed, 100_000)) == (b"".join(body for body, _ in frames), None)
    end = data.draw(st.integers(0, len(packed) - 1)) if data is not None else len(packed) - 1
    error = drain(Pipe(packed[:end], 13))[1]
    sizes = [len(zstandard.ZstdCompressor(**options).compress(body)) for body, options in frames]
    assert (error is None) == (end in {0, *itertools.accumulate(sizes)})
    assert isinstance(error, TruncatedError | None)


@pytest.mark.parametrize("codec", COMPRESSED)
def test_bomb_uses_bounded_memory(codec: str) -> None:
    bomb = pack(bytes(60_000_000), codec)
    buffer = bytearray(1 << 20)
    source, _ = decompress(io.BytesIO(bomb), "s")
    source.readinto(memoryview(buffer))
    tracemalloc.start()
    try:
        total = 0
        for _ in range(100):
            total += source.readinto(memoryview(buffer)) or 0
        assert total > 100 * 16_000
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_window_beyond_the_limit_is_refused_before_it_is_reserved() -> None:
    huge = b"\x28\xb5\x2f\xfd" + bytes([0, (31 - 10) << 3]) + b"\x01\x00\x00"
    out, error = drain(io.BytesIO(pack(TEXT, "zst") + huge))
    assert isinstance(error, LimitError)
    assert (out, error.limit_bytes, error.size_bytes) == (TEXT, 1 << 27, 1 << 31)
    assert "without --long" in error.message


def test_xz_dictionary_beyond_the_limit_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]
    packed = bytearray(lzma.compress(TEXT, filters=filters))
    at = packed.index(b"\x21\x01") + 2  # id and length of the LZMA2 filter's properties; then the dictionary's size
    packed[at] = 40
    packed[20:24] = struct.pack("<I", zlib.crc32(packed[12:20]))
    error = drain(io.BytesIO(bytes(packed)))[1]
    assert isinstance(error, LimitError)


def test_errors_of_the_raw_input_pass_through() -> None:
    class Broken(Pipe):
        def readinto(self, buffer: memoryview) -> int:
            count = super().readinto(buffer)
            if not count:
                raise StorageError("connection lost")
            return count

    body = random.Random(1).randbytes(3000)
    for codec in COMPRESSED:
        with pytest.raises(StorageError, match="connection lost"):
            drain(Broken(pack(body, codec)[:-3], 600))


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.tar", "none"),
        ("-", "none"),
        ("a.tar.gz", "gz"),
        ("d.x/A.TGZ", "gz"),
        ("a.tar.zst", "zst"),
        ("a.tzst", "zst"),
        ("a.tar.xz", "xz"),
        ("a.tbz2", "bz2"),
        ("s3://b/out-@0100.tar.bz2", "bz2"),
        ("http://h/a.tar.gz?sig=a.tar", "gz"),
    ],
)
def test_output_name_tells_the_codec(name: str, codec: str) -> None:
    assert codec_for(name) == codec


@pytest.mark.parametrize(
    "name", ["a.tar.br", "a.tar.Z", "a.zip", "a", "tar", "gz", "d.tar/a", "a.tar.lz4", "a.tlz4", "d.tar/", ""]
)
def test_unknown_extension_is_refused_never_a_plain_tar(name: str) -> None:
    with pytest.raises(SpecError, match=r"expected \.tar, \.tar\.gz"):
        codec_for(name)


LEVELS = [("gz", level) for level in range(10)] + [
    ("zst", -7),
    ("zst", 1),
    ("zst", 19),
    ("xz", 0),
    ("bz2", 1),
    ("bz2", 9),
]


@pytest.mark.parametrize(("codec", "level"), LEVELS)
def test_every_level_writes_what_the_codecs_own_library_reads(codec: str, level: int) -> None:
    body = TEXT * 400
    packed = write(body, codec, level, cuts=[5, 300_000, 300_001])
    judges: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.decompress, "xz": lzma.decompress, "bz2": bz2.decompress}
    judge = judges.get(codec, lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data))
    assert judge(packed) == body
    assert packed == write(body, codec, level)
    assert len(packed) < len(body) // 2


@pytest.mark.parametrize("level", [0, 2, 6, 9])
def test_gzip_output_is_one_member_without_time_or_name(level: int) -> None:
    packed = write(TEXT, "gz", level)
    assert packed[3:8] == bytes(5)
    member = zlib.decompressobj(31)
    assert member.decompress(packed) == TEXT
    assert member.unused_data == b""


def _crc32c(number: int) -> int:
    """The SSE 4.2 instruction's checksum of 4 bytes, which isal uses as their hash."""
    for _ in range(32):
        number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
    return number


@pytest.mark.parametrize("level", [1, 2])
def test_gzip_output_is_the_same_wherever_in_memory_it_is_made(level: int) -> None:
    # isal 2.31 hashes its state's address instead of a stream's third byte: here that falls on the hash of the first.
    slots = {1: 8192, 2: 32768}[level]
    outputs = io.BytesIO(), io.BytesIO()
    packers = [compress(outputs[0], "gz", level)]
    distance = [bytes(1 << 20)]
    packers.append(compress(outputs[1], "gz", level))
    addresses = [id(packer._encoder.isal) >> 16 for packer in packers]  # type: ignore[attr-defined]
    assert addresses[0] != addresses[1], distance
    wanted = _crc32c(addresses[0] & 0xFFFFFFFF) % slots
    start = next(word for word in itertools.count(1 << 20) if _crc32c(word) % slots == wanted).to_bytes(4, "little")
    body = start + bytes(range(100, 140)) + start + bytes(range(100, 140)) + bytes(range(200, 250)) * 9
    for packer in packers:
        packer.write(body)
        packer.finish()
    assert gzip.decompress(outputs[0].getvalue()) == body
    assert outputs[0].getvalue() == outputs[1].getvalue()


def test_zstd_output_is_one_frame_with_a_checksum() -> None:
    packed = write(TEXT, "zst")
    assert zstandard.get_frame_parameters(packed).has_checksum


@pytest.mark.parametrize("codec", ["gz", "bz2", "xz", "zst"])
def test_unfinished_output_is_seen_as_cut(codec: str) -> None:
    sink = Sink()
    compress(sink, codec).write(random.Random(1).randbytes(3_000_000))
    assert isinstance(drain(io.BytesIO(bytes(sink.data)))[1], TruncatedError)


def test_finish_twice_writes_once_and_writing_after_it_is_an_error() -> None:
    for codec in WRITABLE:
        sink = Sink()
        out = compress(sink, codec)
        out.write(TEXT)
        out.finish()
        size = len(sink.data)
        out.finish()
        assert len(sink.data) == size
        with pytest.raises(ValueError, match="finished"):
            out.write(b"x")


def test_empty_contents_make_a_valid_stream() -> None:
    for codec in WRITABLE:
        assert read(write(b"", codec)) == b""
        assert (write(b"", codec) == b"") == (codec == "none")


def test_output_that_takes_nothing_is_an_error() -> None:
    with pytest.raises(StorageError, match="takes no more bytes"):
        compress(Sink(0), "none").write(b"abc")


@pytest.mark.parametrize(
    ("codec", "level", "says"),
    [
        ("gz", 10, "level is 10; expected 0 to 9 for gz"),
        ("bz2", 0, "expected 1 to 9"),
        ("zst", 23, "expected -7 to 22"),
        ("none", 3, "plain tar is not compressed"),
        ("lz4", None, "cannot be written; expected none, gz, zst, xz, bz2"),
    ],
)
def test_codec_or_level_that_cannot_be_written_is_refused(codec: str, level: int | None, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        compress(Sink(), codec, level)


# gzip straight into the caller's buffer


def _outcome(raw: Any, size: int) -> tuple[bytes, str]:
    stream, _ = decompress(raw, "s.tar.gz")
    got, buffer = b"", memoryview(bytearray(size))
    try:
        while count := stream.readinto(buffer):
            got += buffer[:count]
    except CompressionError as error:
        return got, error.message
    except TruncatedError as error:
        return got, error.message
    return got, ""


@given(
    bodies=st.lists(st.binary(max_size=3000), min_size=1, max_size=3),
    change=st.sampled_from(["none", "cut", "flip", "garbage", "zeros", "half a signature"]),
    place=st.integers(0, 1 << 20),
    size=st.sampled_from([7, 512, 1 << 16]),
)
def test_files_of_gzip_give_what_streams_of_gzip_give(bodies: list[bytes], change: str, place: int, size: int) -> None:
    data = b"".join(gzip.compress(body, mtime=0) for body in bodies)
    at = place % len(data)
    if change == "cut":
        data = data[: max(at, 20)]
    elif change == "flip":
        data = data[:at] + bytes([data[at] ^ 1 << place % 8]) + data[at + 1 :]
    data += {"garbage": b"xyz", "zeros": bytes(9), "half a signature": b"\x1f\x8b"}.get(change, b"")
    assume(data.startswith(b"\x1f\x8b\x08"))
    quick, careful = _outcome(tars.AtOffsets(data), size), _outcome(Pipe(data), size)
    assert quick[1] == careful[1]
    # of a damaged member more or less may come before its fault is found
    assert quick[0] == careful[0] or (quick[1] and (careful[0].startswith(quick[0]) or quick[0].startswith(careful[0])))
