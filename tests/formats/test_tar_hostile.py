"""Shards made to do harm, or by mistake look so: bounded memory, clear errors, nothing touched outside the stream."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import textwrap
import tracemalloc
from itertools import chain, repeat

import pytest
from support import tars
from support.tar_reading import kinds, listing, outcome, read

from tarmill.errors import FormatError, HeaderError, LimitError, TruncatedError
from tarmill.formats.tar_write import TarSink

both_paths = pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
MIB = 1 << 20


def rewritten(records: list[dict]) -> bytes:
    out = io.BytesIO()
    sink = TarSink(out.write)
    for record in records:
        sink.add(record)
    sink.finish()
    return out.getvalue()


# Names

NAMES = {
    "parent": b"../../etc/passwd.txt",
    "absolute": b"/etc/cron.d/job.txt",
    "dot slash": b"./a.txt",
    "invalid UTF-8": b"d\xff/\xc3(\xfe.t\x80t",
    "latin-1": "über.größe".encode("latin-1"),
    "UTF-8": "目录/サンプル.データ.jpg".encode(),
    "overlong UTF-8 and a surrogate": b"a\xc0\xaf\xed\xa0\x80.txt",
    "control characters": b"a\n\t\r\x1b[31m\x7f.t\nt",
    "blanks": b" a b . c ",
    "backslashes": b"C:\\temp\\a.txt",
    "100 bytes": b"n" * 96 + b".txt",
    "300 bytes": b"n" * 296 + b".txt",
    "300 bytes of invalid UTF-8": b"\xfe" * 296 + b".txt",
    "folders of 10 000 bytes": b"folder/" * 1428 + b"a.txt",
    "percent": b"a%20b%s.txt",
}


@both_paths
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_a_name_is_data_and_comes_through_reading_and_writing_byte_for_byte(name, fast):
    if len(name) <= 100:
        data = tars.ustar([(name, b"1"), (b"z.txt", b"2")])
    else:
        data = tars.pax(tars.pax_record("path", name)) + tars.ustar([(b"x", b"1"), (b"z.txt", b"2")])
    records = read(data, fast=fast)
    [first, second] = records
    field = next(k for k in first if k != "__key__")
    assert os.fsencode(f"{first['__key__']}.{field}") == name
    assert (first[field], second) == (b"1", {"__key__": "z", "txt": b"2"})
    again = rewritten(records)
    assert read(again, fast=fast) == records
    assert [os.fsencode(n) for n, _ in tars.tarfile_listing(again)] == [name, b"z.txt"]


@both_paths
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_gnu_long_names_are_data_too(name, fast):
    data = tars.gnu_long(name) + tars.ustar([(b"x", b"1")])
    [record] = read(data, fast=fast)
    field = next(k for k in record if k != "__key__")
    assert os.fsencode(f"{record['__key__']}.{field}") == name


@both_paths
def test_a_nul_ends_a_name_in_a_header_as_it_does_for_every_tar(fast):
    data = tars.ustar([(b"a.txt\0/../evil.sh", b"1"), (b"a.cls\0junk", b"2")])
    assert [name for name, _ in tars.tarfile_listing(data)] == ["a.txt", "a.cls"]
    assert read(data, fast=fast) == [{"__key__": "a", "txt": b"1", "cls": b"2"}]


@both_paths
def test_names_that_differ_only_behind_a_nul_are_the_same_name(fast):
    data = tars.ustar([(b"a.txt", b"1"), (b"b.txt", b"2"), (b"b.txt\0x", b"3")])
    assert outcome(data, fast=fast).reason == "duplicate-field"


@both_paths
def test_a_nul_in_a_pax_path_is_an_error(fast):
    data = tars.pax(tars.pax_record("path", b"a.txt\0.sh")) + tars.ustar([("a.txt", b"1")])
    assert isinstance(outcome(data, fast=fast).error, HeaderError)


@both_paths
@pytest.mark.parametrize("name", [b"", b".", b"/", b"..", b"a", b"d/a", b"d.x/a", b".hidden", b"d/.hidden.txt"])
def test_names_that_give_no_sample_are_counted(name, fast):
    found = outcome(tars.ustar([(b"a.txt", b"1"), (name, b"2"), (b"a.cls", b"3")]), fast=fast)
    assert found.records == [{"__key__": "a", "txt": b"1", "cls": b"3"}]
    assert sum(found.tally.skipped.values()) == 1


@both_paths
@pytest.mark.parametrize("name", [b"__meta__", b"__meta__/x.json"])
def test_names_reserved_for_metadata_are_counted(name, fast):
    found = outcome(tars.ustar([(b"a.txt", b"1"), (name, b"2"), (b"a.cls", b"3")]), fast=fast)
    assert found.records == [{"__key__": "a", "txt": b"1", "cls": b"3"}]
    assert sum(found.tally.skipped.values()) == 1


@both_paths
@pytest.mark.parametrize("name", ["__x__.json", "d/__x__.json", "__x/a.json", "__.json"])
def test_names_that_only_look_reserved_are_samples(name, fast):
    assert read(tars.ustar([(name, b"1")]), fast=fast) == tars.samples_of([(name, b"1")])


# What the hot loop remembers of one member must not be taken for another: the same field, stems of the same length


@both_paths
def test_reserved_names_are_told_from_samples_with_stems_as_long(fast):
    data = tars.ustar([("abcdefgh/x.json", b"1"), ("__meta__/x.json", b"2"), ("abcdefgh/y.json", b"3")])
    assert [s["__key__"] for s in read(data, fast=fast)] == ["abcdefgh/x", "abcdefgh/y"]


@both_paths
def test_a_nul_in_a_name_is_seen_behind_names_as_long(fast):
    data = tars.ustar([(b"abc.txt", b"1"), (b"d\0f.txt", b"2"), (b"ghi.txt", b"3")])
    found = outcome(data, fast=fast)
    assert [s["__key__"] for s in found.records] == ["abc", "ghi"]
    assert found.tally.skipped == {"no-extension": 1}


@both_paths
@pytest.mark.parametrize(
    "first",
    [
        tars.member("a.txt", b"1", prefix=b"d"),
        tars.gnu_long("d/a.txt") + tars.member("other.name", b"1"),
        tars.pax(tars.pax_record("path", "d/a.txt")) + tars.member("x.y", b"1"),
        tars.pax(tars.pax_record("path", "d/a.txt")) + tars.member("", b"1"),
    ],
    ids=["prefix", "gnu", "pax", "pax over an empty name"],
)
@pytest.mark.parametrize("name", ["abc.t", "abc.r.name", "abc.x", "x.y", "e/b.txt"])
def test_the_name_field_under_a_longer_name_teaches_nothing_about_others(first, name, fast):
    data = first + tars.ustar([(name, b"2"), ("f/c.txt", b"3")])
    assert read(data, fast=fast) == tars.samples_of([("d/a.txt", b"1"), (name, b"2"), ("f/c.txt", b"3")])


@both_paths
def test_members_that_look_plain_follow_a_pax_header_for_all(fast):
    def for_all(name: str) -> bytes:
        return tars.pax(tars.pax_record("path", name), flag=b"g")

    data = (
        tars.member("a.txt", b"0")
        + tars.member("b.txt", b"1")
        + for_all("c.txt")
        + tars.member("d.txt", b"2")
        + for_all("e.txt")
        + tars.pax(tars.pax_record("mtime", "1.5"))
        + tars.member("f.txt", b"3")
        + tars.END
    )
    assert [s["__key__"] for s in read(data, fast=fast)] == ["a", "b", "c", "e"]


@both_paths
def test_a_path_for_all_members_makes_plain_members_behind_it_one_and_the_same(fast):
    all_are_c = tars.pax(tars.pax_record("path", "c.txt"), flag=b"g")
    data = (
        tars.ustar([("a.txt", b"0"), ("b.txt", b"1")], end=b"")
        + all_are_c
        + tars.ustar([("d.txt", b""), ("e.txt", b"")])
    )
    found = outcome(data, fast=fast)
    assert [name for name, _ in tars.tarfile_listing(data)] == ["a.txt", "b.txt", "c.txt", "c.txt"]
    assert (found.reason, [s["__key__"] for s in found.records]) == ("duplicate-field", ["a", "b"])


# Sizes

HUGE = {
    "2^62": tars.base256(2**62, 12),
    "2^63 - 1": tars.base256(2**63 - 1, 12),
    "2^63 - 512": tars.base256(2**63 - 512, 12),
    "octal, the largest": b"77777777777\0",
    "octal, 12 digits": b"777777777777",
}
IMPOSSIBLE = {
    "2^63": tars.base256(2**63, 12),
    "2^64": tars.base256(2**64, 12),
    "2^95 - 1": bytes([0x80, *[255] * 11]),
    "-1": tars.base256(-1, 12),
    "-512": tars.base256(-512, 12),
    "most negative": bytes([0xC0, *[0] * 11]),
    "octal with a sign": b"-0000000512\0",
    "no octal": b"00000000009\0",
    "hex": b"0x000000200\0",
    "underscores": b"0_000_000_1\0",
    "letters": b"abcdefghijk\0",
}


@both_paths
@pytest.mark.parametrize("policy", ["fail", "skip"])
@pytest.mark.parametrize("load", [None, frozenset({"cls"})], ids=["all", "one"])
@pytest.mark.parametrize("chunks", [None, (4096,)], ids=["seekable", "stream"])
@pytest.mark.parametrize("size_field", HUGE.values(), ids=HUGE.keys())
def test_a_size_beyond_the_shard_is_an_error_however_it_is_read(size_field, chunks, load, policy, fast):
    head = tars.member("a.cls", b"0")
    data = head + tars.header("b.txt", size_field=size_field) + bytes(3 * MIB)
    found = outcome(data, chunks, fast=fast, load=load, on_error=policy)
    if policy == "fail":
        assert isinstance(found.error, (LimitError, TruncatedError))
    else:
        assert found.error is None
        assert found.tally.unread or found.tally.dropped
    assert found.records in ([], [{"__key__": "a", "cls": b"0"}])


@both_paths
@pytest.mark.parametrize("load", [None, frozenset({"cls"})], ids=["all", "one"])
@pytest.mark.parametrize("size_field", HUGE.values(), ids=HUGE.keys())
def test_a_huge_size_in_a_file_on_disk(tmp_path, size_field, load, fast):
    path = tmp_path / "s.tar"
    path.write_bytes(tars.member("a.cls", b"0") + tars.header("b.txt", size_field=size_field) + bytes(3 * MIB))
    with io.FileIO(path) as raw:
        found = outcome(b"", raw=raw, reopen=False, fast=fast, load=load)
    assert isinstance(found.error, (LimitError, TruncatedError))


@both_paths
@pytest.mark.parametrize("size_field", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_a_size_that_cannot_be_is_a_header_error(size_field, fast):
    data = tars.member("a.cls", b"0") + tars.header("b.txt", size_field=size_field) + tars.END
    error = outcome(data, fast=fast).error
    assert isinstance(error, HeaderError)
    assert (error.offset, "size" in str(error)) == (1024, True)


@both_paths
@pytest.mark.parametrize(
    "value", [b"-1", b"+1", b" 1", b"1 ", b"0x1", b"1_0", b"", b"9" * 19, b"9" * 400, b"1e3", b"\xd9\xa1"]
)
def test_a_pax_size_that_cannot_be_is_a_header_error(value, fast):
    data = tars.pax(tars.pax_record("size", value)) + tars.ustar([("a.txt", b"1")])
    found = outcome(data, fast=fast, load=frozenset())
    if value == b"":  # an empty value takes the record back
        assert found.error is None or isinstance(found.error, HeaderError)
    else:
        assert isinstance(found.error, HeaderError)


def test_leading_zeros_of_a_pax_size_are_harmless():
    data = tars.pax(tars.pax_record("size", b"0" * 30 + b"5")) + tars.ustar([("a.txt", b"12345")])
    assert listing(data) == tars.tarfile_listing(data) == [("a.txt", b"12345")]


@both_paths
def test_the_size_of_a_link_or_folder_tells_of_no_data(fast):
    odd = [
        tars.header("d/", 5000, flag=b"5"),
        tars.header("l.txt", 5000, flag=b"2", link=b"a.txt"),
        tars.header("f.txt", 2**30, flag=b"6"),
        tars.header("h.txt", 1, flag=b"1", link=b"a.txt"),
    ]
    data = tars.member("a.txt", b"1") + b"".join(odd) + tars.ustar([("b.txt", b"2")])
    assert listing(data) == tars.tarfile_listing(data)
    assert read(data, fast=fast) == tars.samples_of(tars.tarfile_listing(data))


# Limits


@both_paths
@pytest.mark.parametrize("size", [1001, 5000, 3 * MIB])
@pytest.mark.parametrize("chunks", [None, (4096,)], ids=["seekable", "stream"])
def test_a_member_larger_than_the_limit_is_an_error_that_names_it(size, chunks, fast):
    data = tars.ustar([("a.txt", b"1"), ("a.bin", bytes(size)), ("b.txt", b"2")])
    error = outcome(data, chunks, fast=fast, max_member_bytes=1000).error
    assert isinstance(error, LimitError)
    assert (error.limit_bytes, error.size_bytes, error.member, error.offset) == (1000, size, "a.bin", 1024)
    assert "1000" in str(error)
    assert "--max-member" in str(error)


@both_paths
@pytest.mark.parametrize("chunks", [None, (4096,)], ids=["seekable", "stream"])
def test_a_member_larger_than_the_limit_costs_its_sample_only(chunks, fast):
    data = tars.ustar([("a.txt", b"1"), ("b.bin", bytes(3 * MIB)), ("b.txt", b"2"), ("c.txt", b"3")])
    options = {"fast": fast, "max_member_bytes": 1000}
    skip = outcome(data, chunks, on_error="skip", **options)
    assert [s["__key__"] for s in skip.records] == ["a", "c"]
    assert (skip.tally.dropped, skip.tally.samples) == ({"too-large": 1}, 3)
    ignore = outcome(data, chunks, on_error="ignore", **options)
    assert ignore.records[1] == {"__key__": "b", "txt": b"2"}
    assert ignore.tally.kept_damaged == {"too-large": 1}
    assert len(read(data, chunks, load=frozenset({"txt"}), **options)) == 3


@both_paths
def test_a_member_of_exactly_the_limit_is_read(fast):
    data = tars.ustar([("a.bin", bytes(1000)), ("b.bin", bytes(999))])
    assert len(read(data, fast=fast, max_member_bytes=1000)) == 2


def test_the_limit_holds_for_hard_links_too():
    data = tars.member("a", bytes(5000)) + tars.header("b.bin", flag=b"1", link=b"a") + tars.END
    error = outcome(data, max_member_bytes=1000).error
    assert isinstance(error, LimitError)
    assert error.limit_bytes == 1000


def test_a_lying_size_costs_no_more_memory_than_there_are_bytes():
    head = tars.member("a.cls", b"0") + tars.header("b.txt", 2 * 1024 * MIB - 5)
    tracemalloc.start()
    try:
        found = outcome(head + bytes(5 * MIB), (65_536,))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(found.error, TruncatedError)
    assert peak < 40 * MIB


# Sparse files

SPARSE_BOMBS = {
    "2^60, all hole": tars.old_gnu_sparse("s.bin", [], b"", 2**60),
    "2^62, a byte at the end": tars.old_gnu_sparse("s.bin", [(2**62 - 1, 1)], b"x", 2**62),
    "pax 0.1": tars.pax(tars.pax_record("GNU.sparse.map", b"0,1"), tars.pax_record("GNU.sparse.size", 2**60))
    + tars.member("s.bin", b"x"),
    "pax 1.0": tars.pax(
        tars.pax_record("GNU.sparse.major", 1),
        tars.pax_record("GNU.sparse.minor", 0),
        tars.pax_record("GNU.sparse.realsize", 2**60),
        tars.pax_record("GNU.sparse.name", "s.bin"),
    )
    + tars.member("x", tars.padded(b"1\n0\n1\n") + b"x"),
}


@both_paths
@pytest.mark.parametrize("bomb", SPARSE_BOMBS.values(), ids=SPARSE_BOMBS.keys())
def test_a_sparse_bomb_is_too_large_and_the_rest_is_read(bomb, fast):
    data = tars.member("a.txt", b"1") + bomb + tars.ustar([("t.txt", b"2")])
    error = outcome(data, fast=fast).error
    assert isinstance(error, LimitError)
    assert error.size_bytes >= 2**60
    skip = outcome(data, fast=fast, on_error="skip")
    assert [s["__key__"] for s in skip.records] == ["a", "t"]
    assert skip.tally.dropped == {"too-large": 1}
    assert [sorted(s) for s in read(data, fast=fast, load=frozenset({"txt"}))][1] == ["__key__"]


BAD_SPARSE = {
    "negative offset": tars.old_gnu_sparse("s.bin", [(-1, 1)], b"x", 10),
    "negative length": tars.old_gnu_sparse("s.bin", [(0, -1)], b"x", 10),
    "negative length that adds up": tars.old_gnu_sparse("s.bin", [(0, 3), (5, -1)], b"xx", 10),
    "negative real size": tars.old_gnu_sparse("s.bin", [], b"", -5),
    "out of order": tars.old_gnu_sparse("s.bin", [(5, 1), (0, 1)], b"xx", 10),
    "overlap": tars.old_gnu_sparse("s.bin", [(0, 2), (1, 1)], b"xxx", 10),
    "past the end": tars.old_gnu_sparse("s.bin", [(9, 2)], b"xx", 10),
    "more data than the map": tars.old_gnu_sparse("s.bin", [(0, 1)], b"xx", 10),
    "less data than the map": tars.old_gnu_sparse("s.bin", [(0, 3)], b"xx", 10),
    "sum beyond 64 bits": tars.old_gnu_sparse("s.bin", [(2**62, 2**62), (2**63, 2**63)], b"x", 2**63 - 1),
    "map without a length": tars.pax(tars.pax_record("GNU.sparse.map", b"0,1,5"), tars.pax_record("GNU.sparse.size", 9))
    + tars.member("s.bin", b"x"),
    "map of letters": tars.pax(tars.pax_record("GNU.sparse.map", b"a,b"), tars.pax_record("GNU.sparse.size", 9))
    + tars.member("s.bin", b"x"),
    "no real size": tars.pax(tars.pax_record("GNU.sparse.map", b"0,1")) + tars.member("s.bin", b"x"),
}


@both_paths
@pytest.mark.parametrize("blocks", BAD_SPARSE.values(), ids=BAD_SPARSE.keys())
def test_a_sparse_map_that_cannot_be_is_a_header_error(blocks, fast):
    assert isinstance(outcome(blocks + tars.ustar([("t.txt", b"2")]), fast=fast).error, HeaderError)


def sparse_1_0(map_and_data: bytes, real_size: int = 10) -> bytes:
    records = [("major", 1), ("minor", 0), ("realsize", real_size), ("name", "s.bin")]
    return tars.pax(*(tars.pax_record(f"GNU.sparse.{k}", v) for k, v in records)) + tars.member("x", map_and_data)


@pytest.mark.parametrize(
    "map_and_data",
    [
        b"",
        b"1\n",
        tars.padded(b"\n\n"),
        tars.padded(b"-1\n"),
        tars.padded(b"x\n"),
        tars.padded(b"1\n0\n"),
        b"9" * 512 + b"\n",
    ],
    ids=["empty", "short", "blank", "negative", "letters", "half", "many digits"],
)
def test_a_map_of_sparse_1_0_that_cannot_be_is_an_error(map_and_data):
    assert isinstance(outcome(sparse_1_0(map_and_data) + tars.END).error, FormatError)


def test_a_map_of_sparse_1_0_may_be_long():
    count = 20_000
    text = b"%d\n" % count + b"".join(b"%d\n1\n" % (2 * n) for n in range(count))
    [(name, body)] = listing(sparse_1_0(tars.padded(text) + b"x" * count, 2 * count) + tars.END)
    assert (name, body) == ("s.bin", b"x\0" * count)


def test_a_map_of_sparse_1_0_without_line_ends_is_given_up_early():
    records = [("major", 1), ("minor", 0), ("realsize", 10), ("name", "s.bin")]
    head = tars.pax(*(tars.pax_record(f"GNU.sparse.{k}", v) for k, v in records)) + tars.header("x", 8**11 - 1)
    raw = tars.Endless(chain([head, b"2\n0\n"], repeat(b"0" * 4096, 4 * MIB // 4096)))
    found = outcome(b"", raw=raw, reopen=False)
    assert isinstance(found.error, FormatError)
    assert raw.handed_out < 3 * MIB


# Extension headers


@both_paths
@pytest.mark.parametrize("flag", [b"x", b"g", b"L", b"K"])
@pytest.mark.parametrize("size", [2 * MIB, 2**33, 2**62])
def test_a_huge_extension_header_is_refused_before_it_is_read(size, flag, fast):
    size_field = tars.octal(size, 12) if size < 8**11 else tars.base256(size, 12)
    head = tars.header("x", flag=flag, size_field=size_field)
    raw = tars.Endless(chain([head], repeat(b"1" * 65_536, 256)))
    found = outcome(b"", raw=raw, reopen=False, fast=fast)
    assert isinstance(found.error, HeaderError)
    assert raw.handed_out < 3 * MIB


@pytest.mark.parametrize("policy", ["fail", "skip"])
@pytest.mark.parametrize("flag", [b"x", b"g", b"L"])
def test_a_chain_of_extension_headers_takes_bounded_memory(flag, policy):
    """One after the other, each within the limit, compresses a thousandfold."""
    one = MIB - 100
    keywords = (b"GNU.sparse.%d" % n for n in range(48))
    pieces = (
        tars.pax(tars.pax_record(k, b"v" * one), flag=flag) if flag != b"L" else tars.gnu_long("n" * one)
        for k in keywords
    )
    tracemalloc.start()
    try:
        outcome(b"", raw=tars.Endless(pieces), reopen=False, on_error=policy)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB


BAD_PAX = {
    "length too large": b"99 path=b.txt\n",
    "length too small": b"5 path=b.txt\n",
    "length zero": b"0 path=b.txt\n",
    "negative length": b"-14 path=b.txt\n",
    "plus": b"+14 path=b.txt\n",
    "no length": b"path=b.txt\n",
    "no equals": b"13 pathb.txt\n",
    "no line end": b"14 path=b.txtX",
    "mtime without a line end": b"14 mtime=1.25X",
    "no keyword": b"9 =b.txt\n",
    "no blank": b"14path=b.txt\n",
    "length of many digits": b"9" * 30 + b" path=b.txt\n",
    "unicode digits": "٣ a=\n".encode(),
    "length that ends in the keyword": b"4 path=b.txt\n",
    "second record damaged": tars.pax_record("mtime", "1") + b"99 path=b.txt\n",
    "length one short": b"12 path=b.txt\n",
    "length one long": tars.pax_record("mtime", "1").replace(b"11 ", b"12 ") + tars.pax_record("path", "b.txt"),
}


@both_paths
@pytest.mark.parametrize("flag", [b"x", b"g"])
@pytest.mark.parametrize("records", BAD_PAX.values(), ids=BAD_PAX.keys())
def test_a_damaged_pax_record_is_a_header_error(records, flag, fast):
    data = tars.member("a.txt", b"1") + tars.pax(records, flag=flag) + tars.ustar([("x.txt", b"2")])
    error = outcome(data, fast=fast).error
    assert isinstance(error, HeaderError)
    assert error.offset == 1024


@both_paths
def test_pax_records_that_look_like_an_mtime_only_are_read_in_full(fast):
    """One record whose value has a line end in it lets the name alone; two records, of which one is a path, do not."""
    inner = b"\n" + tars.pax_record("path", "evil.txt").rstrip(b"\n")
    for records, name in (
        (tars.pax_record("mtime", b"1" + inner), "a"),
        (tars.pax_record("mtime", b"1") + tars.pax_record("path", "b.txt"), "b"),
        (tars.pax_record("path", "b.txt") + tars.pax_record("mtime", b"1"), "b"),
        (tars.pax_record("mtimes", b"1"), "a"),
    ):
        data = tars.pax(records) + tars.ustar([("a.txt", b"1")])
        assert [s["__key__"] for s in read(data, fast=fast)] == [name]


@both_paths
def test_a_pax_header_goes_to_the_next_member_only(fast):
    data = tars.pax(tars.pax_record("path", "b.txt")) + tars.ustar([("x", b"1"), ("c.txt", b"2")])
    assert [s["__key__"] for s in read(data, fast=fast)] == ["b", "c"]


@both_paths
def test_of_several_extension_headers_the_last_word_counts_as_for_go_and_posix(fast):
    data = (
        tars.pax(tars.pax_record("path", "b.txt"))
        + tars.pax(tars.pax_record("path", "c.txt"), tars.pax_record("path", "d.txt"))
        + tars.ustar([("x", b"1")])
    )
    assert [s["__key__"] for s in read(data, fast=fast)] == ["d"]


# Kinds


@both_paths
def test_links_and_devices_are_told_by_kind_and_never_followed(tmp_path, fast):
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"secret")
    os.mkfifo(tmp_path / "pipe.txt")
    odd = [
        tars.header("a.txt", flag=b"2", link=os.fsencode(secret)),
        tars.header("b.txt", flag=b"2", link=b"../../etc/passwd"),
        tars.header(os.fsencode(tmp_path / "pipe.txt"), flag=b"6"),
        tars.header("c.txt", flag=b"3"),
        tars.header("d.txt", flag=b"4"),
        tars.header("e/", flag=b"5"),
    ]
    data = b"".join(odd) + tars.END
    assert [kind for _, kind in kinds(data)] == ["symlink", "symlink", "fifo", "device", "device", "directory"]
    found = outcome(data, fast=fast)
    assert (found.records, found.error) == ([], None)
    assert found.tally.skipped == {"symlink": 2, "fifo": 1, "device": 2, "directory": 1}


@pytest.mark.parametrize("target", ["/etc/hostname", "../a.txt", "b.txt", "nowhere.txt", "", "d/"])
def test_a_hard_link_to_anything_but_an_earlier_member_is_an_error(target):
    data = tars.member("z", b"") + tars.header("b.txt", flag=b"1", link=target.encode()) + tars.ustar([("c.txt", b"")])
    found = outcome(data)
    assert found.reason == "hard-link"
    assert [s["__key__"] for s in outcome(data, on_error="skip").records] == ["c"]


def test_a_circle_of_hard_links_is_an_error():
    data = (
        tars.header("a.txt", flag=b"1", link=b"b.txt")
        + tars.header("b.txt", flag=b"1", link=b"a.txt")
        + tars.header("a.cls", flag=b"1", link=b"a.txt")
        + tars.END
    )
    assert outcome(data).reason == "hard-link"


def test_a_hard_link_to_a_symlink_does_not_follow_it():
    data = (
        tars.header("a.txt", flag=b"2", link=b"/etc/hostname")
        + tars.header("b.txt", flag=b"1", link=b"a.txt")
        + tars.END
    )
    assert outcome(data).reason == "hard-link"


@both_paths
def test_types_that_no_standard_knows_are_passed_over_with_their_data(fast):
    data = b"".join(tars.member(f"{n}.txt", b"d" * 600, flag=bytes([n])) for n in b"VMNDA*8\xff") + tars.ustar(
        [("z.txt", b"2")]
    )
    found = outcome(data, fast=fast)
    assert found.records == [{"__key__": "z", "txt": b"2"}]
    assert sum(found.tally.skipped.values()) == 8


# Bombs, in a process whose address space has a limit


def bounded(script: str, tmp_path, *, spare_mib: int = 64) -> str:
    """Run a script that may take only so much more memory than its imports did; what it printed."""
    prelude = f"""
        import io, resource, sys
        from tarmill.errors import FormatError
        from tarmill.formats.compression import decompress
        from tarmill.formats.samples import ReadOptions, Tally
        from tarmill.formats.tar_read import iter_samples
        def run(path, **options):
            tally = Tally()
            try:
                raw, codec = decompress(io.FileIO(path), shard="bomb")
                keys = [sample["__key__"] for sample in iter_samples(raw, "bomb", ReadOptions(**options), tally)]
                return codec, keys, "fine", dict(tally.skipped)
            except FormatError as error:
                return codec, type(error).__name__, error.reason
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + {spare_mib << 20}
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def gzip_of(path, head: bytes, zeros_mib: int, tail: bytes) -> None:
    """Write a gzip file with that many MiB of zeros in it, by one small piece over and over."""
    step = min(64, zeros_mib)
    piece = gzip.compress(bytes(step * MIB), mtime=0)
    with path.open("wb") as file:
        file.write(gzip.compress(head, mtime=0))
        for _ in range(zeros_mib // step):
            file.write(piece)
        file.write(gzip.compress(tail, mtime=0))


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc and RLIMIT_AS of Linux")
A_TXT = tars.ustar([("a.txt", b"1")])
BOMBS = {
    "a member to load": (True, tars.END, {"max_member_bytes": 16 * MIB}, "('gz', 'LimitError', 'too-large')"),
    "a member not wanted": (True, A_TXT, {"load": frozenset({"txt"})}, "('gz', ['a'], 'fine', {})"),
    "zero blocks": (False, A_TXT, {}, "('gz', ['a'], 'fine', {})"),
}


def gzip_bomb(tmp_path, what: str, mib: int) -> None:
    is_member, tail, options, expected = BOMBS[what]
    head = tars.header("a.bin", size_field=tars.base256(mib * MIB, 12)) if is_member else tars.ustar([])
    gzip_of(tmp_path / "b.tgz", head, mib, tail)
    assert bounded(f'print(run("b.tgz", **{options}))', tmp_path) == expected


@needs_proc
@pytest.mark.parametrize("what", BOMBS)
def test_a_gzip_bomb_takes_bounded_memory(tmp_path, what):
    gzip_bomb(tmp_path, what, 512)


@needs_proc
@pytest.mark.long
@pytest.mark.parametrize("what", BOMBS)
def test_a_gzip_bomb_of_10_gib_takes_bounded_memory(tmp_path, what):
    gzip_bomb(tmp_path, what, 10 * 1024 if what != "zero blocks" else 3 * 1024)  # block by block takes its time


@needs_proc
def test_a_gzip_bomb_of_one_sparse_member_is_too_large(tmp_path):
    (tmp_path / "b.tgz").write_bytes(gzip.compress(tars.old_gnu_sparse("s.bin", [], b"", 2**33) + tars.END))
    assert bounded('print(run("b.tgz"))', tmp_path) == "('gz', 'LimitError', 'too-large')"


@needs_proc
def test_a_gzip_bomb_in_the_pax_header_is_refused(tmp_path):
    gzip_of(tmp_path / "b.tgz", tars.header("x", 1 << 30, flag=b"x"), 1024, tars.END)
    assert bounded('print(run("b.tgz"))', tmp_path) == "('gz', 'HeaderError', 'too-large')"
