"""What holds for all tars: reader == tarfile, fast path == slow path, what is written is what is read."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support import tars
from support.tar_reading import Outcome, listing, outcome, read, values_outcome

from tarmill.errors import ScriptError
from tarmill.formats import tar_window
from tarmill.formats.samples import ReadOptions, Tally
from tarmill.formats.tar_values import iter_values
from tarmill.formats.tar_write import TarSink, check_key

needs_gnu_tar = pytest.mark.skipif(tars.gnu_tar_command() is None, reason="GNU tar is not on this machine")

# Each example reads several tars several times: a third of the examples that other properties get is enough.
MODEST = settings.default.max_examples // 3  # type: ignore[union-attr]
modest = settings(max_examples=MODEST)

# Names: any bytes but NUL, as str with surrogate escapes. Parts of ASCII, of unicode, of bytes that are no UTF-8.
odd_bytes = st.binary(min_size=1, max_size=12).map(lambda b: os.fsdecode(b.replace(b"\0", b"0")))
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
plain = st.text("abcXYZ019-_ =", min_size=1, max_size=8)
letters = st.one_of(plain, texts, odd_bytes)
long_runs = st.builds(lambda c, n: c * n, st.sampled_from("nüß目"), st.integers(20, 120))


def without(characters: str, parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return parts.map(lambda s: "".join("_" if c in characters else c for c in s))


folders = st.lists(without("/", st.one_of(letters, long_runs)), max_size=3).map("/".join)
# A field may not begin with "__": such names are the tools' own, and left out when written.
stems = without("/.", st.one_of(letters, letters, letters, long_runs))
fields = without(
    "/", st.one_of(plain, letters, st.sampled_from(["jpg", "seg.jpg", "key", "txt", "cls", "a.b.c", ".", ".x"]))
)
fields = fields.filter(lambda name: not name.startswith("__"))
keys = st.builds(lambda folder, stem: f"{folder}/{stem}" if folder else stem, folders, stems).filter(
    lambda k: not k.startswith("__") and "//" not in f"{k}/" and not k.startswith("/")
)
sizes = st.one_of(
    st.integers(0, 2000), st.builds(lambda blocks, d: max(0, 512 * blocks + d), st.integers(0, 4), st.integers(-2, 2))
)
bodies = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda n, seed: (seed + bytes(n))[:n], sizes, st.binary(min_size=1, max_size=8)),
)


@st.composite
def shards(draw: st.DrawFn, max_samples: int = 6) -> list[tuple[str, bytes]]:
    """Draw (name, contents) of proper samples: members adjacent, keys different, fields in any order."""
    pairs = []
    for key in draw(st.lists(keys, max_size=max_samples, unique_by=os.fsencode)):
        names = draw(st.lists(fields, min_size=1, max_size=3, unique_by=os.fsencode))
        pairs += [(f"{key}.{field}", draw(bodies)) for field in names]
    return pairs


chunk_sizes = st.one_of(st.none(), st.lists(st.integers(1, 3000), min_size=1, max_size=4))


def agrees_with_tarfile(data: bytes, pairs: list[tuple[str, bytes]], chunks: list[int] | None) -> None:
    assert tars.tarfile_listing(data) == pairs
    assert listing(data) == pairs
    expected = tars.samples_of(pairs)
    assert read(data, chunks) == expected
    assert read(data, chunks, fast=False) == expected


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
@modest
@given(pairs=shards(), chunks=chunk_sizes, mtime=st.sampled_from([0, 1.25, -1, 2**40]))
def test_reader_equals_tarfile_on_what_tarfile_writes(format, pairs, chunks, mtime):
    agrees_with_tarfile(tars.by_tarfile(pairs, format, mtime=mtime), pairs, chunks)


@modest
@given(pairs=shards(), chunks=chunk_sizes)
def test_reader_equals_tarfile_on_ustar(pairs, chunks):
    try:
        data = tars.by_tarfile(pairs, tarfile.USTAR_FORMAT)
    except ValueError:  # the name does not fit
        assume(False)
    agrees_with_tarfile(data, pairs, chunks)


@modest
@given(pairs=shards(), chunks=chunk_sizes, mtime=st.sampled_from([None, 0, 1]))
def test_reader_equals_tarfile_on_what_webdataset_writes(pairs, chunks, mtime):
    samples = tars.samples_of(pairs)
    assume(not any(field[0] == "_" for sample in samples for field in sample if field != "__key__"))  # it drops those
    data = tars.by_webdataset(samples, mtime=mtime)
    agrees_with_tarfile(data, tars.tarfile_listing(data), chunks)
    assert read(data) == samples


@needs_gnu_tar
@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
@settings(max_examples=max(5, MODEST // 8))
@given(pairs=shards(max_samples=4))
def test_reader_equals_tarfile_on_what_gnu_tar_writes(tmp_path_factory, format, pairs):
    folder = tmp_path_factory.mktemp("files")
    longest = {"v7": 99, "ustar": 100}.get(format, 4000)
    for name, body in pairs:
        # What this file system and this format take; a folder cannot have the name of a file.
        parts = os.fsencode(name).split(b"/")
        if len(os.fsencode(name)) > longest or any(len(p) > 250 or p in (b".", b"..", b"") for p in parts):
            continue
        try:
            tars.put_files(folder, [(name, body)])
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
    assume(any(folder.iterdir()))
    data = tars.by_gnu_tar(folder, f"--format={format}")
    pairs = tars.tarfile_listing(data)
    assert listing(data) == pairs
    assert read(data, on_error="ignore") == read(data, on_error="ignore", fast=False)


# Members of every kind and dialect in any order, also such as make no proper samples


def hand_made(draw: st.DrawFn, name: str, body: bytes) -> bytes:
    raw = os.fsencode(name)
    short = raw[:100]
    kind = draw(st.integers(0, 12))
    if kind <= 3 and len(raw) <= 100:
        return tars.member(raw, body, magic=[tars.POSIX_MAGIC, tars.GNU_MAGIC, tars.V7_MAGIC, tars.POSIX_MAGIC][kind])
    if kind == 4:
        return tars.pax(tars.pax_record("mtime", "1.5")) + tars.member(short, body)
    if kind == 5:
        return tars.pax(tars.pax_record("mtime", "1.5"), tars.pax_record("path", raw)) + tars.member(short, body)
    if kind == 6:
        return tars.gnu_long(raw) + tars.member(short, body, magic=tars.GNU_MAGIC)
    if kind == 7:
        return tars.header(short, size_field=tars.base256(len(body), 12)) + tars.padded(body)
    if kind == 8:
        return tars.header(short, flag=draw(st.sampled_from([b"2", b"3", b"4", b"5", b"6"])), link=b"x")
    if kind == 9 and b"/" in short[1:]:
        prefix, _, rest = short.rpartition(b"/")
        return tars.member(rest, body, prefix=prefix)
    if kind == 10:
        return tars.old_gnu_sparse(short, [(len(body), len(body))], body, 3 * len(body)) if body else tars.member(short)
    if kind == 11:
        return tars.END + tars.member(short, body)
    if kind == 12:
        return tars.pax(tars.pax_record("comment", "c"), flag=b"g") + tars.member(short, body)
    return tars.member(short, body)


few_keys = st.one_of(st.sampled_from(["a", "b", "d/a", "c"]), st.sampled_from(["a", "b"]), keys)
few_fields = st.one_of(st.sampled_from(["txt", "cls", "key", "__key__"]), fields)


@st.composite
def mixtures(draw: st.DrawFn) -> bytes:
    """Draw a tar of many dialects whose keys and fields come again, in a row or not, whole or cut."""
    count = draw(st.integers(0, 12))
    blocks = [hand_made(draw, f"{draw(few_keys)}.{draw(few_fields)}", draw(bodies)) for _ in range(count)]
    data = b"".join(blocks) + tars.END
    if draw(st.booleans()):
        return data
    if draw(st.booleans()):
        return data[: draw(st.integers(0, len(data)))]
    at = draw(st.integers(0, len(data) - 1))
    return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]


def told(found: Outcome) -> tuple:
    """What a caller sees; the counts of a shard that failed are published by nobody, and a fast reader counts ahead."""
    tally = found.tally
    counts = (
        tally.samples,
        tally.members,
        tally.skipped,
        tally.dropped,
        tally.kept_damaged,
        tally.unread,
        tally.duplicate_keys,
    )
    return (
        found.records,
        type(found.error),
        found.reason,
        found.error.message if found.error else None,
        None if found.error else counts,
        found.rejections,
    )


policies = st.sampled_from(["fail", "skip", "stop", "ignore"])
loads = st.sampled_from([None, None, frozenset({"txt"}), frozenset({"cls", "key"}), frozenset()])


@modest
@given(
    data=mixtures(),
    policy=policies,
    load=loads,
    size=st.booleans(),
    chunks=chunk_sizes,
    limit=st.sampled_from([600, 1 << 30]),
)
def test_fast_path_equals_slow_path_in_records_errors_and_counts(data, policy, load, size, chunks, limit):
    options = {"on_error": policy, "load": load, "sizes": size, "max_member_bytes": limit}
    assert told(outcome(data, chunks, fast=True, **options)) == told(outcome(data, chunks, fast=False, **options))


@contextmanager
def small_steps() -> Iterator[None]:
    """Let the window jump, and read contents directly, where the shards of these tests are large enough for it."""
    with mock.patch.multiple(tar_window, _SHORT_FILL=600, _FIRST_FILL=1100, _LEAP_FILL=700, _DIRECT_BYTES=50):
        yield


@modest
@given(data=mixtures(), policy=policies, load=loads, size=st.booleans())
def test_reading_at_offsets_changes_nothing(data, policy, load, size):
    options = {"on_error": policy, "load": load, "sizes": size}
    with small_steps():
        found = outcome(data, raw=tars.AtOffsets(data), **options)
    assert told(found) == told(outcome(data, fast=False, **options))


@modest
@given(
    data=mixtures(),
    field=st.sampled_from(["txt", "cls", "a.b"]),
    chunks=chunk_sizes,
    at_offsets=st.booleans(),
    limit=st.sampled_from([600, 1 << 30]),
)
def test_one_field_read_without_records_is_that_of_the_records(data, field, chunks, at_offsets, limit):
    options = {"max_member_bytes": limit}
    raw = tars.AtOffsets(data) if at_offsets else io.BytesIO(data) if chunks is None else tars.Trickle(data, chunks)
    with small_steps():
        found = values_outcome(data, field, raw, **options)
    expected = outcome(data, fast=False, load=frozenset([field]), **options)
    expected.records = [{field: r[field]} if field in r else r for r in expected.records]
    if expected.error is None:
        assert told(found) == told(expected)
        return
    # what came before an error is published by nobody; a value may be told before its sample was found to be bad
    assert (type(found.error), found.error.message) == (type(expected.error), expected.error.message)


def test_values_of_plain_samples_come_in_batches_and_samples_without_the_field_as_records():
    pairs = [
        (f"{n:05d}.{field}", b"%d" % n) for n in range(1200) for field in ("cls", "txt") if n != 700 or field == "cls"
    ]
    batches = list(iter_values(tars.AtOffsets(tars.ustar(pairs)), "s.tar", "txt", ReadOptions(), Tally()))
    sizes = [len(batch) if isinstance(batch, list) else batch["__key__"] for batch in batches]
    lacking = sizes.index("00700")
    assert sum(sizes[:lacking]) == 700
    assert sum(sizes[lacking + 1 :]) == 499
    assert 400 < max(sizes[:lacking]) <= 512


@modest
@given(data=mixtures(), policy=policies, load=loads, chunks=chunk_sizes)
def test_how_bytes_are_handed_out_changes_nothing(data, policy, load, chunks):
    options = {"on_error": policy, "load": load}
    assert told(outcome(data, chunks or [1], **options)) == told(outcome(data, **options))


@modest
@given(data=mixtures(), policy=policies, load=loads)
def test_every_reading_balances_and_ends_in_an_error_or_a_count(data, policy, load):
    found = outcome(data, on_error=policy, load=load)
    tally = found.tally
    if policy == "fail":
        return
    assert found.error is None
    assert tally.samples == len(found.records) + sum(tally.dropped.values())
    told_of = sum(tally.dropped.values()) - tally.dropped["after-stop"] + sum(tally.kept_damaged.values())
    assert len(found.rejections) == told_of + sum(tally.unread.values())
    assert [r.kept for r in found.rejections].count(True) == sum(tally.kept_damaged.values())


@modest
@given(data=mixtures())
def test_the_policies_agree_about_what_is_wrong(data):
    fail, skip, ignore = (outcome(data, on_error=policy) for policy in ("fail", "skip", "ignore"))
    wrong = bool(skip.tally.dropped or skip.tally.unread)
    assert bool(fail.error) == wrong == bool(ignore.tally.kept_damaged or ignore.tally.unread or ignore.tally.dropped)
    if not wrong:
        assert fail.records == skip.records == ignore.records
    assert skip.records[: len(fail.records)] == fail.records, "fail hands on only what skip hands on too"
    assert skip.tally.samples == ignore.tally.samples


@modest
@given(data=st.binary(max_size=3000), policy=policies)
@example(data=b"\0" * 512 + b"a" * 512, policy="fail")
def test_any_bytes_give_an_error_or_nothing_but_never_another_exception(data, policy):
    found = outcome(data, on_error=policy)
    if data.strip(b"\0") or len(data) < 512:
        assert found.error is not None if policy == "fail" else found.tally.unread


@modest
@given(field=st.integers(0, 511), value=st.binary(min_size=1, max_size=24), policy=policies)
def test_any_value_in_a_header_with_a_checksum_that_holds_is_read_or_refused(field, value, policy):
    """What an attacker may write: every field, with the right checksum behind it."""
    block = tars.header("a.txt", 5)
    block = tars.resum((block[:field] + value + block[field + len(value) :])[:512])
    data = tars.member("a.cls", b"0") + block + tars.padded(b"12345") + tars.ustar([("b.txt", b"")])
    assert told(outcome(data, on_error=policy)) == told(outcome(data, on_error=policy, fast=False))


# Writing


def written(samples: list[dict]) -> bytes:
    out = io.BytesIO()
    sink = TarSink(out.write)
    for sample in samples:
        sink.add(sample)
    sink.finish()
    return out.getvalue()


@modest
@given(pairs=shards())
def test_what_is_written_is_read_back_by_all(pairs):
    samples = tars.samples_of(pairs)
    data = written(samples)
    by_name = [(f"{s['__key__']}.{f}", s[f]) for s in samples for f in sorted(s, key=os.fsencode) if f != "__key__"]
    assert tars.tarfile_listing(data) == by_name
    assert read(data) == read(data, fast=False) == samples
    if all(name == name.encode("utf-8", "replace").decode() for name, _ in pairs):  # it reads no other bytes in names
        lower = [{k if k == "__key__" else k.lower(): v for k, v in s.items()} for s in samples]
        if all(len(low) == len(s) for low, s in zip(lower, samples, strict=True)):
            assert tars.webdataset_listing(data) == lower


@modest
@given(pairs=shards())
def test_reading_and_writing_again_gives_the_same_bytes(pairs):
    data = written(tars.samples_of(pairs))
    assert written(read(data)) == data


@modest
@given(pairs=shards())
def test_headers_before_a_member_are_there_only_where_its_name_does_not_fit(pairs):
    data = written(tars.samples_of(pairs))
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        for entry in archive:
            raw = os.fsencode(entry.name)
            splits = (i for i in range(len(raw)) if raw[i : i + 1] == b"/")
            fits = len(raw) <= 100 or any(0 < i <= 155 and 0 < len(raw) - i - 1 <= 100 for i in splits)
            assert (entry.offset_data - entry.offset == 512) == fits, entry.name


@modest
@given(
    key=st.one_of(st.text(max_size=12), st.text("ab./_\0", max_size=8)),
    field=st.one_of(fields, st.text("ab._/\0", max_size=6)),
)
@example(key="d/", field="txt")
@example(key="a", field="")
@example(key="a", field=".")
def test_any_sample_is_refused_or_read_back_as_itself(key, field):
    """Nothing that a script returns is lost or renamed by writing it."""
    assume(not field.startswith("__"))  # names of the tools' own, left out as said
    sample = {"__key__": key, field: b"1"}
    try:
        check_key(key)
        data = written([sample])
    except ScriptError:
        return
    assert read(data) == [sample]
