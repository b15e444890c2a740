from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill.storage.base import fetch_ranges, merge_ranges

RANGES = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 60)), max_size=30)


@given(ranges=RANGES, gap=st.integers(0, 50))
def test_merged_fetches_serve_every_range(ranges: list[tuple[int, int]], gap: int) -> None:
    body = bytes(range(256)) * 3
    assert fetch_ranges(ranges, gap, lambda o, n: body[o : o + n]) == [body[o : o + n] for o, n in ranges]


@given(ranges=RANGES, gap=st.integers(1, 50))
def test_merged_fetches_lie_apart_by_at_least_the_gap(ranges: list[tuple[int, int]], gap: int) -> None:
    spans = [(start, start + length) for start, length, _ in merge_ranges(ranges, gap)]
    assert all(left[1] + gap <= right[0] for left, right in pairwise(spans))
    ends = {offset for offset, length in ranges if length} | {offset + length for offset, length in ranges if length}
    assert all(start in ends and end in ends for start, end in spans)


@pytest.mark.parametrize("wrong", [(-1, 2), (0, -1)])
def test_ranges_below_zero_are_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="ranges are"):
        fetch_ranges([wrong], 0, lambda o, n: b"")
