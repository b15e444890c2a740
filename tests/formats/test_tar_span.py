"""Single samples as ranges of bytes: decoded they are the reader's records, and encoded they are read back."""

from __future__ import annotations

import io
import tarfile

import pytest
from formats.test_tar_properties import MODEST, bodies, fields, keys, shards
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support import tars
from support.tar_reading import URL

from tarmill.errors import FormatError, LimitError, SampleError
from tarmill.formats.digest import sample_digest
from tarmill.formats.index import index_shard
from tarmill.formats.keys import key_function
from tarmill.formats.samples import ReadOptions, Record
from tarmill.formats.tar_read import iter_samples
from tarmill.formats.tar_span import decode_span, encode_sample, fields_of_record, key_in_span

modest = settings(max_examples=MODEST)
MTIME = tars.pax(tars.pax_record("mtime", "1500000000.25"))
FOLDERS = ["dir_plus_file", "last_dir"]
HEAD_BYTES = 4 << 10


def spans_agree(data: bytes, key: str = "base_plus_ext") -> int:
    """Hold every range of a shard against the reader's record; give the number of samples."""
    index = index_shard(io.BytesIO(data), URL, key)
    assert not any(index.bounds)
    split = key_function(key)
    records = list(iter_samples(io.BytesIO(data), URL, ReadOptions(key)))
    for number, record in enumerate(records):
        start, length = index.starts[number], index.lengths[number]
        span = data[start : start + length]
        decoded = decode_span(span, URL, split)
        assert decoded == record
        assert list(decoded) == list(record), "the order of the fields"
        assert key_in_span(span, URL, split) == record["__key__"]
        assert key_in_span(span[:HEAD_BYTES], URL, split) == record["__key__"]
    return len(records)


NUMBER_12 = b"000000000600"
SPANS: dict[str, bytes] = {
    "ustar": tars.ustar([("a.x", b"1"), ("a.y", b""), ("a.key", b"2"), ("d/b.x", b"3" * 600)]),
    "pax mtime": MTIME + tars.member("a.x", b"1") + MTIME + tars.member("a.y", b"2") + tars.member("b.x") + tars.END,
    "old flag": tars.member("a.x", b"1", flag=b"\0") + tars.member("b.x", b"1", flag=b"7") + tars.END,
    "v7": tars.member("a.x", b"1", magic=tars.V7_MAGIC) + tars.END,
    "v7 with rubbish behind": tars.member("a.x", b"1", magic=tars.V7_MAGIC, tail=b"rubbish") + tars.END,
    "prefix": tars.member("a.x", b"1", prefix=b"folder") + tars.member("a.y", b"1", prefix=b"folder") + tars.END,
    "name of 100 bytes": tars.ustar([("a" * 98 + ".x", b"1"), ("a" * 97 + ".xy", b"2")]),
    "base-256": tars.header("a.x", size_field=tars.base256(5, 12)) + tars.padded(b"12345") + tars.END,
    "size of 12 digits": tars.header("a.x", size_field=NUMBER_12) + bytes(512) + tars.member("a.y", b"1") + tars.END,
    "size with blanks": tars.header("a.x", size_field=b"         5 \0") + tars.padded(b"12345") + tars.END,
    "size that ends early": tars.header("a.x", size_field=b"0000005\x009999") + tars.padded(b"12345") + tars.END,
    "pax path": tars.pax(tars.pax_record("path", "b.x")) + tars.member("a.x", b"1") + tars.END,
    "pax size": tars.pax(tars.pax_record("size", 5)) + tars.header("a.x") + tars.padded(b"12345") + tars.END,
    "long name": tars.gnu_long("n" * 120 + ".x") + tars.member("n" * 100, b"1", magic=tars.GNU_MAGIC) + tars.END,
    "sparse": tars.old_gnu_sparse("a.x", [(512, 1)], b"1", 1024) + tars.member("a.y", b"2") + tars.END,
    "no utf-8": tars.ustar([(b"\xff\xfe.x", b"1"), (b"\xff\xfe.\xe0", b"2"), ("ü.ä", b"3")]),
}  # fmt: skip


@pytest.mark.parametrize("data", SPANS.values(), ids=SPANS.keys())
def test_a_range_decodes_to_the_readers_record(data):
    assert spans_agree(data)


@pytest.mark.parametrize("key", [*FOLDERS, r"^(.*)_(\w+\.?\w*)$"])
def test_a_range_decodes_under_every_key_function(key):
    names = ["c/1_a.x", "c/1_b.x", "c/2_a.x"] if "(" in key else ["d/e/a.x", "d/e/.b", "d/f/a.x"]
    assert spans_agree(tars.ustar((name, b"1" * n) for n, name in enumerate(names)), key) == 2


@pytest.mark.parametrize("length", [120, 3000, 3600, 5000])
@pytest.mark.parametrize(
    "first", [tars.gnu_long, lambda name: tars.pax(tars.pax_record("path", name))], ids=["gnu", "pax"]
)
def test_a_key_is_found_in_the_head_or_known_to_be_longer(first, length):
    name = "d/" * (length // 2) + "a.x"
    span = first(name) + tars.member("short", b"1" * 9000)
    split = key_function("base_plus_ext")
    assert key_in_span(span, URL, split) == name[:-2]
    if len(first(name)) + 512 <= HEAD_BYTES:
        assert key_in_span(span[:HEAD_BYTES], URL, split) == name[:-2]
    else:
        with pytest.raises(FormatError):
            key_in_span(span[:HEAD_BYTES], URL, split)


def test_a_field_above_the_limit_is_an_error():
    split = key_function("base_plus_ext")
    span = tars.member("a.x", b"1") + tars.member("a.y", b"2" * 600)
    assert decode_span(span, URL, split, 600)["y"] == b"2" * 600
    with pytest.raises(LimitError, match="600"):
        decode_span(span, URL, split, 599)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
@modest
@given(pairs=shards(), mtime=st.sampled_from([0, 1.25]))
def test_any_sample_of_tarfile_decodes_to_the_readers_record(format, pairs, mtime):
    spans_agree(tars.by_tarfile(pairs, format, mtime=mtime))


@modest
@given(field=st.integers(0, 511), value=st.binary(min_size=1, max_size=24))
@example(field=124, value=NUMBER_12)
def test_any_header_that_the_reader_takes_decodes_alike(field, value):
    block = tars.header("a.txt", 5)
    block = tars.resum((block[:field] + value + block[field + len(value) :])[:512])
    data = tars.member("a.cls", b"0") + block + tars.padded(b"12345") + tars.ustar([("b.txt", b"")])
    try:
        index = index_shard(io.BytesIO(data), URL)
    except FormatError:
        return
    assume(not any(index.bounds))
    spans_agree(data)


# Encoding


def record_of(key: str, values: dict[str, bytes]) -> Record:
    return {"__key__": key, "__url__": URL, "key": key, **values}


def reads_back(record: Record, key: str, function: str) -> None:
    data, digest, _ = encode_sample(record, key, function)
    values = fields_of_record(record)
    assert len(data) % 512 == 0
    assert digest == sample_digest(key, values)
    assert decode_span(data, URL, key_function(function)) == record_of(key, values)
    (read,) = iter_samples(io.BytesIO(data + tars.END), URL, ReadOptions(function))
    assert read == record_of(key, values)
    assert key_in_span(data, URL, key_function(function)) == key


values = st.dictionaries(fields, bodies, min_size=1, max_size=4)


@modest
@given(key=keys, values=values)
@example(key="a", values={"key": b"1"})
@example(key="d/" * 100 + "a", values={"x": b"1", "y": b""})
def test_an_encoded_sample_is_read_back(key, values):
    reads_back(record_of(key, values), key, "base_plus_ext")


@pytest.mark.parametrize("function", FOLDERS)
@modest
@given(folder=keys, values=st.dictionaries(fields, bodies, min_size=1, max_size=3))
def test_an_encoded_sample_is_read_back_where_the_folder_is_the_key(function, folder, values):
    key = folder.rpartition("/")[2] if function == "last_dir" else folder
    assume(key)
    reads_back(record_of(key, values), key, function)


@pytest.mark.parametrize("function", ["base_plus_ext", *FOLDERS])
@given(key=st.text("a./_\0", max_size=8), field=st.text("ab._/\0", max_size=5))
@example(key="__x__", field="a")
@example(key="a/", field="b")
@example(key="a/b", field="c")
def test_a_sample_that_cannot_be_named_is_refused_and_never_lost(function, key, field):
    assume(not field.startswith("__"))
    record = record_of(key, {field: b"1"})
    try:
        encode_sample(record, key, function)
    except SampleError:
        return
    reads_back(record, key, function)


def test_a_key_by_a_regular_expression_cannot_be_written_anew():
    with pytest.raises(SampleError, match="tarmill cat"):
        encode_sample(record_of("a", {"x": b"1"}), "a", r"(.*)_(.*)")


def test_names_of_the_tools_own_are_no_fields():
    assert fields_of_record({"__key__": "a", "__part__": 1, "key": "a", "x": b"1"}) == {"x": b"1"}
    assert fields_of_record({"__key__": "a", "key": b"2", "x": b"1"}) == {"key": b"2", "x": b"1"}
