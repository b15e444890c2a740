"""The reader on shards that are in order: every dialect, every way of handing out bytes, what is loaded and counted."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support import tars
from support.tar_reading import URL, listing, outcome, read

from tarmill.errors import SampleError, SpecError
from tarmill.formats.samples import ReadOptions, Tally
from tarmill.formats.tar_read import iter_samples
from tarmill.formats.tar_window import WINDOW_BYTES

needs_gnu_tar = pytest.mark.skipif(tars.gnu_tar_command() is None, reason="GNU tar is not on this machine")

SIZES = (0, 1, 511, 512, 513, 1023, 1024, 1025, 5000)
PAIRS = [
    pair
    for number, size in enumerate(SIZES)
    for pair in ((f"d/s{number:03}.cls", b"%d" % number), (f"d/s{number:03}.seg.jpg", bytes([65 + number]) * size))
]
SAMPLES = tars.samples_of(PAIRS)
CHUNKS = [None, (1 << 20,), (1,), (7,), (511, 513, 1), (512,), (10_000, 3)]


def long_pairs(*lengths: int) -> list[tuple[str, bytes]]:
    """Names of these lengths in bytes, in folders, so that ustar can hold those up to 256."""
    pairs = []
    for length in lengths:
        folders = ("folder789/" * 500)[: max(0, length - 60)]
        folders = folders[: folders.rfind("/") + 1]
        stem = f"s{length}".ljust(length - len(folders) - 4, "n")
        pairs.append((f"{folders}{stem}.txt", b"%d" % length))
    assert [len(name) for name, _ in pairs] == list(lengths)
    return pairs


SHARDS: dict[str, Callable[[], bytes]] = {
    "by hand, ustar": lambda: tars.ustar(PAIRS),
    "by hand, v7": lambda: b"".join(tars.member(*p, magic=tars.V7_MAGIC, flag=b"\0") for p in PAIRS) + tars.END,
    "by hand, contiguous files": lambda: b"".join(tars.member(*p, flag=b"7") for p in PAIRS) + tars.END,
    "by hand, base-256 sizes": lambda: (
        b"".join(tars.member(*p, size_field=tars.base256(len(p[1]), 12), magic=tars.GNU_MAGIC) for p in PAIRS)
        + tars.END
    ),
    "by hand, base-256 uids": lambda: (
        b"".join(tars.member(*p, uid_field=tars.base256(4_000_000_000, 8)) for p in PAIRS) + tars.END
    ),
    "by hand, blanks before the size": lambda: (
        b"".join(tars.member(*p, size_field=b"%11o " % len(p[1])) for p in PAIRS) + tars.END
    ),
    "by hand, size in 12 digits": lambda: (
        b"".join(tars.member(*p, size_field=b"%012o" % len(p[1])) for p in PAIRS) + tars.END
    ),
    "by hand, pax size over a wrong size field": lambda: (
        b"".join(
            tars.pax(tars.pax_record("size", len(body)))
            + tars.header(name, len(body), size_field=tars.octal(0, 12))
            + tars.padded(body)
            for name, body in PAIRS
        )
        + tars.END
    ),
    "by hand, pax mtime before each": lambda: (
        b"".join(tars.pax(tars.pax_record("mtime", "1500000000.25")) + tars.member(*p) for p in PAIRS) + tars.END
    ),
    "by hand, a pax comment for all": lambda: tars.pax(tars.pax_record("comment", "hi"), flag=b"g") + tars.ustar(PAIRS),
    "by hand, every dialect in turn": lambda: (
        b"".join(
            [
                tars.member(name, body),
                tars.member(name, body, magic=tars.GNU_MAGIC),
                tars.pax(tars.pax_record("mtime", "1.5")) + tars.member(name, body),
                tars.gnu_long(name) + tars.member("x", body, magic=tars.GNU_MAGIC),
                tars.pax(tars.pax_record("path", name)) + tars.member("x", body),
                tars.member(name.rpartition("/")[2], body, prefix=b"d"),
            ][number % 6]
            for number, (name, body) in enumerate(PAIRS)
        )
        + tars.END
    ),
    "tarfile, ustar": lambda: tars.by_tarfile(PAIRS, tarfile.USTAR_FORMAT),
    "tarfile, gnu": lambda: tars.by_tarfile(PAIRS, tarfile.GNU_FORMAT),
    "tarfile, pax": lambda: tars.by_tarfile(PAIRS, tarfile.PAX_FORMAT),
    "tarfile, pax with a float mtime": lambda: tars.by_tarfile(PAIRS, tarfile.PAX_FORMAT, mtime=1_500_000_000.25),
    "tarfile, pax with a large uid": lambda: tars.by_tarfile(PAIRS, tarfile.PAX_FORMAT, uid=8**8),
    "tarfile, gnu with a large and a negative number": lambda: tars.by_tarfile(
        PAIRS, tarfile.GNU_FORMAT, uid=8**8, mtime=-1
    ),
    "webdataset": lambda: tars.by_webdataset(SAMPLES),
    "webdataset, whole mtime": lambda: tars.by_webdataset(SAMPLES, mtime=1),
}


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
@pytest.mark.parametrize("build", SHARDS.values(), ids=SHARDS.keys())
def test_every_dialect_gives_the_same_samples(build, fast):
    data = build()
    assert tars.samples_of(tars.tarfile_listing(data)) == SAMPLES, "the builder does what its name says"
    assert read(data, fast=fast) == SAMPLES
    assert read(data, chunks=(1000,), fast=fast) == SAMPLES


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize(
    "name", ["by hand, ustar", "by hand, every dialect in turn", "webdataset", "tarfile, gnu"], ids=lambda n: n[-10:]
)
def test_how_a_stream_hands_out_its_bytes_makes_no_difference(name, chunks, fast):
    assert read(SHARDS[name](), chunks, fast=fast) == SAMPLES


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
def test_long_names_of_tarfile(format, fast):
    pairs = long_pairs(99, 100, 101, 154, 155, 156, 200, 245)
    pairs.append(("p" * 155 + "/" + "n" * 96 + ".txt", b"as long as ustar can"))
    if format != tarfile.USTAR_FORMAT:
        pairs += long_pairs(255, 256, 257, 300, 700, 5000)
    assert read(tars.by_tarfile(pairs, format), fast=fast) == tars.samples_of(pairs)


@needs_gnu_tar
@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_gnu_tar_formats_with_long_names(tmp_path, format):
    longest = {"v7": 99, "ustar": 250}.get(format, 3000)
    pairs = long_pairs(*(n for n in (20, 99, 100, 101, 150, 156, 200, 250, 257, 300, 1000, 3000) if n <= longest))
    tars.put_files(tmp_path, pairs)
    data = tars.by_gnu_tar(tmp_path, f"--format={format}")
    expected = tars.samples_of(sorted(tars.tarfile_listing(data)))
    assert len(expected) == len(pairs)
    assert sorted(read(data), key=lambda s: s["__key__"]) == expected
    assert listing(data) == tars.tarfile_listing(data)


@needs_gnu_tar
@pytest.mark.parametrize("format", ["oldgnu", "gnu", "posix"])
def test_gnu_tar_with_owners_that_need_binary_numbers(tmp_path, format):
    tars.put_files(tmp_path, PAIRS)
    data = tars.by_gnu_tar(tmp_path, f"--format={format}", "--owner=x:4000000000", "--mtime=@-5", "--numeric-owner")
    assert read(data) == tars.samples_of(tars.tarfile_listing(data)) == SAMPLES


SPARSE = {
    "one hole": ([(0, b"begin"), (200_000, b"end")], 200_003),
    "begins with a hole": ([(100_000, b"x" * 700)], 100_700),
    "ends with a hole": ([(0, b"x" * 5000)], 300_000),
    "only a hole": ([], 100_000),
    "many pieces": ([(i * 8192, b"%04d" % i * 1024) for i in range(60)], 60 * 8192),
}
SPARSE_OPTIONS = {
    "oldgnu": ("--format=oldgnu",),
    "gnu": ("--format=gnu",),
    "pax 0.0": ("--format=posix", "--sparse-version=0.0"),
    "pax 0.1": ("--format=posix", "--sparse-version=0.1"),
    "pax 1.0": ("--format=posix", "--sparse-version=1.0"),
}


@needs_gnu_tar
@pytest.mark.parametrize("chunks", [None, (999,)], ids=["seekable", "stream"])
@pytest.mark.parametrize("options", SPARSE_OPTIONS.values(), ids=SPARSE_OPTIONS.keys())
@pytest.mark.parametrize("shape", SPARSE.values(), ids=SPARSE.keys())
def test_sparse_files_of_gnu_tar_come_whole(tmp_path, shape, options, chunks):
    pieces, size = shape
    (tmp_path / "long").mkdir()
    names = ["a.bin", "long/" + "n" * 120 + ".bin"]
    bodies = [tars.put_sparse(tmp_path / name, pieces, size) for name in names]
    tars.put_files(tmp_path, [("z.txt", b"after")])
    data = tars.by_gnu_tar(tmp_path, "--sparse", "--hole-detection=raw", *options, names=[*names, "z.txt"])
    assert len(data) < sum(map(len, bodies)) + 10_240, "GNU tar left the holes out"
    expected = [
        {"__key__": "a", "bin": bodies[0]},
        {"__key__": "long/" + "n" * 120, "bin": bodies[1]},
        {"__key__": "z", "txt": b"after"},
    ]
    assert read(data, chunks) == expected
    assert listing(data) == [(s["__key__"] + ".bin", s["bin"]) for s in expected[:2]] + [("z.txt", b"after")]


@pytest.mark.parametrize("pieces", [1, 4, 5, 25, 26, 60])
def test_old_gnu_sparse_maps_go_on_in_further_blocks(pieces):
    entries = [(1024 * i + 100, 3) for i in range(pieces)]
    data = tars.old_gnu_sparse("s.bin", entries, b"abc" * pieces, 1024 * pieces) + tars.ustar([("t.txt", b"after")])
    assert listing(data) == tars.tarfile_listing(data)
    assert [sorted(s) for s in read(data)] == [["__key__", "bin"], ["__key__", "txt"]]


@needs_gnu_tar
@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
def test_hard_links_give_the_contents_of_their_target(tmp_path, format, fast):
    tars.put_files(tmp_path, [("a.txt", b"shared" * 300), ("b.cls", b"own")])
    for link in ("b.txt", "c.txt"):
        (tmp_path / link).hardlink_to(tmp_path / "a.txt")
    data = tars.by_gnu_tar(tmp_path, f"--format={format}")
    assert data.count(b"shared") == 300, "GNU tar stored the contents once"
    assert read(data, fast=fast) == tars.samples_of(tars.tarfile_listing(data))
    assert [s["txt"] for s in read(data, fast=fast)] == [b"shared" * 300] * 3


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
@pytest.mark.parametrize("length", [1, 130, 131])
def test_the_prefix_of_star_is_shorter_and_its_times_are_no_part_of_it(length, fast):
    times = tars.octal(1_500_000_000, 12) * 2
    tail = b"p" * length + bytes(131 - length) + times + bytes(8) + b"tar\0"
    data = tars.member("a.txt", b"1", tail=tail) + tars.END
    assert read(data, fast=fast) == [{"__key__": "p" * length + "/a", "txt": b"1"}]


def link_to(name: str, target: str) -> bytes:
    return tars.header(name, flag=b"1", link=tars.encode(target))


def test_a_hard_link_to_a_hard_link_is_followed():
    data = tars.member("a.txt", b"body") + link_to("b.txt", "a.txt") + link_to("c.txt", "b.txt") + tars.END
    assert read(data) == tars.samples_of(tars.tarfile_listing(data))


def test_a_hard_link_to_a_link_that_is_not_loaded_is_followed():
    data = tars.member("a.raw", b"body") + link_to("b.mid", "a.raw") + link_to("c.txt", "b.mid") + tars.END
    assert read(data, load=frozenset({"txt"}))[-1] == {"__key__": "c", "txt": b"body"}


def test_a_hard_link_means_the_last_member_of_that_name_before_it():
    data = (
        tars.member("a.txt", b"old")
        + tars.member("b.txt", b"-")
        + tars.member("a.txt", b"new")
        + link_to("c.txt", "a.txt")
        + tars.member("a.txt", b"later")
        + tars.END
    )
    assert dict(listing(data))["c.txt"] == b"new"


@pytest.mark.parametrize(("stored", "link"), [("a.txt", "./a.txt"), ("./a.txt", "a.txt")])
def test_a_hard_link_finds_its_target_with_or_without_dot_slash(stored, link):
    data = tars.member(stored, b"body") + link_to("c.txt", link) + tars.END
    assert [body for _, body in tars.tarfile_listing(data)] == [b"body", b"body"]
    assert [body for _, body in listing(data)] == [b"body", b"body"]


def test_a_hard_link_in_a_stream_that_is_read_once_is_an_error_of_its_sample_only():
    data = tars.member("a.txt", b"body") + link_to("b.txt", "a.txt") + tars.member("c.txt", b"c") + tars.END
    found = outcome(data, reopen=False)
    assert isinstance(found.error, SampleError)
    assert (found.error.reason, found.error.member) == ("hard-link", "b.txt")
    skipped = outcome(data, reopen=False, on_error="skip")
    assert [s["__key__"] for s in skipped.records] == ["a", "c"]
    assert skipped.tally.dropped == {"hard-link": 1}


def test_the_size_of_a_hard_link_that_is_not_loaded_is_that_of_its_contents():
    data = tars.member("a.txt", b"body") + link_to("b.txt", "a.txt") + tars.END
    assert read(data, load=frozenset(), sizes=True) == [{"__key__": "a", "txt": 4}, {"__key__": "b", "txt": 4}]


def test_streams_that_hard_links_open_are_closed_again(tmp_path):
    path = tmp_path / "links.tar"
    path.write_bytes(tars.member("a.txt", b"body") + link_to("b.txt", "a.txt") + tars.END)
    opened = []

    def reopen() -> io.FileIO:
        opened.append(io.FileIO(path))
        return opened[-1]

    with io.FileIO(path) as raw:
        assert len(list(iter_samples(raw, URL, reopen=reopen))) == 2
    still_open = [file for file in opened if not file.closed]
    for file in still_open:
        file.close()
    assert opened
    assert not still_open


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
@pytest.mark.parametrize("chunks", [None, (70_000,)], ids=["seekable", "stream"])
@pytest.mark.parametrize(
    "size",
    [
        WINDOW_BYTES // 2 - 1,
        WINDOW_BYTES // 2,
        WINDOW_BYTES // 2 + 1,
        WINDOW_BYTES - 1024,
        WINDOW_BYTES - 512,
        WINDOW_BYTES,
        WINDOW_BYTES + 1,
        3 * WINDOW_BYTES + 5,
    ],
)
def test_members_around_and_beyond_the_window(size, chunks, fast):
    body = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    pairs = [("a.bin", body), ("a.txt", b"small"), ("b.txt", b"first"), ("b.bin", body), ("c.txt", b"last")]
    expected = tars.samples_of(pairs)
    data = tars.ustar(pairs)
    assert read(data, chunks, fast=fast) == expected
    few = [{k: v for k, v in s.items() if k != "bin"} for s in expected]
    assert read(data, chunks, fast=fast, load=frozenset({"txt"})) == few


@pytest.mark.parametrize("shift", range(0, 3072, 512))
def test_headers_and_pax_headers_may_lie_across_the_end_of_the_window(shift):
    filler = ("a.bin", b"f" * (WINDOW_BYTES // 4 - 2560 + shift))
    samples = [{"__key__": f"{n:04}", "bin": filler[1], "cls": b"%d" % n} for n in range(12)]
    data = tars.by_webdataset(samples)
    assert read(data) == samples
    assert read(data, chunks=(65_536,), load=frozenset({"cls"})) == [
        {k: v for k, v in s.items() if k != "bin"} for s in samples
    ]


# What is asked for


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
@pytest.mark.parametrize("chunks", [None, (100,)], ids=["seekable", "stream"])
@pytest.mark.parametrize("load", [set(), {"cls"}, {"seg.jpg"}, {"cls", "seg.jpg"}, {"absent"}])
def test_only_the_fields_asked_for_are_loaded(load, chunks, fast):
    expected = [{k: v for k, v in s.items() if k == "__key__" or k in load} for s in SAMPLES]
    found = outcome(SHARDS["by hand, every dialect in turn"](), chunks, load=frozenset(load), fast=fast)
    assert found.records == expected
    assert found.tally.members == len(PAIRS)
    sizes = [{k: len(v) if k not in ("__key__", *load) else v for k, v in s.items()} for s in SAMPLES]
    assert read(tars.ustar(PAIRS), chunks, load=frozenset(load), fast=fast, sizes=True) == sizes


def test_contents_that_are_not_wanted_are_passed_over_by_seeks():
    class Counting(io.BytesIO):
        got = 0

        def readinto(self, buffer):
            count = super().readinto(buffer)
            self.got += count
            return count

    body = bytes(4 << 20)
    raw = Counting(tars.ustar([(f"{n}.{field}", body) for n in range(4) for field in ("bin", "raw")]))
    records = list(iter_samples(raw, URL, ReadOptions(load=frozenset({"cls"}))))
    assert len(records) == 4
    assert raw.got < 4 * WINDOW_BYTES


@pytest.mark.parametrize("size", [4097, 5000, 9001])
def test_headers_are_found_behind_contents_that_leave_the_window_at_an_odd_place(size):
    long_name = "d/" + "n" * 120
    data = tars.pax(tars.pax_record("path", f"{long_name}.txt")) + tars.member("short.txt", b"x" * size)
    data += tars.ustar([("b.txt", b"1"), ("b.bin", bytes(9000)), ("c.txt", b"2")])
    for raw in (io.BytesIO(data), tars.AtOffsets(data), tars.Trickle(data)):
        found = outcome(data, raw=raw, load=frozenset({"txt"}))
        assert [r["txt"] for r in found.records] == [b"x" * size, b"1", b"2"]


def test_a_record_has_key_url_and_alias():
    [record] = iter_samples(io.BytesIO(tars.ustar([("d/a.txt", b"1")])), "http://x/s.tar")
    assert record == {"__key__": "d/a", "__url__": "http://x/s.tar", "key": "d/a", "txt": b"1"}


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
@pytest.mark.parametrize("fields", [("key", "txt"), ("txt", "key"), ("key",)])
def test_a_field_named_key_hides_the_alias(fields, fast):
    pairs = [(f"{key}.{field}", field.encode()) for key in "ab" for field in fields]
    for record in iter_samples(io.BytesIO(tars.ustar(pairs)), URL, ReadOptions(fast=fast)):
        assert record["key"] == b"key"
        assert record["__key__"] in ("a", "b")


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
@pytest.mark.parametrize("field", ["__key__", "__url__"])
def test_a_field_that_would_replace_what_the_record_says_of_itself_is_an_error(field, fast):
    data = tars.ustar([("a.txt", b"1"), (f"a.{field}", b"evil"), ("b.txt", b"2")])
    assert outcome(data, fast=fast).reason == "reserved-field"
    assert [s["__key__"] for s in outcome(data, fast=fast, on_error="skip").records] == ["b"]
    kept = outcome(data, fast=fast, on_error="ignore")
    assert [s["__key__"] for s in kept.records] == ["a", "b"]
    assert kept.tally.kept_damaged == {"reserved-field": 1}


def test_samples_of_one_key_function_of_the_ancestor():
    data = tars.ustar([("x/1/img.jpg", b"i"), ("x/1/cls.txt", b"c"), ("x/2/img.jpg", b"j")])
    assert read(data, key_function="dir_plus_file") == [
        {"__key__": "x/1", "img.jpg": b"i", "cls.txt": b"c"},
        {"__key__": "x/2", "img.jpg": b"j"},
    ]


def test_an_unknown_policy_is_refused():
    with pytest.raises(SpecError, match="fail, skip, stop, ignore"):
        ReadOptions(on_error="perhaps")


# What is counted


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
def test_the_tally_counts_samples_and_their_members(fast):
    tally = outcome(tars.ustar(PAIRS), fast=fast).tally
    assert (tally.samples, tally.members, tally.yielded) == (len(SAMPLES), len(PAIRS), len(SAMPLES))
    assert not tally.skipped + tally.dropped + tally.kept_damaged + tally.unread
    assert tally.duplicate_keys == 0


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
def test_what_belongs_to_no_sample_is_counted_by_kind_and_splits_no_sample(fast):
    odd = [
        tars.header("d/", flag=b"5"),
        tars.header("d.x/", flag=b"\0", magic=tars.V7_MAGIC),
        tars.header("s.txt", flag=b"2", link=b"/etc/passwd"),
        tars.header("c.txt", flag=b"3"),
        tars.header("b.txt", flag=b"4"),
        tars.header("f.txt", flag=b"6"),
        tars.member("README", b"no extension"),
        tars.member("volume.txt", b"", flag=b"V"),
    ]
    data = b"".join(tars.member(f"a.{n}", b"%d" % n) + block for n, block in enumerate(odd)) + tars.END
    found = outcome(data, fast=fast)
    assert found.records == [{"__key__": "a", **{str(n): b"%d" % n for n in range(len(odd))}}]
    assert found.tally.members == len(odd)
    expected = {"directory": 2, "symlink": 1, "device": 2, "fifo": 1, "no-extension": 1, "type 'V'": 1}
    assert found.tally.skipped == expected


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
def test_counts_are_right_when_the_reading_is_given_up_early(fast):
    tally = Tally()
    samples = iter_samples(io.BytesIO(tars.ustar(PAIRS)), URL, ReadOptions(fast=fast), tally)
    taken = [next(samples) for _ in range(3)]
    samples.close()
    assert tally.samples == len(taken)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
def test_a_shard_may_come_from_a_file(tmp_path: Path, fast):
    path = tmp_path / "s.tar"
    path.write_bytes(tars.ustar(PAIRS))
    with io.FileIO(path) as raw:
        found = list(iter_samples(raw, URL, ReadOptions(fast=fast)))
    assert [s["__key__"] for s in found] == [s["__key__"] for s in SAMPLES]


# Ends


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
@pytest.mark.parametrize("blocks", [1, 2, 3, 19, 20, 5000])
def test_any_number_of_zero_blocks_ends_a_shard(blocks, fast):
    data = tars.ustar(PAIRS, end=bytes(512 * blocks))
    assert read(data, fast=fast) == SAMPLES
    assert read(data, (700,), fast=fast) == SAMPLES


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
@pytest.mark.parametrize("end", [512, 1024, 10_240])
def test_concatenated_tars_are_read_whole_without_complaint(end, fast):
    parts = [tars.ustar(PAIRS[at : at + 6], end=bytes(end)) for at in range(0, len(PAIRS), 6)]
    found = outcome(b"".join(parts), fast=fast)
    assert found.error is None
    assert found.records == SAMPLES
    assert found.tally.samples == len(SAMPLES)


def test_concatenated_tars_of_all_dialects_are_read_whole():
    whole = [build() for build in SHARDS.values()]
    found = outcome(b"".join(whole))
    assert found.records == SAMPLES * len(whole)
    assert found.tally.duplicate_keys == len(SAMPLES) * (len(whole) - 1)


def test_a_pax_header_for_all_members_ends_with_its_archive():
    first = tars.pax(tars.pax_record("path", "all.txt"), flag=b"g") + tars.ustar([("x", b"1")])
    assert read(first + tars.ustar([("b.txt", b"2")])) == [
        {"__key__": "all", "txt": b"1"},
        {"__key__": "b", "txt": b"2"},
    ]


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
def test_a_shard_of_zero_blocks_only_has_no_samples(fast):
    for size in (512, 1024, 10_240):
        found = outcome(bytes(size), fast=fast)
        assert (found.records, found.error, found.tally.samples) == ([], None, 0)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
def test_a_pax_header_for_all_is_followed_until_another_replaces_it(fast):
    data = (
        tars.member("a.txt", b"0")
        + tars.pax(tars.pax_record("path", "b.txt"), flag=b"g")
        + tars.member("x", b"1")
        + tars.pax(tars.pax_record("path", "c.txt"))
        + tars.member("x", b"2")
        + tars.pax(tars.pax_record("path", "d.txt"), flag=b"g")
        + tars.member("x", b"3")
        + tars.END
    )
    assert listing(data) == tars.tarfile_listing(data)
    assert read(data, fast=fast) == tars.samples_of(tars.tarfile_listing(data))
