"""Sizes and durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill.errors import SpecError
from tarmill.quantities import read_bytes, read_seconds, show_bytes, show_seconds
from tarmill.spec import RunOptions, ShuffleSpec


@given(size=st.one_of(st.integers(0, 1 << 60), st.integers(0, 100).map(lambda count: count << 30)))
def test_a_size_that_is_shown_reads_back(size: int) -> None:
    assert read_bytes(show_bytes(size)) == size


@given(duration_s=st.integers(0, 10**6))
def test_a_duration_that_is_shown_reads_back(duration_s: int) -> None:
    assert read_seconds(show_seconds(duration_s)) == duration_s


@pytest.mark.parametrize(("text", "size"), [("500MB", 5 * 10**8), ("500Mi", 500 << 20), ("1.5GiB", 3 << 29), ("7", 7)])
def test_spec_files_take_sizes_as_text(text: str, size: int) -> None:
    assert ShuffleSpec.from_dict({"input": "a", "output": "b", "shardSize": text}).shard_size == size


def test_what_is_no_size_or_duration_is_told_with_its_field() -> None:
    with pytest.raises(SpecError, match="field 'shardSize': 'big' is no size; write it as 500MB"):
        ShuffleSpec.from_dict({"input": "a", "output": "b", "shardSize": "big"})
    with pytest.raises(SpecError, match="field 'taskTimeout': 'soon' is no duration; write it as 90s"):
        RunOptions.from_dict({"taskTimeout": "soon"})


def test_a_seed_needs_no_quotes_in_a_file() -> None:
    assert ShuffleSpec.from_dict({"input": "a", "output": "b", "seed": 7}).seed == "7"
    for wrong in (True, 7.5, -1):
        with pytest.raises(SpecError, match="seed"):
            ShuffleSpec.from_dict({"input": "a", "output": "b", "seed": wrong})
