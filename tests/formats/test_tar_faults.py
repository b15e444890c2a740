"""Shards that were cut, flipped, doubled or mixed up: nothing is lost in silence, under any policy."""

from __future__ import annotations

import gzip
import io
import random

import pytest
from support import tars
from support.tar_reading import Outcome, outcome

from tarmill.errors import CompressionError, HeaderError, SampleError, TruncatedError
from tarmill.formats import compression

POLICIES = ["fail", "skip", "stop", "ignore"]
both_paths = pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])

PAIRS = [
    ("a.cls", b"0"),
    ("a.txt", b"alpha" * 110),
    ("b.cls", b"1"),
    ("b.txt", b""),
    ("c.cls", b"2"),
    ("c.txt", b"t" * 512),
]
SAMPLES = tars.samples_of(PAIRS)
END_OF_LAST_MEMBER = len(tars.ustar(PAIRS, end=b""))

DIALECTS = {
    "plain": tars.ustar(PAIRS, end=b""),
    "webdataset": b"".join(tars.pax(tars.pax_record("mtime", "1.25")) + tars.member(*p) for p in PAIRS),
    "gnu long names": b"".join(tars.gnu_long(n) + tars.member("x", b, magic=tars.GNU_MAGIC) for n, b in PAIRS),
    "pax path and size": b"".join(
        tars.pax(tars.pax_record("path", n), tars.pax_record("size", len(b)))
        + tars.header("x", size_field=tars.octal(0, 12))
        + tars.padded(b)
        for n, b in PAIRS
    ),
    "old gnu sparse": b"".join(
        tars.old_gnu_sparse(n, [(i, 1) for i in range(len(b))][:30] + [(30, len(b) - 30)] * (len(b) > 30), b, len(b))
        for n, b in PAIRS
    ),
}


def header_offsets(pairs: tars.Pairs) -> list[int]:
    offsets, at = [], 0
    for _, body in pairs:
        offsets.append(at)
        at += 512 + len(tars.padded(body))
    return offsets


def complete_prefix(found: Outcome, expected: list) -> None:
    """Check that what was handed on are the first samples, each as it was written."""
    assert found.records == expected[: len(found.records)]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_uncut_shards_have_nothing_wrong(dialect):
    assert outcome(DIALECTS[dialect] + tars.END).records == SAMPLES


# Cuts


@both_paths
@pytest.mark.parametrize("load", [None, frozenset({"cls"}), frozenset()], ids=["all", "one", "none"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_cut_at_any_byte_is_an_error_unless_an_end_block_is_left(dialect, load, fast):
    body = DIALECTS[dialect]
    whole = body + tars.END
    step = 1 if dialect == "plain" and load is None and fast else 29
    offsets = {*range(0, len(whole), step), *range(0, len(whole), 512)}
    offsets |= {at + shift for at in range(512, len(whole) - 1, 512) for shift in (-1, 1)}
    expected = [{k: v for k, v in s.items() if k == "__key__" or load is None or k in load} for s in SAMPLES]
    for cut in sorted(offsets):
        found = outcome(whole[:cut], fast=fast, load=load)
        if cut >= len(body) + 512:
            assert (found.error, found.records) == (None, expected), cut
        else:
            assert isinstance(found.error, TruncatedError), cut
            assert found.error.shard == "shard-000.tar"
            complete_prefix(found, expected)


@both_paths
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("chunks", [None, (100,)], ids=["seekable", "stream"])
def test_a_cut_under_every_policy_keeps_whole_samples_and_tells(policy, chunks, fast):
    whole = tars.ustar(PAIRS)
    for cut in range(0, END_OF_LAST_MEMBER + 512, 37):
        found = outcome(whole[:cut], chunks, fast=fast, on_error=policy)
        if policy == "fail":
            assert isinstance(found.error, TruncatedError), cut
            complete_prefix(found, SAMPLES)
            continue
        assert found.error is None, cut
        assert found.tally.unread == {"truncated": 1}, cut
        assert any(r.reason == "truncated" and not r.kept for r in found.rejections)
        if policy == "ignore" and found.tally.kept_damaged:
            assert found.tally.kept_damaged == {"truncated": 1}
            damaged = found.records.pop()
            assert damaged.items() <= SAMPLES[len(found.records)].items(), "only what was read, and as it was written"
            assert len(damaged) > 1
        complete_prefix(found, SAMPLES)
        ends_of_samples = (header_offsets(PAIRS)[2], header_offsets(PAIRS)[4])
        assert len(found.records) == sum(cut >= end + 512 for end in ends_of_samples), "all that another header follows"


@both_paths
def test_a_cut_at_a_member_boundary_is_told_as_a_missing_end_mark(fast):
    error = outcome(tars.ustar(PAIRS, end=b""), fast=fast).error
    assert isinstance(error, TruncatedError)
    assert str(END_OF_LAST_MEMBER) in str(error)
    assert "end mark" in str(error)


@both_paths
def test_an_empty_file_is_truncated(fast):
    assert outcome(b"", fast=fast).reason == "truncated"
    assert outcome(b"", fast=fast, on_error="skip").tally.unread == {"truncated": 1}


@both_paths
@pytest.mark.parametrize("load", [None, frozenset({"cls"})], ids=["all", "one"])
@pytest.mark.parametrize("chunks", [None, (65_536,)], ids=["seekable", "stream"])
def test_a_cut_inside_a_member_larger_than_the_window(chunks, load, fast):
    data = tars.ustar([("a.cls", b"0"), ("a.bin", bytes(3 << 20)), ("b.cls", b"1")])
    for cut in (2000, 600_000, 1 << 20, (3 << 20) + 1535, (3 << 20) + 1536, len(data) - 1024):
        found = outcome(data[:cut], chunks, fast=fast, load=load)
        assert isinstance(found.error, TruncatedError), cut
        assert len(found.records) <= 1


def test_the_second_of_two_concatenated_tars_may_not_be_cut():
    first = tars.ustar(PAIRS[:2])
    for cut in range(1, END_OF_LAST_MEMBER, 101):
        second = tars.ustar(PAIRS[2:])[:cut]
        found = outcome(first + second)
        if cut <= len(tars.ustar(PAIRS[2:], end=b"")):
            assert isinstance(found.error, (TruncatedError, HeaderError)), cut
        assert found.records[:1] == SAMPLES[:1]


def gunzipped(data: bytes, **options) -> Outcome:
    """Read a compressed shard as the jobs do; errors of decompression come out of the reader."""
    try:
        raw, _ = compression.decompress(io.BytesIO(data), shard="shard-000.tar")
    except (CompressionError, TruncatedError) as error:
        found = outcome(tars.ustar([]), **options)
        found.error = error
        return found
    return outcome(b"", raw=raw, reopen=False, **options)


def test_a_cut_at_any_byte_of_a_gzip_shard_is_an_error():
    rng = random.Random(5)
    pairs = [(name, rng.randbytes(len(body))) for name, body in PAIRS]
    expected = tars.samples_of(pairs)
    data = gzip.compress(tars.ustar(pairs), mtime=0)
    assert gunzipped(data).records == expected
    for cut in range(len(data)):
        found = gunzipped(data[:cut])
        assert isinstance(found.error, (TruncatedError, CompressionError)), cut
        complete_prefix(found, expected)


def test_a_cut_of_a_gzip_shard_of_several_members_is_an_error_also_between_them():
    tar = tars.ustar(PAIRS)
    for at in (700, 2048, END_OF_LAST_MEMBER - 512, END_OF_LAST_MEMBER):
        first, second = gzip.compress(tar[:at], mtime=0), gzip.compress(tar[at:], mtime=0)
        assert gunzipped(first + second).records == SAMPLES
        for cut in (*range(0, len(first) + len(second), 3), len(first)):
            found = gunzipped((first + second)[:cut])
            assert isinstance(found.error, (TruncatedError, CompressionError)), (at, cut)
            complete_prefix(found, SAMPLES)


@pytest.mark.parametrize("policy", ["skip", "stop", "ignore"])
def test_a_cut_gzip_under_every_policy_keeps_whole_samples_and_tells(policy):
    data = gzip.compress(tars.ustar(PAIRS), mtime=0)
    raw, _ = compression.decompress(io.BytesIO(data[:-6]), shard="shard-000.tar")
    found = outcome(b"", raw=raw, reopen=False, on_error=policy)
    assert found.error is None
    assert sum(found.tally.unread.values()) == 1
    complete_prefix(found, SAMPLES)


# Damage


@both_paths
@pytest.mark.parametrize("number", range(4))
def test_every_flipped_bit_of_a_header_is_an_error(number, fast):
    whole = bytearray(tars.ustar(PAIRS[:4]))
    expected = tars.samples_of(PAIRS[:4])
    start = header_offsets(PAIRS)[number]
    step = 1 if fast else 7
    harmless = 0
    for bit in range(0, 512 * 8, step):
        at, mask = start + bit // 8, 1 << bit % 8
        whole[at] ^= mask
        found = outcome(bytes(whole), fast=fast)
        whole[at] ^= mask
        if found.error is None:  # only how the checksum itself is padded may change without a change of meaning
            assert 148 <= bit // 8 < 156, bit
            assert found.records == expected
            harmless += 1
        else:
            assert isinstance(found.error, HeaderError), bit
            assert found.error.offset == start, bit
            complete_prefix(found, expected)
    assert harmless < 30


@both_paths
def test_every_flipped_bit_of_a_pax_header_block_is_an_error(fast):
    mtime = tars.pax(tars.pax_record("mtime", "1.25"))
    whole = bytearray(mtime + tars.member("a.cls", b"0") + mtime + tars.member("a.txt", b"1") + tars.END)
    assert whole[2048 + 156 : 2048 + 157] == b"x"
    for bit in range(0, 512 * 8, 3):
        whole[2048 + bit // 8] ^= 1 << bit % 8
        found = outcome(bytes(whole), fast=fast)
        whole[2048 + bit // 8] ^= 1 << bit % 8
        if found.error is None:
            assert 148 <= bit // 8 < 156, bit
            assert found.records == [{"__key__": "a", "cls": b"0", "txt": b"1"}]


@both_paths
def test_every_flipped_bit_of_the_end_mark_is_an_error(fast):
    whole = bytearray(tars.ustar(PAIRS))
    for bit in range(0, 1024 * 8, 5):
        whole[END_OF_LAST_MEMBER + bit // 8] ^= 1 << bit % 8
        found = outcome(bytes(whole), fast=fast)
        whole[END_OF_LAST_MEMBER + bit // 8] ^= 1 << bit % 8
        assert isinstance(found.error, HeaderError), bit
        assert found.reason == ("bad-header" if bit < 512 * 8 else "garbage")
        complete_prefix(found, SAMPLES)


@both_paths
@pytest.mark.parametrize("policy", ["skip", "stop", "ignore"])
@pytest.mark.parametrize("number", range(6))
def test_a_damaged_header_under_every_policy_keeps_what_came_before(number, policy, fast):
    whole = bytearray(tars.ustar(PAIRS))
    whole[header_offsets(PAIRS)[number] + 3] ^= 0x10
    found = outcome(bytes(whole), fast=fast, on_error=policy)
    assert found.error is None
    assert found.tally.unread == {"bad-header": 1}
    # What stands right before the damage may lack its last fields: it is not among the whole ones.
    whole_samples = max(0, (number - 1) // 2)
    if policy == "ignore" and number:
        assert found.records[:whole_samples] == SAMPLES[:whole_samples]
        partial = found.records[whole_samples]
        assert partial.items() <= SAMPLES[whole_samples].items()
        assert found.tally.kept_damaged == {"bad-header": 1}
    else:
        assert found.records == SAMPLES[:whole_samples]


@both_paths
@pytest.mark.parametrize("policy", ["skip", "stop", "ignore"])
def test_rejections_name_shard_key_and_reason(policy, fast):
    whole = bytearray(tars.ustar(PAIRS))
    whole[header_offsets(PAIRS)[3]] ^= 1
    found = outcome(bytes(whole), fast=fast, on_error=policy)
    assert {r.shard for r in found.rejections} == {"shard-000.tar"}
    assert ("b", "bad-header", policy == "ignore") in [(r.key, r.reason, r.kept) for r in found.rejections]


@both_paths
@pytest.mark.parametrize("policy", ["fail", "skip"])
@pytest.mark.parametrize(
    "garbage",
    [b"x", b"\0" * 511 + b"x", b"\0" * 512 + b"x", b"garbage" * 100, b"\xff" * 512, b"\0" + b"\xff" * 512, b"\n"],
    ids=["byte", "late byte", "byte after a block", "text", "block", "shifted", "newline"],
)
def test_garbage_after_the_end_is_an_error_that_says_so(garbage, policy, fast):
    found = outcome(tars.ustar(PAIRS) + garbage, fast=fast, on_error=policy)
    assert found.records == SAMPLES
    if policy == "fail":
        assert found.reason == "garbage"
        assert "end mark" in str(found.error)
    else:
        assert found.tally.unread == {"garbage": 1}


@both_paths
@pytest.mark.parametrize("padding", [1, 511, 513, 10_239])
def test_zeros_after_the_end_are_padding(padding, fast):
    assert outcome(tars.ustar(PAIRS) + bytes(padding), fast=fast).records == SAMPLES


@pytest.mark.parametrize(
    "data", [b"PK\x03\x04" + b"zip" * 400, b"\xff\xd8" * 600, b"text\n" * 300, b"\x1f\x8b\x08" * 200]
)
@both_paths
def test_what_is_no_tar_at_all_is_an_error(data, fast):
    found = outcome(data, fast=fast)
    assert isinstance(found.error, HeaderError)
    assert (found.error.offset, found.records) == (0, [])


@both_paths
@pytest.mark.parametrize(
    "extension",
    [
        tars.pax(tars.pax_record("mtime", "1.25")),
        tars.pax(tars.pax_record("path", "b.txt")),
        tars.gnu_long("b.txt"),
        tars.gnu_long("b.txt", flag=b"K"),
    ],
    ids=["pax mtime", "pax path", "long name", "long link"],
)
def test_an_extension_header_without_its_member_is_an_error(extension, fast):
    found = outcome(tars.member("a.txt", b"1") + extension + tars.END, fast=fast)
    assert isinstance(found.error, HeaderError)
    assert isinstance(outcome(tars.member("a.txt", b"1") + extension, fast=fast).error, TruncatedError)


# Samples that are none


@both_paths
@pytest.mark.parametrize("names", ["a.cls a.cls", "a.cls a.txt a.cls", "a.cls a.txt a.txt b.cls"])
def test_a_field_that_comes_twice_is_an_error(names, fast):
    data = tars.ustar([(name, b"%d" % n) for n, name in enumerate(names.split())])
    found = outcome(data, fast=fast)
    assert isinstance(found.error, SampleError)
    assert (found.reason, found.error.key, found.records) == ("duplicate-field", "a", [])
    assert "'a'" in str(found.error)


@both_paths
@pytest.mark.parametrize("load", [frozenset({"txt"}), frozenset()])
def test_a_field_that_comes_twice_is_an_error_though_it_is_not_loaded(load, fast):
    data = tars.ustar([("a.cls", b"0"), ("a.cls", b"1"), ("a.txt", b"2")])
    assert outcome(data, fast=fast, load=load).reason == "duplicate-field"


@both_paths
def test_doubled_fields_under_the_other_policies(fast):
    data = tars.ustar([("a.t", b"0"), ("b.t", b"old"), ("b.u", b"2"), ("b.t", b"new"), ("c.t", b"4"), ("d.t", b"5")])
    skip = outcome(data, fast=fast, on_error="skip")
    assert [s["__key__"] for s in skip.records] == ["a", "c", "d"]
    assert (skip.tally.samples, skip.tally.dropped) == (4, {"duplicate-field": 1})
    stop = outcome(data, fast=fast, on_error="stop")
    assert [s["__key__"] for s in stop.records] == ["a"]
    assert (stop.tally.samples, stop.tally.dropped) == (4, {"duplicate-field": 1, "after-stop": 2})
    ignore = outcome(data, fast=fast, on_error="ignore")
    assert ignore.records[1] == {"__key__": "b", "t": b"new", "u": b"2"}
    assert [s["__key__"] for s in ignore.records] == ["a", "b", "c", "d"]
    assert (ignore.tally.dropped, ignore.tally.kept_damaged) == ({}, {"duplicate-field": 1})


INTERLEAVED = [("a.cls", b"0"), ("b.cls", b"1"), ("a.txt", b"2"), ("b.txt", b"3"), ("c.cls", b"4")]


@both_paths
def test_interleaved_members_are_an_error_that_names_the_key_and_the_cure(fast):
    error = outcome(tars.ustar(INTERLEAVED), fast=fast).error
    assert isinstance(error, SampleError)
    assert (error.reason, error.key) == ("interleaved", "a")
    assert "--sort=name" in str(error)


@both_paths
@pytest.mark.parametrize("names", ["a.cls b.cls a.txt", "a.cls b.cls b.cls", "a.cls b.txt b.cls b.txt"])
def test_the_counts_balance_also_when_a_bad_sample_ends_the_reading(names, fast):
    found = outcome(tars.ustar([(name, b"") for name in names.split()]), fast=fast)
    assert isinstance(found.error, SampleError)
    assert found.tally.yielded == len(found.records)


@both_paths
@pytest.mark.parametrize("load", [frozenset({"cls"}), frozenset({"txt"}), frozenset()], ids=str)
@pytest.mark.parametrize("sizes", [True, False])
def test_interleaved_members_are_an_error_whatever_is_loaded(load, sizes, fast):
    assert outcome(tars.ustar(INTERLEAVED), fast=fast, load=load, sizes=sizes).reason == "interleaved"


@both_paths
@pytest.mark.parametrize("again", ["s000.b", "s299.b"])
def test_the_offset_of_a_bad_sample_is_where_it_ends(again, fast):
    pairs = [(f"s{n:03}.{'ab'[n % 2]}", b"x" * 600) for n in range(300)]
    data = tars.ustar([*pairs, (again, b""), ("t000.a", b"")])
    error = outcome(data, fast=fast).error
    assert isinstance(error, SampleError)
    start, end = len(data) - 2048, len(data) - 1024
    assert start <= error.offset <= end
    assert f"byte {error.offset}" in str(error)


@both_paths
@pytest.mark.parametrize("policy", ["skip", "stop", "ignore"])
def test_interleaved_members_under_the_other_policies_balance(policy, fast):
    found = outcome(tars.ustar(INTERLEAVED), fast=fast, on_error=policy)
    assert found.tally.samples == 5
    if policy == "ignore":
        assert len(found.records) == 5
        assert found.tally.kept_damaged == {"interleaved": 2}
    else:
        expected = {"skip": {"interleaved": 2}, "stop": {"interleaved": 1, "after-stop": 2}}[policy]
        assert found.tally.dropped == expected


@both_paths
@pytest.mark.parametrize("load", [None, frozenset({"cls"}), frozenset()], ids=str)
def test_a_key_that_comes_again_with_the_same_fields_is_kept_and_counted(load, fast):
    pairs = [("a.cls", b"0"), ("a.txt", b"1"), ("b.cls", b"2"), ("a.cls", b"3"), ("a.txt", b"4")]
    found = outcome(tars.ustar(pairs), fast=fast, load=load)
    assert found.error is None
    assert [s["__key__"] for s in found.records] == ["a", "b", "a"]
    assert found.tally.duplicate_keys == 1
    assert not found.rejections


@both_paths
@pytest.mark.parametrize("policy", POLICIES)
def test_stop_counts_what_follows_and_fail_hands_on_what_came_before(policy, fast):
    pairs = [(f"{n}.txt", b"") for n in range(10)]
    pairs.insert(5, ("4.txt", b"again"))
    found = outcome(tars.ustar(pairs), fast=fast, on_error=policy)
    counts = {"fail": 4, "skip": 9, "stop": 4, "ignore": 10}
    assert len(found.records) == counts[policy]
    if policy != "fail":
        assert found.tally.samples == 10


@both_paths
@pytest.mark.parametrize("policy", POLICIES)
def test_several_faults_in_one_shard_balance(policy, fast):
    """A doubled field, an interleaved key, something too large, a link to nowhere, then a cut."""
    data = (
        tars.member("a.txt", b"1")
        + tars.member("b.txt", b"1")
        + tars.member("b.txt", b"2")
        + tars.member("c.big", b"x" * 2000)
        + tars.member("c.txt", b"1")
        + tars.header("d.txt", flag=b"1", link=b"nowhere.txt")
        + tars.member("a.cls", b"1")
        + tars.member("e.txt", b"1")
        + tars.member("f.txt", b"1")[:700]
    )
    found = outcome(data, fast=fast, on_error=policy, max_member_bytes=1000)
    assert bool(found.error) == (policy == "fail")
    keys = [s["__key__"] for s in found.records]
    if policy == "skip":
        assert found.tally.dropped == {
            "duplicate-field": 1,
            "too-large": 1,
            "hard-link": 1,
            "interleaved": 1,
            **{r: 1 for r in found.tally.dropped if r == "truncated"},
        }
        assert keys[0] == "a"
        assert set(keys) <= {"a", "e"}
    if policy == "ignore":
        assert keys[:3] == ["a", "b", "c"]
        assert found.records[2] == {"__key__": "c", "txt": b"1"}
    if policy != "fail":
        assert found.tally.unread == {"truncated": 1}
