"""The index of a shard: ranges against Python's tarfile, on every dialect; which bytes may be copied as they are."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tars
from support.tar_reading import URL, read

from tarmill.errors import HeaderError, SampleError, TruncatedError
from tarmill.formats.index import Bound, ShardIndex, index_shard
from tarmill.formats.samples import Record, Tally
from tarmill.formats.tar_window import WINDOW_BYTES

MTIME = tars.pax(tars.pax_record("mtime", "1500000000.25"))
PAIRS = [
    pair
    for number, size in enumerate((0, 1, 511, 512, 513, 5000))
    for pair in ((f"d/s{number}.cls", b"%d" % number), (f"d/s{number}.seg.jpg", bytes([65 + number]) * size))
]


def index_of(data: bytes, chunks: tuple[int, ...] | None = None, **options: object) -> ShardIndex:
    return index_shard(io.BytesIO(data) if chunks is None else tars.Trickle(data, chunks), URL, **options)  # type: ignore[arg-type]


def ranges_of(index: ShardIndex) -> list[tuple[int, int]]:
    return list(zip(index.starts, index.lengths, strict=True))


def copied(data: bytes, index: ShardIndex) -> bytes:
    """Make an archive of the bytes of those samples that may be copied as they are."""
    spans = [data[start : start + length] for start, length in ranges_of(index)]
    return b"".join(span for number, span in enumerate(spans) if index.self_contained(number)) + tars.END


def tarfile_starts(data: bytes) -> list[int]:
    """Tell where the first header of each sample is, by Python's tarfile."""
    found, last = [], None
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        for entry in archive:
            base = entry.name.rpartition("/")[2]
            if (entry.isreg() or entry.islnk()) and base.find(".") > 0:
                key = entry.name[: len(entry.name) - len(base) + base.find(".")]
                if key != last:
                    found.append(entry.offset)
                last = key
    return found


DIALECTS: dict[str, Callable[[tuple[str, bytes]], bytes]] = {
    "ustar": lambda pair: tars.member(*pair),
    "gnu magic": lambda pair: tars.member(*pair, magic=tars.GNU_MAGIC),
    "pax mtime": lambda pair: MTIME + tars.member(*pair),
    "pax path": lambda pair: tars.pax(tars.pax_record("path", pair[0])) + tars.member("x", pair[1]),
    "pax size": lambda pair: (
        tars.pax(tars.pax_record("size", len(pair[1])))
        + tars.header(pair[0], 0)
        + tars.padded(pair[1])
    ),
    "gnu long name": lambda pair: tars.gnu_long(pair[0]) + tars.member("x", pair[1], magic=tars.GNU_MAGIC),
    "base-256 size": lambda pair: tars.member(
        *pair, size_field=tars.base256(len(pair[1]), 12), magic=tars.GNU_MAGIC
    ),
}  # fmt: skip
BETWEEN = {
    "directory": tars.header("d/", flag=b"5"),
    "directory with a pax mtime": MTIME + tars.header("d/", flag=b"5"),
    "symlink": tars.header("l.txt", flag=b"2", link=b"x"),
    "no extension": tars.member("README", b"text" * 300),
    "hidden": tars.member("d/.hidden.txt", b"1"),
    "long symlink": tars.gnu_long("t" * 150, b"K") + tars.header("l.txt", flag=b"2", magic=tars.GNU_MAGIC),
}


@pytest.mark.parametrize("chunks", [None, (1000,), (512, 3)], ids=["seekable", "stream", "pieces"])
@pytest.mark.parametrize("build", DIALECTS.values(), ids=DIALECTS.keys())
def test_ranges_tile_an_archive_of_any_dialect(build, chunks):
    data = b"".join(map(build, PAIRS)) + bytes(10_240)
    index, samples = index_of(data, chunks), tars.samples_of(PAIRS)
    assert list(index.keys()) == [sample["__key__"] for sample in samples]
    assert index.starts.tolist() == tarfile_starts(data)
    assert [sum(span) for span in ranges_of(index)] == [*index.starts[1:], index.end]
    assert (index.end, index.members) == (len(data) - 10_240, len(PAIRS))
    assert not any(index.bounds)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mtime", [0, 1_500_000_000.25], ids=["whole", "float"])
def test_ranges_are_those_of_the_writer_tarfile(format, mtime):
    pairs = [*PAIRS, ("n" * 90 + "/" + "m" * 90 + ".txt", b"long"), ("z.txt", b"last")]
    data = tars.by_tarfile(pairs, format, mtime=mtime)
    index = index_of(data)
    assert index.starts.tolist() == tarfile_starts(data)
    assert not any(index.bounds)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.getmembers()
        assert index.end == archive.offset


names = st.builds(
    lambda folder, key, field: (folder + key, field),
    st.sampled_from(["", "d/", "d.x/", "f" * 95 + "/"]),
    st.sampled_from(["a", "b", "ü", "n" * 110]),
    st.lists(st.sampled_from(["jpg", "cls", "seg.png", "key", "A", "x" * 60]), min_size=1, max_size=4, unique=True),
)
shards = st.lists(
    st.tuples(names, st.sampled_from(list(DIALECTS)), st.binary(max_size=1500), st.sampled_from([None, *BETWEEN])),
    max_size=6,
)


def built(parts: list) -> tuple[bytes, list[tuple[str, bytes]]]:
    data, pairs = b"", []
    for number, ((key, fields), dialect, body, between) in enumerate(parts):
        for field in fields:
            pair = (f"{key}{number}.{field}", body)
            fits = dialect in ("pax path", "gnu long name") or len(tars.encode(pair[0])) <= 100
            data += DIALECTS[dialect if fits else "pax path"](pair)
            pairs.append(pair)
        data += BETWEEN[between] if between else b""
    return data + tars.END, pairs


@given(shards, st.sampled_from([None, (700,), (512,), (100_000,)]))
def test_copied_ranges_give_the_same_samples_to_tarfile_and_to_the_reader(parts, chunks):
    data, pairs = built(parts)
    index = index_of(data, chunks)
    assert not any(index.bounds), "what lies between samples binds none"
    assert tars.tarfile_listing(copied(data, index)) == pairs
    assert read(copied(data, index)) == read(data) == tars.samples_of(pairs)
    assert index.starts.tolist() == tarfile_starts(data)


@given(shards)
def test_each_range_alone_is_an_archive_of_one_sample(parts):
    data, pairs = built(parts)
    index = index_of(data)
    alone = [read(data[start : start + length] + tars.END) for start, length in ranges_of(index)]
    assert alone == [[sample] for sample in tars.samples_of(pairs)]


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN.keys())
def test_a_sample_with_something_between_its_members_is_bound_and_only_that(between):
    data = (
        tars.member("a.x", b"1") + between + tars.member("b.x", b"2") + between + between + tars.member("b.y", b"3")
        + between + tars.member("c.x", b"4") + between + tars.END
    )  # fmt: skip
    index = index_of(data)
    assert list(index.bounds) == [0, Bound.GAP, 0]
    assert index.starts.tolist() == tarfile_starts(data) or between.startswith(MTIME)
    start, length = ranges_of(index)[1]
    assert read(data[start : start + length] + tars.END) == [{"__key__": "b", "x": b"2", "y": b"3"}]
    assert [s["__key__"] for s in read(copied(data, index))] == ["a", "c"]
    assert index.end == len(data) - len(tars.END)


@pytest.mark.parametrize("end", [512, 1024, 10_240])
def test_end_marks_between_concatenated_archives_are_in_no_range(end):
    first, second = (b"".join(tars.member(*pair) for pair in pairs) for pairs in (PAIRS[:4], PAIRS[4:]))
    data = first + bytes(end) + second + bytes(end)
    index = index_of(data)
    assert copied(data, index) == first + second + tars.END
    assert index.end == len(data) - end


def test_members_that_a_pax_header_for_all_names_are_bound():
    data = (
        tars.member("a.x", b"1")
        + tars.pax(tars.pax_record("path", "b.x"), flag=b"g")
        + tars.member("any", b"2")
        + tars.pax(tars.pax_record("path", "c.x"))
        + tars.member("any", b"3")
        + tars.END
    )
    index = index_of(data)
    assert list(index.keys()) == ["a", "b", "c"]
    assert list(index.bounds) == [0, Bound.GLOBAL, Bound.GLOBAL]
    assert index.starts.tolist() == tarfile_starts(data)


def test_a_pax_header_for_all_that_names_nothing_is_in_no_range():
    comment = tars.pax(tars.pax_record("comment", "0123"), flag=b"g")
    members = b"".join(tars.member(*pair) for pair in PAIRS)
    data = comment + comment + members + comment + tars.END
    index = index_of(data)
    assert copied(data, index) == members + tars.END
    assert index.starts.tolist() == tarfile_starts(comment + comment + members + tars.END)
    assert index.end == len(data) - len(tars.END)


def test_a_pax_header_for_all_inside_the_headers_of_a_member_binds_it():
    comment = tars.pax(tars.pax_record("comment", "0123"), flag=b"g")
    data = (
        tars.member("a.x", b"1")
        + tars.pax(tars.pax_record("path", "b.x"))
        + comment
        + tars.member("any", b"2")
        + tars.member("c.x", b"3")
        + tars.END
    )
    index = index_of(data)
    assert list(index.keys()) == ["a", "b", "c"]
    assert list(index.bounds) == [0, Bound.GLOBAL, 0]


def test_a_hard_link_binds_its_sample():
    link = tars.header("b.x", flag=b"1", link=b"a.x")
    data = tars.member("a.x", b"1") + link + tars.member("b.y", b"2") + tars.member("c.x", b"3") + tars.END
    index = index_of(data)
    assert list(index.bounds) == [0, Bound.LINK, 0]
    assert index.starts.tolist() == tarfile_starts(data)
    assert [s["__key__"] for s in read(copied(data, index))] == ["a", "c"]


@pytest.mark.parametrize("pieces", [1, 4, 5, 30])
def test_sparse_members_are_copied_with_their_maps(pieces):
    entries = [(1024 * i + 100, 3) for i in range(pieces)]
    sparse = tars.old_gnu_sparse("s.bin", entries, b"abc" * pieces, 1024 * pieces)
    data = tars.member("a.x", b"1") + sparse + tars.member("t.txt", b"after") + tars.END
    index = index_of(data)
    assert not any(index.bounds)
    assert copied(data, index) == data
    assert index.starts.tolist() == tarfile_starts(data)


@pytest.mark.skipif(tars.gnu_tar_command() is None, reason="GNU tar is not on this machine")
@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_members_of_gnu_tar_are_copied_with_their_maps(tmp_path, version):
    tars.put_sparse(tmp_path / "a.bin", [(0, b"begin"), (200_000, b"end")], 200_003)
    tars.put_files(tmp_path, [("z.txt", b"after")])
    options = ("--sparse", "--hole-detection=raw", "--format=posix", f"--sparse-version={version}")
    data = tars.by_gnu_tar(tmp_path, *options, names=["a.bin", "z.txt"])
    index = index_of(data)
    assert not any(index.bounds)
    assert read(copied(data, index)) == read(data)
    assert index.end == sum(index.lengths)


@pytest.mark.parametrize("chunks", [None, (70_000,)], ids=["seekable", "stream"])
@pytest.mark.parametrize("size", [WINDOW_BYTES // 2, WINDOW_BYTES - 512, WINDOW_BYTES, 3 * WINDOW_BYTES + 5])
def test_ranges_of_members_around_and_beyond_the_window(size, chunks):
    pairs = [("a.bin", bytes(size)), ("a.txt", b"small"), ("b.txt", b"first"), ("b.bin", bytes(size)), ("c.txt", b"")]
    data = tars.ustar(pairs)
    index = index_of(data, chunks)
    assert index.starts.tolist() == tarfile_starts(data)
    assert copied(data, index) == data


def test_contents_are_passed_over_by_seeks():
    class Counting(io.BytesIO):
        got = 0

        def readinto(self, buffer):
            count = super().readinto(buffer)
            self.got += count
            return count

    raw = Counting(tars.ustar([(f"{n}.bin", bytes(4 << 20)) for n in range(8)]))
    assert len(index_shard(raw, URL)) == 8
    assert raw.got < 4 * WINDOW_BYTES


def test_other_key_functions_group_other_ranges():
    data = tars.ustar([("x/1/img.jpg", b"i"), ("x/1/cls.txt", b"c"), ("x/2/img.jpg", b"j")])
    index = index_of(data, key_function="dir_plus_file")
    assert list(index.keys()) == ["x/1", "x/2"]
    assert ranges_of(index) == [(0, 2048), (2048, 1024)]


def test_keys_that_are_no_utf8_come_back():
    index = index_of(tars.ustar([(b"\xff\xfe.txt", b"1"), ("ü.txt", b"2")]))
    assert list(index.keys()) == ["\udcff\udcfe", "ü"]


def test_the_visitor_sees_where_every_field_lies():
    seen: list[Record] = []
    data = tars.ustar([("a.key", b"one"), ("a.x", b"three"), ("b.y", b"")])
    index_of(data, visit=seen.append)
    places = [
        {name: data[place[0] : place[0] + place[1]] for name, place in record.items() if isinstance(place, tuple)}
        for record in seen
    ]
    assert places == [{"key": b"one", "x": b"three"}, {"y": b""}]


def test_the_tally_is_that_of_the_reader():
    tally = Tally()
    index = index_of(tars.ustar([*PAIRS, ("README", b"")]), tally=tally)
    assert (tally.samples, tally.members, dict(tally.skipped)) == (len(index), index.members, {"no-extension": 1})


def test_a_shard_without_samples_has_an_empty_index():
    index = index_of(bytes(1024))
    assert (len(index), index.end, index.members) == (0, 0, 0)
    assert index_of(tars.header("d/", flag=b"5") + tars.END).end == 512


def test_a_sample_takes_21_bytes_and_its_key():
    index = index_of(tars.ustar([(f"{n:06}.x", b"") for n in range(100)]))
    arrays = (index.starts, index.lengths, index._key_ends)
    assert sum(a.itemsize * len(a) for a in arrays) + len(index.bounds) + len(index._key_bytes) == 100 * (21 + 6)


WHOLE = tars.ustar(PAIRS)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", TruncatedError),
        (WHOLE[:-1024], TruncatedError),
        (WHOLE[:1600], TruncatedError),
        (WHOLE[:1030] + b"x" + WHOLE[1031:], HeaderError),
        (WHOLE + b"garbage" * 100, HeaderError),
        (tars.ustar([("a.x", b""), ("a.x", b"")]), SampleError),
        (tars.ustar([("a.x", b""), ("b.x", b""), ("a.y", b"")]), SampleError),
    ],
    ids=["empty", "no end mark", "cut", "bad header", "garbage", "doubled field", "interleaved"],
)
def test_what_is_wrong_with_a_shard_is_an_error_and_no_shorter_index(data, error):
    with pytest.raises(error):
        index_of(data)
