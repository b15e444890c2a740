"""Orders by numpy against Python's own stable sort, and arrays in small files."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from tarmill.formats.span_order import (
    MAX_KEY_WIDTH,
    KeyColumn,
    is_cut,
    key_bounds,
    order_of,
    pack_arrays,
    runs_of,
    unpack_arrays,
)

few_bytes = st.binary(max_size=40).map(lambda key: bytes(b"\x00\x01a\xff"[c % 4] for c in key))
prefixes = st.sampled_from([b"", b"common/", b"0" * 13, b"a long common prefix of all keys "])
keys = st.builds(
    lambda prefix, tails: [prefix + tail for tail in tails],
    prefixes,
    st.lists(st.one_of(few_bytes, st.binary(max_size=9), st.sampled_from([b"", b"1", b"2"])), max_size=60),
)


def column(keys: list[bytes], width: int | None = None) -> np.ndarray:
    return np.array(keys, f"S{width or max(map(len, keys), default=1) or 1}")


def stable_order(keys: list[bytes], width: int) -> list[int]:
    return sorted(range(len(keys)), key=lambda at: keys[at][:width].ljust(width, b"\0"))


@given(keys=keys)
@example(keys=[b"a", b"a", b"a"])
@example(keys=[b"\xff" * 9, b"\x00" * 9, b"\x7f" * 9, b"\x80" * 9])
def test_byte_keys_are_ordered_as_pythons_stable_sort_does(keys):
    array = column(keys)
    assert order_of(array).tolist() == stable_order(keys, array.dtype.itemsize)


@pytest.mark.parametrize("width", range(1, 41))
def test_every_width_of_keys_is_ordered_whole(width):
    rng = random.Random(width)
    keys = [bytes(rng.choice(b"\x00\x01b\xfe") for _ in range(width)) for _ in range(300)]
    for at in range(width):  # pairs that differ in one place only
        keys += [bytes([98] * at + [byte] + [98] * (width - at - 1)) for byte in (255, 1, 99)]
    keys += rng.choices(keys, k=200)
    rng.shuffle(keys)
    assert order_of(column(keys, width)).tolist() == stable_order(keys, width)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_keys_are_in_order(count):
    assert order_of(column([b"b", b"a"][:count])).tolist() == [[], [0], [1, 0]][count]
    assert order_of(np.array([2, 1][:count], np.uint64)).tolist() == [[], [0], [1, 0]][count]


@given(keys=keys)
def test_keys_of_a_view_with_strides_are_ordered(keys):
    table = np.zeros(2 * len(keys), column(keys).dtype)
    table[::2] = column(keys)
    assert order_of(table[::2]).tolist() == order_of(column(keys)).tolist()


numbers = st.one_of(
    st_numpy.arrays(st.sampled_from(["u8", "i8", "u4"]), st.integers(0, 50)),
    st_numpy.arrays("f8", st.integers(0, 50), elements=st.floats(allow_nan=False)),
    st_numpy.arrays("u8", st.integers(0, 50), elements=st.integers(0, 5)),
)


@given(values=numbers)
def test_numbers_are_ordered_as_pythons_stable_sort_does(values):
    assert order_of(values).tolist() == sorted(range(len(values)), key=values.tolist().__getitem__)


@given(keys=keys)
def test_the_bounds_of_a_key_are_those_of_its_equals(keys):
    array = np.sort(column(keys))
    found = array.tolist()
    for key in [*found, b"", b"a", b"\xff"]:
        wanted = key[: array.dtype.itemsize].rstrip(b"\0")
        assert key_bounds(array, wanted, "left") == sum(other < wanted for other in found)
        assert key_bounds(array, wanted, "right") == sum(other <= wanted for other in found)


@given(values=st.lists(st.integers(0, 2)))
def test_runs_begin_where_values_change(values):
    expected = [at == 0 or values[at] != values[at - 1] for at in range(len(values))]
    assert runs_of(np.array(values, np.int64)).tolist() == expected
    assert runs_of(column([b"%d" % value for value in values])).tolist() == expected


@given(chunks=st.lists(st.lists(st.binary(min_size=1, max_size=9).map(lambda k: k.rstrip(b"\0") + b"!")), max_size=4))
def test_a_column_of_keys_gives_them_all_in_order(chunks):
    keys = KeyColumn()
    for chunk in chunks:
        keys.extend(chunk)
    assert keys.array().tolist() == [key for chunk in chunks for key in chunk]
    assert not keys.cut


@pytest.mark.parametrize("width", [MAX_KEY_WIDTH - 1, MAX_KEY_WIDTH, MAX_KEY_WIDTH + 1])
def test_long_keys_are_cut_and_told_of(width):
    keys = KeyColumn()
    keys.extend([b"a", b"k" * width])
    keys.extend([b"b"])
    kept = b"k" * width if width < MAX_KEY_WIDTH else b"k" * (MAX_KEY_WIDTH - 1) + b"\xff"
    assert keys.array().tolist() == [b"a", kept, b"b"]
    assert keys.cut == is_cut(kept) == (width >= MAX_KEY_WIDTH)


# Files


arrays = st.dictionaries(
    st.text(max_size=5),
    st.one_of(
        st_numpy.arrays(st.sampled_from(["u8", "u4", "i8", "f8", "?", "u1"]), st.integers(0, 40)),
        st.lists(st.binary(max_size=20)).map(column),
    ),
    max_size=4,
)
metas = st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=9), st.none()), max_size=3)


def packed(meta: dict, arrays: dict) -> bytes:
    return b"".join(pack_arrays(meta, arrays))


def same(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes() for name in one
    )


@given(meta=metas, arrays=arrays)
@example(meta={}, arrays={"a": np.empty(0, np.uint64)})
@example(meta={"newline": "\n"}, arrays={"a": np.empty(0, "S3"), "b": np.arange(3)})
def test_arrays_come_back(meta, arrays):
    told, found = unpack_arrays(packed(meta, arrays))
    assert told == meta
    assert same(found, arrays)


@given(values=st_numpy.arrays("u4", 20), step=st.sampled_from([2, -1]))
def test_arrays_with_strides_come_back(values, step):
    _, found = unpack_arrays(packed({}, {"a": values[::step]}))
    assert found["a"].tolist() == values[::step].tolist()


@pytest.mark.parametrize("arrays", [
    {},
    {"a": np.arange(7, dtype=np.uint64)},
    {"a": np.arange(70, dtype=np.uint64), "b": column([b"one", b"three"]), "c": np.empty(0, np.uint32)},
    {"a": np.arange(16, dtype=np.uint32)},
], ids=["none", "one", "three", "aligned"])  # fmt: skip
def test_a_file_cut_anywhere_is_an_error(arrays):
    data = packed({"n": 1}, arrays)
    for cut in range(len(data)):
        with pytest.raises(ValueError, match=r".*"):
            unpack_arrays(data[:cut])
    with pytest.raises(ValueError, match="instead of"):
        unpack_arrays(data + b"\0")


@pytest.mark.parametrize("header", [b"", b"5", b"[]", b"{}", b'{"meta": {}}', b'{"meta": 1, "arrays": {"a": 1}}',
    b'{"meta": {}, "arrays": {"a": ["u8", -1]}}', b'{"meta": {}, "arrays": {"a": ["nonsense", 1]}}',
    b'{"meta": {}, "arrays": {"a": ["|O", 0]}}', b'{"meta": {}, "arrays": {"a": ["<u8", 1.5]}}'])  # fmt: skip
def test_a_file_of_something_else_is_an_error(header):
    magic = packed({}, {}).partition(b"{")[0]
    for data in (header, magic + header, magic + header + b"\n", (magic + header + b"\n").ljust(128, b"\0")):
        with pytest.raises(ValueError, match=r".*"):
            unpack_arrays(data)


def test_there_is_no_pickle_in_a_file():
    header = packed({}, {"a": np.arange(2)})[:64].rstrip(b"\0")
    assert json.loads(header.partition(b"\n")[2]) == {"meta": {}, "arrays": {"a": ["<i8", 2]}}
