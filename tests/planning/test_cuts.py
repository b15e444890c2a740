"""Where samples are cut into shards: exact counts, sizes never overshot, balance to one; whoever looks at a part only
finds the same places."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill.errors import UsageError
from tarmill.planning.cuts import END_BYTES, Cuts, Totals, grouped, plan_cuts, task_bytes
from tarmill.spec import ShuffleSpec

SIZES = st.lists(st.integers(1, 60).map(lambda blocks: 512 * blocks), max_size=60)


def cut(sizes: list[int], fixed: int | None = None, inputs: int = 3, pieces: int = 1, **fields: Any) -> Cuts:
    """Plan the cuts of samples of such sizes."""
    totals = Totals(len(sizes), sum(sizes), max(sizes, default=0), sizes[-1] if sizes else 0)
    spec = ShuffleSpec(input="in.tar", output="out-@.tar", **fields)
    return plan_cuts(
        spec, fixed, inputs, totals, lambda: np.array_split(np.array(sizes, np.int64), pieces) if sizes else []
    )


def shards(sizes: list[int], cuts: Cuts) -> list[list[int]]:
    """The sizes of the samples in each shard."""
    places = cuts.places(np.array(sizes, np.int64)).tolist()
    places[-1:] = [len(sizes)]
    return [sizes[begin:end] for begin, end in itertools.pairwise(places)]


def check_whole(sizes: list[int], found: list[list[int]]) -> None:
    assert [size for shard in found for size in shard] == sizes, "each sample is in one shard, in order"


@given(SIZES, st.integers(1, 70))
def test_samples_per_shard_is_exact_but_for_the_last(sizes: list[int], each: int) -> None:
    found = shards(sizes, cut(sizes, samples_per_shard=each))
    check_whole(sizes, found)
    assert all(len(shard) == each for shard in found[:-1])
    assert all(1 <= len(shard) <= each for shard in found[-1:])


@given(SIZES, st.integers(2, 130).map(lambda blocks: 512 * blocks + 100), st.integers(1, 4))
def test_no_shard_is_larger_than_asked_unless_one_sample_is_and_none_is_empty(
    sizes: list[int], limit: int, pieces: int
) -> None:
    found = shards(sizes, cut(sizes, shard_size=limit, pieces=pieces))
    check_whole(sizes, found)
    for shard in found:
        assert shard
        assert sum(shard) + END_BYTES <= limit or len(shard) == 1


@given(SIZES.filter(bool), st.integers(2, 130).map(lambda blocks: 512 * blocks))
def test_shards_are_filled_at_least_by_half(sizes: list[int], limit: int) -> None:
    """Two neighbours never fit into one, where the largest sample is half a shard; else what is lost is one sample."""
    found = shards(sizes, cut(sizes, shard_size=limit))
    room, largest = limit - END_BYTES, max(sizes)
    if 2 * largest >= room:
        assert all(sum(one) + two[0] > room for one, two in itertools.pairwise(found))
    else:
        assert all(sum(shard) > room - 2 * largest for shard in found[:-1])


@given(SIZES, st.integers(1, 70), st.booleans())
def test_a_number_of_shards_is_balanced_to_one(sizes: list[int], count: int, by_pattern: bool) -> None:
    fields: dict[str, Any] = {"fixed": count} if by_pattern else {"num_shards": count}
    if count > len(sizes):
        with pytest.raises(UsageError, match="--empty-shards") as caught:
            cut(sizes, **fields)
        assert (caught.value.samples, caught.value.shards) == (len(sizes), count)
    found = shards(sizes, cut(sizes, **fields, empty_shards=True))
    check_whole(sizes, found)
    assert len(found) == count
    assert max(map(len, found)) - min(map(len, found)) <= 1


@given(SIZES, st.integers(1, 70))
def test_as_many_shards_as_inputs_but_none_empty(sizes: list[int], inputs: int) -> None:
    found = shards(sizes, cut(sizes, inputs=inputs))
    check_whole(sizes, found)
    assert len(found) == min(inputs, len(sizes))
    assert all(found)


@given(SIZES.filter(bool), st.integers(0, 60), st.sampled_from(["samples_per_shard", "shard_size", "num_shards"]))
def test_who_sees_a_part_of_the_order_finds_the_places_of_the_whole(sizes: list[int], at: int, rule: str) -> None:
    """What lets tasks cut without each other: places in a part are those of the whole, moved and clipped."""
    at = min(at, len(sizes))
    value = {"samples_per_shard": 7, "shard_size": 20_000, "num_shards": 1 + len(sizes) // 2}[rule]
    cuts = cut(sizes, **{rule: value})
    lengths = np.array(sizes, np.int64)
    whole = np.minimum(cuts.places(lengths), len(sizes))
    first = cuts.places(lengths[:at])
    rest = cuts.places(lengths[at:], at, int(lengths[:at].sum()))
    assert np.array_equal(np.minimum(whole, at), np.minimum(first, at))
    assert np.array_equal(np.maximum(whole - at, 0), np.clip(rest, 0, len(sizes) - at))


def test_a_sample_larger_than_the_shard_has_one_to_itself() -> None:
    sizes = [512, 512, 90_000, 512, 512]
    assert shards(sizes, cut(sizes, shard_size=10_240)) == [[512, 512], [90_000], [512, 512]]


def test_what_fits_to_the_byte_fits() -> None:
    sizes = [4096] * 6
    assert shards(sizes, cut(sizes, shard_size=2 * 4096 + END_BYTES)) == [[4096] * 2] * 3
    assert shards(sizes, cut(sizes, shard_size=2 * 4096 + END_BYTES - 1)) == [[4096]] * 6


@pytest.mark.parametrize("fields", [{"samples_per_shard": 5}, {"shard_size": 5000}, {}])
def test_no_samples_give_no_shards(fields: dict[str, int]) -> None:
    assert len(cut([], **fields)) == 0


def test_no_samples_fill_no_fixed_number_of_shards() -> None:
    with pytest.raises(UsageError):
        cut([], fixed=2)
    assert shards([], cut([], fixed=2, empty_shards=True)) == [[], []]


def test_sizes_are_asked_for_only_where_each_must_be_looked_at() -> None:
    def never() -> Any:
        raise AssertionError("asked for sizes")

    spec = ShuffleSpec(input="in.tar", output="out-@.tar", shard_size=100_000)
    assert len(plan_cuts(spec, None, 1, Totals(1000, 5_120_000, 5120, 5120), never)) == 55
    with pytest.raises(AssertionError):
        plan_cuts(spec, None, 1, Totals(1000, 5_120_000, 60_000, 5120), never)


def test_billions_of_bytes_are_no_matter() -> None:
    totals = Totals(10**9, 1 << 50, 1 << 20, 1 << 20)
    spec = ShuffleSpec(input="in.tar", output="out-@.tar", shard_size=1 << 40)
    cuts = plan_cuts(spec, None, 1, totals, list)
    assert len(cuts) == 1025
    assert np.all(np.diff(cuts.edges) > 0)


@given(st.lists(st.integers(0, 100), max_size=30), st.integers(1, 300))
def test_groups_hold_all_in_order_and_each_enough(sizes: list[int], least: int) -> None:
    groups = grouped(np.array(sizes), least)
    assert [n for begin, end in groups for n in range(begin, end)] == list(range(len(sizes)))
    for begin, end in groups[:-1]:
        assert sum(sizes[begin:end]) >= least
        assert sum(sizes[begin : end - 1]) < least


@pytest.mark.parametrize(("total", "task"), [(0, 4 << 20), (1 << 30, 64 << 20), (160 << 20, 10 << 20)])
def test_a_task_is_worth_starting_and_small_enough_to_share(total: int, task: int) -> None:
    assert task_bytes(total) == task
