"""The sum of many hashes, modulo 2^128."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_intdigest

from tarmill.formats.digest import MASK_128
from tarmill.formats.range_hash import HashSum, digests_of, hashes_of


@given(st.lists(st.lists(st.binary(max_size=3), max_size=40), max_size=8), st.integers(0, 3), st.booleans())
def test_a_sum_of_hashes_is_exact_however_they_come(groups: list[list[bytes]], looks: int, many: bool) -> None:
    found, expected = HashSum(), 0
    for number, group in enumerate(groups):
        pieces = group * 500 if many else group
        found.add(hashes_of(pieces)) if number % 2 else found.add_digests(digests_of(pieces))
        found.add_one(MASK_128)
        expected += sum(map(xxh3_128_intdigest, pieces)) + MASK_128
        if number < looks:
            assert found.total() == expected & MASK_128
    assert found.total() == expected & MASK_128
