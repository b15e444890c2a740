"""The scan of plain shards: whenever it takes a shard, it finds just what the complete reader finds there."""

from __future__ import annotations

import io
import mmap
import os
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from formats.test_tar_properties import MODEST, bodies, chunk_sizes, few_fields, few_keys, mixtures, shards
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tars
from support.tar_reading import URL
from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from tarmill.errors import FormatError
from tarmill.formats import tar_scan
from tarmill.formats.digest import MASK_128, sample_digest
from tarmill.formats.index import ShardIndex, index_shard
from tarmill.formats.samples import ReadOptions, Record, Tally
from tarmill.formats.tar_read import iter_samples
from tarmill.formats.tar_rows import NotPlain
from tarmill.formats.tar_scan import Spans, scan_plain
from tarmill.formats.tar_span import fields_of_record

modest = settings(max_examples=MODEST)
MTIME = tars.pax(tars.pax_record("mtime", "1500000000.25"))
WINDOW = 8 << 10


@pytest.fixture(autouse=True, scope="module", params=[WINDOW, 4 << 20], ids=["small window", "window"])
def _window(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make the window so small that small data meets its borders, and samples that are larger."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_scan, "_WINDOW_BYTES", request.param)
        yield


def raw_of(data: bytes, chunks: Sequence[int] | None = None) -> io.RawIOBase | io.BytesIO:
    return io.BytesIO(data) if chunks is None else tars.Trickle(data, chunks)


def scan(data: bytes, chunks: Sequence[int] | None = None, **options: object) -> Spans | None:
    """Scan a shard as a shuffle does, as a stream and mapped; None where the complete reader has to look at it."""
    found = scan_once(data, chunks, **options)
    if chunks is None and data:
        with mmap.mmap(-1, len(data)) as mapping:
            mapping[:] = data
            with memoryview(mapping) as view:
                same_spans(found, scan_once(data, None, mapped=view, **options))
    return found


def scan_once(data: bytes, chunks: Sequence[int] | None, **options: object) -> Spans | None:
    try:
        found = scan_plain(raw_of(data, chunks), URL, **options)  # type: ignore[arg-type]
    except NotPlain:
        return None
    return None if found.has_equal_keys() else found


def same_spans(one: Spans | None, other: Spans | None) -> None:
    assert (one is None) == (other is None)
    if one is not None:
        assert [getattr(one, name) for name in Spans.__slots__] == [getattr(other, name) for name in Spans.__slots__]


def careful(data: bytes) -> tuple[ShardIndex, list[Record]] | None:
    """Look at a shard with the complete reader; None where that refuses it."""
    try:
        return index_shard(io.BytesIO(data), URL), list(iter_samples(io.BytesIO(data), URL))
    except FormatError:
        return None


def agrees(data: bytes, chunks: Sequence[int] | None = None) -> bool:
    """Hold a scan against the complete reader; tell whether the scan took the shard."""
    found = scan(data, chunks)
    if found is None:
        return False
    expected = careful(data)
    assert expected is not None, "the complete reader refuses this shard"
    index, records = expected
    assert not any(index.bounds)
    assert found.starts == index.starts
    assert found.lengths == index.lengths
    assert (found.samples, found.members, found.left_out) == (len(index), index.members, 0)
    stems = [record["__key__"].encode("utf-8", "surrogateescape") + b"." for record in records]
    assert list(found.stems) == [xxh3_64_intdigest(stem) for stem in stems]
    assert found.digest == sum(sample_digest(r["__key__"], fields_of_record(r)) for r in records) & MASK_128
    ranges = [data[at : at + length] for at, length in zip(found.starts, found.lengths, strict=True)]
    assert found.raw_digest == sum(map(xxh3_128_intdigest, ranges)) & MASK_128
    return True


def whole_key(record: Record) -> bytes:
    """Make a sort key of all that a record holds."""
    return repr([(name, value) for name, value in record.items()]).encode()


# What a scan takes


TAKEN: dict[str, bytes] = {
    "no samples": tars.END,
    "one zero block": bytes(512),
    "a long end mark": tars.ustar([("a.x", b"1")], bytes(40_000)),
    "an end mark with an odd end": tars.ustar([("a.x", b"1")], bytes(1024 + 100)),
    "ustar": tars.ustar([("a.x", b"1"), ("a.y", b""), ("b.x", b"3" * 600)]),
    "gnu": b"".join(tars.member(n, b"1", magic=tars.GNU_MAGIC) for n in ("a.x", "a.y", "b.x")) + tars.END,
    "old flag": tars.member("a.x", b"1", flag=b"\0") + tars.member("b.x", b"1") + tars.END,
    "concatenated": tars.ustar([("a.x", b"1")]) + tars.ustar([("b.x", b"2")]) + tars.ustar([("c.x", b"2")], bytes(512)),
    "folders": tars.ustar([("d/a.x", b"1"), ("d/a.y", b"2"), ("d.e/a.x", b"3"), ("d.e/f/b.x", b"4")]),
    "dot folder": tars.ustar([("./a.x", b"1"), ("./a.y", b"2"), ("./b.x", b"3"), ("../b.x", b"3")]),
    "many dots": tars.ustar([("a..x", b"1"), ("a.", b"2"), ("a.x.y.z", b"3"), ("b.5 x.mp3", b"4")]),
    "100 bytes": tars.ustar([("a" * 98 + ".x", b""), ("a" * 97 + ".xy", b""), ("b" * 9 + "." + 90 * "c", b"")]),
    "100 bytes up to the dot": tars.ustar([("a" * 99 + ".", b"1"), ("b" * 99 + ".", b"")]),
    "rubbish behind the NUL": tars.ustar([(b"a.x\0junk.", b"1"), (b"a.y\0more", b"2"), (b"b.x\0", b"3")]),
    "no utf-8": tars.ustar([(b"\xff\xfe.x", b"1"), (b"\xff\xfe.\xe0", b"2"), ("ü.ä", b"3")]),
    "widths": tars.ustar([(f"{number}.{field}", b"1") for number in range(120) for field in ("x", "long.field")]),
    "key": tars.ustar([("a.key", b"1"), ("b.key", b"2")]),
    "underscores": tars.ustar([("_a.x", b"1"), ("a__.x", b"2"), ("d/__a__.x", b"2")]),
    "pax mtime": MTIME + tars.member("a.x", b"1") + MTIME + tars.member("a.y", b"2") + tars.member("b.x") + tars.END,
    "webdataset": tars.by_webdataset([{"__key__": f"{n:04}", "x": b"1" * n, "y": b"2"} for n in range(60)]),
    "tar inside": tars.ustar([("a.tar", tars.ustar([("in.x", b"1"), ("in.y", b"1" * 5000)])), ("b.x", b"")]),
    "headers inside": tars.ustar([("a.bin", tars.header("z.x", 5) * 3), ("a.x", b""), ("b.x", tars.header("z.x", 9))]),
    "a size of 8 digits": tars.ustar([("a.x", bytes(2**21 - 1)), ("a.y", bytes(2**21)), ("b.x", bytes(2**21 + 513))]),
    "marks in other places": tars.ustar([("a-bc.x", b"1"), ("ab-c.x", b"2"), ("a,bc.x", b"3"), ("abbc.x", b"4")]),
    "zeros inside": tars.ustar([("a.bin", bytes(1024)), ("b.bin", bytes(5000)), ("b.x", bytes(512))]),
    "magic inside": tars.ustar([("a.bin", (bytes(257) + b"ustar").ljust(512, b"1") * 3), ("b.x", b"1")]),
}  # fmt: skip


@pytest.mark.parametrize("data", TAKEN.values(), ids=TAKEN.keys())
def test_a_plain_shard_is_taken_and_all_agrees_with_the_reader(data):
    assert agrees(data)
    assert agrees(data, [1000])


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_what_tarfile_writes_of_short_names_is_taken(format):
    pairs = [(f"d/{n:03}.{field}", b"%d" % n * n) for n in range(300) for field in ("cls", "txt")]
    assert agrees(tars.by_tarfile(pairs, format, mtime=1_500_000_000))


@pytest.mark.parametrize("before", range(0, 3 * WINDOW, 512))
def test_members_at_every_border_of_the_window(before):
    data = tars.ustar([("a.x", bytes(before)), ("b.x", b"1"), ("b.y", bytes(600)), ("c.x", b""), ("d.x", b"2")])
    assert agrees(data)
    several = tars.ustar([(f"{n:02}.{field}", bytes(before // 7)) for n in range(20) for field in ("x", "y")])
    assert agrees(several)


@pytest.mark.parametrize("size", [WINDOW // 2, WINDOW - 512, WINDOW, WINDOW + 512, 5 * WINDOW + 5])
@pytest.mark.parametrize("pax", [b"", MTIME], ids=["ustar", "pax mtime"])
@pytest.mark.parametrize("end", [512, 1024])
def test_samples_larger_than_the_window_are_taken(size, pax, end):
    body = random.Random(size).randbytes(size)
    pairs = [("a.x", b"1"), ("b.x", body), ("b.y", b"2"), ("b.z", body), ("c.x", body), ("d.x", b"3"), ("e.x", body)]
    data = b"".join(pax + tars.member(*pair) for pair in pairs) + bytes(end)
    assert agrees(data)
    assert agrees(data, [700])


@pytest.mark.parametrize("members", [1, 20, 50, 51])
def test_samples_of_up_to_50_fields_are_taken(members):
    data = tars.ustar([(f"{key}.f{number}", b"1") for key in "abc" for number in range(members)])
    assert agrees(data) == (members <= 50)


# What it leaves to the complete reader


LEFT: dict[str, bytes] = {
    "nothing": b"",
    "less than a block": bytes(511),
    "no end mark": tars.ustar([("a.x", b"1")], b""),
    "garbage behind": tars.ustar([("a.x", b"1")]) + b"garbage",
    "garbage block behind": tars.ustar([("a.x", b"1")]) + b"garbage".ljust(512, b"x"),
    "garbage between": tars.member("a.x", b"1") + b"g".ljust(512, b"x") + tars.ustar([("b.x", b"1")]),
    "twice a field": tars.ustar([("a.x", b"1"), ("a.y", b""), ("a.x", b"1"), ("b.x", b"")]),
    "members apart": tars.ustar([("a.x", b"1"), ("b.x", b"1"), ("a.y", b"1")]),
    "apart by an end mark": tars.ustar([("a.x", b"1")]) + tars.ustar([("a.y", b"1")]),
    "no field": tars.ustar([("README", b""), ("a.x", b"")]),
    "hidden": tars.ustar([("a.x", b""), (".hidden.x", b"")]),
    "hidden in a folder": tars.ustar([("d/a.x", b""), ("d/.hidden.x", b"")]),
    "slash at the end": tars.ustar([("a.x", b""), ("a.y/", b"")]),
    "metadata": tars.ustar([("__x__/a.x", b""), ("a.x", b"")]),
    "reserved field": tars.ustar([("a.__key__", b"")]),
    "folder": tars.header("d/", flag=b"5") + tars.ustar([("d/a.x", b"")]),
    "folder of v7": tars.header("d.x/", flag=b"\0") + tars.ustar([("d.x/a.x", b"")]),
    "symlink": tars.header("a.x", flag=b"2", link=b"b.x") + tars.ustar([("b.x", b"")]),
    "hard link": tars.ustar([("b.x", b"")], b"") + tars.header("a.x", flag=b"1", link=b"b.x") + tars.END,
    "contiguous": tars.member("a.x", b"1", flag=b"7") + tars.END,
    "long name": tars.gnu_long("n" * 120 + ".x") + tars.member("n" * 100, b"1", magic=tars.GNU_MAGIC) + tars.END,
    "pax path": tars.pax(tars.pax_record("path", "b.x")) + tars.member("a.x", b"1") + tars.END,
    "pax size": tars.pax(tars.pax_record("mtime", "1"), tars.pax_record("size", 600)) + tars.member("a.x") + tars.END,
    "pax for all": tars.pax(tars.pax_record("mtime", "1"), flag=b"g") + tars.member("a.x") + tars.END,
    "pax twice": MTIME + MTIME + tars.member("a.x", b"1") + tars.END,
    "pax before the end": tars.member("a.x", b"1") + MTIME + tars.END,
    "pax at the end": tars.member("a.x", b"1") + MTIME,
    "base-256": tars.header("a.x", size_field=tars.base256(5, 12)) + tars.padded(b"12345") + tars.END,
    "size of 12 digits": tars.header("a.x", size_field=b"000000000005") + tars.padded(b"12345") + tars.END,
    "v7": tars.member("a.x", b"1", magic=tars.V7_MAGIC) + tars.END,
    "prefix": tars.member("a.x", b"1", prefix=b"folder") + tars.END,
    "sparse": tars.old_gnu_sparse("a.x", [(512, 1)], b"1", 1024) + tars.END,
    "NUL in the name": tars.ustar([(b"a\0b.x", b"1")]),
}  # fmt: skip


@pytest.mark.parametrize("data", LEFT.values(), ids=LEFT.keys())
@pytest.mark.parametrize("before", [b"", tars.member("0.x", bytes(WINDOW - 1024)) + tars.member("1.x")])
def test_what_is_not_plain_is_left_to_the_complete_reader(data, before):
    assert scan(before + data) is None
    assert scan(before + data, [600]) is None


SMALL = (
    tars.member("a.x", b"1" * 600)
    + tars.member("a.y", b"")
    + MTIME
    + tars.member("b.x", tars.header("in.x", 0))
    + tars.ustar([("c.x", b"2"), ("c.y", b"3")])
)


def test_a_shard_cut_anywhere_is_never_taken_for_whole():
    whole = len(SMALL) - len(tars.END) + 512  # one zero block is an end mark
    assert [cut for cut in range(len(SMALL)) if agrees(SMALL[:cut])] == list(range(whole, len(SMALL)))


def test_two_shards_in_one_are_read_to_the_last_byte():
    data = tars.ustar([("0.x", b"")]) + SMALL
    first, whole = 512 + 512, len(data) - 512  # one zero block is an end mark, and a part of another may follow
    cuts = [block + more for block in range(0, len(data), 512) for more in (0, 1, 100, 511)]
    taken = [cut for cut in cuts if agrees(data[:cut])]
    assert taken == [cut for cut in cuts if first <= cut <= first + 512 or cut >= whole]


@pytest.mark.long
@pytest.mark.parametrize("byte", range(512))
def test_no_flipped_bit_of_a_header_is_overlooked(byte):
    for at in (0, 1536, 2048, 3072, 4096, 5120):
        assert SMALL[at + 257 : at + 262] == b"ustar"
        for bit in range(8):
            damaged = bytearray(SMALL)
            damaged[at + byte] ^= 1 << bit
            assert not agrees(bytes(damaged)), (at, bit)


@modest
@given(at=st.integers(0, len(SMALL) - 1), value=st.binary(min_size=1, max_size=20))
def test_any_damage_leaves_a_shard_that_agrees_or_is_not_taken(at, value):
    agrees((SMALL[:at] + value + SMALL[at + len(value) :])[: len(SMALL)])


@modest
@given(field=st.integers(0, 511), value=st.binary(min_size=1, max_size=24), member=st.integers(0, 2))
def test_any_value_in_a_header_whose_checksum_holds_agrees_or_is_not_taken(field, value, member):
    block = tars.header("a.txt", 5)
    block = tars.resum((block[:field] + value + block[field + len(value) :])[:512])
    members = [tars.member("a.cls", b"0"), tars.member("b.txt", b"1" * 600), tars.member("b.x", b"2")]
    members.insert(member, block + tars.padded(b"12345"))
    agrees(b"".join(members) + tars.END)
    agrees(tars.member("0.x", bytes(WINDOW)) + block + tars.padded(b"12345") + tars.member("b.x") + tars.END)


# Properties


@modest
@given(data=mixtures(), chunks=chunk_sizes)
def test_any_mixture_of_dialects_agrees_or_is_not_taken(data, chunks):
    agrees(data, chunks)


names = st.one_of(
    st.builds("{}.{}".format, few_keys, few_fields),
    st.text("ab./_", max_size=12),
    st.binary(min_size=1, max_size=12).map(os.fsdecode),
)


@modest
@given(members=st.lists(st.tuples(names, bodies), max_size=12))
def test_any_names_agree_or_are_not_taken(members):
    short = [(tars.encode(name)[:100], body) for name, body in members]
    agrees(tars.ustar(short))


@modest
@given(
    pairs=shards(max_samples=12), padding=st.integers(0, 20), magic=st.sampled_from([tars.POSIX_MAGIC, tars.GNU_MAGIC])
)
def test_every_plain_shard_is_taken(pairs, padding, magic):
    good = [
        (name, body)
        for name, body in pairs
        if len(tars.encode(name)) <= 100 and "\0" not in name and not name.startswith("_")
    ]
    stems = [name.rpartition("/")[2].partition(".")[0] for name, _ in good]
    data = b"".join(tars.member(name, body, magic=magic) for name, body in good) + bytes(512 * (1 + padding))
    assert agrees(data) == all(stems)


blocks = st.one_of(
    st.builds(lambda name, size: tars.header(name, size), st.sampled_from(["a.x", "b.x", "c.y"]), st.integers(0, 2000)),
    st.just(bytes(512)),
    st.just(MTIME),
    st.builds(lambda at: (bytes(257) + b"ustar").ljust(512, b"1")[at:].ljust(512, b"\0"), st.integers(0, 1)),
    st.binary(max_size=20).map(lambda data: data.ljust(512, b"\0")),
)


@modest
@given(pieces=st.lists(blocks, max_size=16), chunks=chunk_sizes)
def test_headers_whose_sizes_lead_astray_agree_or_are_not_taken(pieces, chunks):
    agrees(b"".join(pieces), chunks)
    agrees(b"".join(pieces) + tars.END, chunks)
    inside = tars.ustar([("0.x", b"".join(pieces)), ("1.x", b"".join(pieces)), ("1.y", b"")])
    assert agrees(inside, chunks)


field_sizes = st.tuples(st.sampled_from(["x", "y", "z.w", "key", ""]), st.integers(0, 1500))
many_samples = st.lists(st.lists(field_sizes, min_size=1, max_size=4, unique_by=lambda pair: pair[0]), max_size=40)


@modest
@given(
    samples=many_samples,
    name=st.sampled_from(["{:03}", "{}", "d/{:03}", "d.e/{}"]),
    pax=st.booleans(),
    chunks=chunk_sizes,
)
def test_many_samples_are_taken_through_many_windows(samples, name, pax, chunks):
    members = [
        (f"{name.format(number)}.{field}", random.Random(size).randbytes(size))
        for number, fields in enumerate(samples)
        for field, size in fields
    ]
    data = b"".join((MTIME if pax else b"") + tars.member(*pair) for pair in members) + tars.END
    assert agrees(data, chunks)


# Sort keys


def sorted_scan(
    data: bytes, load: frozenset[str] | None, key_of: Callable[[Record], bytes | None] = whole_key
) -> Spans | None:
    return scan(data, key_of=key_of, load=load)


loads = st.sampled_from([None, frozenset({"x"}), frozenset({"x", "key", ""}), frozenset()])


@modest
@given(samples=many_samples, load=loads, pax=st.booleans())
def test_the_records_that_make_sort_keys_are_the_readers(samples, load, pax):
    members = [
        (f"{number}.{field}", random.Random(size).randbytes(size * 7 if size > 1300 else size))
        for number, fields in enumerate(samples)
        for field, size in fields
    ]
    data = b"".join((MTIME if pax else b"") + tars.member(*pair) for pair in members) + tars.END
    found = sorted_scan(data, load)
    assert found is not None
    records = list(iter_samples(io.BytesIO(data), URL, ReadOptions(load=load)))
    assert found.keys == [whole_key(record) for record in records]


@modest
@given(samples=many_samples, seed=st.integers(0, 99))
def test_samples_without_a_sort_key_are_left_out_and_counted(samples, seed):
    rng = random.Random(seed)
    left = {str(number) for number in range(len(samples)) if rng.random() < 0.3}
    members = [
        (f"{number}.{field}", bytes(size * 7 if size > 1300 else size))
        for number, fields in enumerate(samples)
        for field, size in fields
    ]
    data = tars.ustar(members)
    found = sorted_scan(data, frozenset(), lambda r: None if r["__key__"] in left else r["__key__"].encode())
    tally = Tally()
    index = index_shard(io.BytesIO(data), URL, tally=tally)
    assert found is not None
    kept = [number for number in range(len(samples)) if str(number) not in left]
    assert found.keys == [b"%d" % number for number in kept]
    assert list(found.starts) == [index.starts[number] for number in kept]
    assert list(found.lengths) == [index.lengths[number] for number in kept]
    assert (found.samples, found.left_out) == (tally.samples, len(left))
    assert found.members == sum(len(samples[number]) for number in kept)
    records = [r for r in iter_samples(io.BytesIO(data), URL) if r["__key__"] not in left]
    assert found.digest == sum(sample_digest(r["__key__"], fields_of_record(r)) for r in records) & MASK_128


@pytest.mark.parametrize("size", [10, 2 * WINDOW])
def test_a_sample_whose_members_are_not_adjacent_is_noticed_though_it_is_left_out(size):
    data = tars.ustar([("a.x", bytes(size)), ("b.x", b"1"), ("a.y", b"1")])
    assert careful(data) is None
    assert sorted_scan(data, frozenset(), lambda record: None if record["__key__"] == "a" else b"1") is None


@pytest.mark.parametrize("size", [10, 2 * WINDOW])
def test_keys_from_names_alone_are_made_without_records(size):
    data = tars.ustar([(f"d/{name}.{field}", bytes(size)) for name in ("b", "a", "lang") for field in ("x", "y")])
    found = scan(data, key_of_stem=lambda key: key.upper())
    assert found is not None
    assert found.keys == [b"D/B", b"D/A", b"D/LANG"]


def test_progress_is_told_and_ends_at_the_number_of_samples():
    told: list[int] = []
    data = tars.ustar([(f"{number:04}.x", bytes(600)) for number in range(400)])
    scan_once(data, None, tick=told.append)
    assert told == sorted(told)
    assert told[-1] == 400


def test_a_file_is_scanned_as_a_stream_is(tmp_path: Path):
    path = tmp_path / "a.tar"
    path.write_bytes(SMALL)
    with path.open("rb", buffering=0) as raw:
        assert scan_plain(raw, URL).digest == scan_plain(tars.Trickle(SMALL, [100]), URL).digest
