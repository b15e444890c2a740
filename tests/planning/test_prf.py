"""The random order of a shuffle: the same for ever, and as random as it says. Fixed seeds: no test is a lottery."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from tarmill.formats.span_order import order_of
from tarmill.planning.prf import shuffle_keys

PERMUTED_SEEDS = 12_000


def shuffled(seed: int, counts: list[int]) -> NDArray[np.int64]:
    """Give the order of all samples of some shards, as a shuffle makes it."""
    return order_of(np.concatenate([shuffle_keys(seed, shard, count) for shard, count in enumerate(counts)]))


def chi_square(counts: NDArray[np.int64] | list[int]) -> float:
    """Give how many standard deviations the chi-square statistic of equally likely counts is off its mean."""
    table = np.asarray(counts, float)
    expected = table.sum() / table.size
    freedom = table.size - 1
    return float((((table - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


GOLDEN = {
    (0, 0): [
        0x02F4BA6408E4D89B,
        0x3DD62B0B9CA8C5B2,
        0x1C8667A55D902E79,
        0x907D7A052FD5B4DC,
        0x809BF322883987C3,
        0x471128B9E807F7DD,
        0xF250BA0DBEC065B7,
        0xFC6ED66767A457BC,
    ],
    (1, 0): [
        0x4DB6A27B756282DF,
        0xD944FA03BABE0E2F,
        0x27F872E577060D32,
        0x07F697696A0482A2,
        0xE677FE4BBD0452EC,
        0x0D543DBA56D1E799,
        0xBEBE12CAD0EB4D9E,
        0x3F0B4ABD55F61F3D,
    ],
    (0, 1): [
        0xD037F8C3F9A1D176,
        0xC057419B4C210765,
        0xABF13115117B0065,
        0x7BAE035DEA6EA5C0,
        0xB487AC82E7DDD46F,
        0x45E81EDBA7C59426,
        0xD0A3831EBE9A338C,
        0x90194C97F11D0DC3,
    ],
    (2**64 - 1, 123_456): [
        0x1FDDFE13BC903DEE,
        0x028C037FB9A3C551,
        0x0BBA2D4F5D34D9E5,
        0x27FEACAC19B43D97,
        0x9FDBAE7A72C432E5,
        0xCEDFD8952AAB7C47,
        0x87681C68241DAACE,
        0xBDB087F939A293B3,
    ],
}


@pytest.mark.parametrize(("seed", "shard"), GOLDEN)
def test_the_keys_of_a_seed_never_change(seed, shard):
    """A shuffle that goes on after numpy was renewed must find the order in which it began."""
    assert shuffle_keys(seed, shard, 8).tolist() == GOLDEN[seed, shard]


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x64-10 as its authors define it."""
    mask = 2**64 - 1
    c, k = list(counter), list(key)
    for _ in range(10):
        high_0, low_0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
        high_1, low_1 = divmod(0xCA5A826395121157 * c[2], 2**64)
        c = [high_1 ^ c[1] ^ k[0], low_1, high_0 ^ c[3] ^ k[1], low_0]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return c


@pytest.mark.parametrize(("seed", "shard"), GOLDEN)
def test_the_keys_are_philox_at_the_counters_from_one_on(seed, shard):
    expected = [word for counter in (1, 2, 3) for word in philox([counter, 0, 0, 0], [seed, shard])]
    assert shuffle_keys(seed, shard, 12).tolist() == expected


def test_the_keys_of_more_samples_begin_with_those_of_fewer():
    many = shuffle_keys(7, 3, 1000).tolist()
    assert all(shuffle_keys(7, 3, count).tolist() == many[:count] for count in (0, 1, 3, 4, 5, 999))
    assert shuffle_keys(7, 3, 0).dtype == np.uint64


def test_other_seeds_and_other_shards_draw_other_keys():
    drawn = np.concatenate([shuffle_keys(seed, shard, 100) for seed in range(20) for shard in range(20)])
    assert len(np.unique(drawn)) == len(drawn)


def test_every_bit_of_the_keys_is_set_half_the_time():
    keys = np.concatenate([shuffle_keys(5, shard, 1000) for shard in range(64)])
    ones = np.array([int(((keys >> np.uint64(bit)) & np.uint64(1)).sum()) for bit in range(64)])
    off = (ones - len(keys) / 2) / np.sqrt(len(keys) / 4)
    assert np.abs(off).max() < 4


@pytest.mark.parametrize("counts", [[5], [2, 3], [1, 1, 1, 1, 1]], ids=str)
def test_every_permutation_is_as_likely_as_any_other(counts):
    met = Counter(tuple(shuffled(seed, counts).tolist()) for seed in range(PERMUTED_SEEDS))
    assert set(met) == set(itertools.permutations(range(5)))
    assert abs(chi_square(list(met.values()))) < 3.5


def test_every_shard_comes_to_every_place_alike():
    shards, each, seeds = 10, 20, 300
    table = np.zeros((shards, shards), np.int64)
    source = np.repeat(np.arange(shards), each)
    for seed in range(seeds):
        order = shuffled(seed, [each] * shards)
        np.add.at(table, (source[order], np.repeat(np.arange(shards), each)), 1)
    assert table.sum() == shards * each * seeds
    # what comes without being put back varies less: (n - 1) / n of independent draws in both directions
    freedom = (shards - 1) ** 2
    expected = each * seeds / shards
    statistic = ((table - expected) ** 2 / expected).sum()
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)


def test_samples_move_as_far_as_in_a_random_permutation():
    count, seeds = 500, 400
    places = np.arange(count)
    moved = np.array([np.abs(shuffled(seed, [100, 250, 150]) - places).mean() for seed in range(seeds)])
    expected = (count**2 - 1) / (3 * count)
    assert abs(moved.mean() - expected) < 4 * moved.std() / np.sqrt(seeds)


def test_neighbours_do_not_stay_together():
    count, seeds = 200, 2000
    together = sum(int((np.diff(shuffled(seed, [50] * 4)) == 1).sum()) for seed in range(seeds))
    expected = seeds * (count - 1) / count  # each of count - 1 places follows its neighbour with chance 1 / count
    assert abs(together - expected) < 4 * np.sqrt(expected)


def test_fixed_points_are_as_many_as_in_a_random_permutation():
    seeds = 4000
    fixed = [int((shuffled(seed, [15, 15]) == np.arange(30)).sum()) for seed in range(seeds)]
    assert abs(np.mean(fixed) - 1) < 4 / np.sqrt(seeds)
    assert abs(np.var(fixed) - 1) < 0.15


def test_orders_of_seeds_in_a_row_have_nothing_in_common():
    count = 1000
    orders = np.array([shuffled(seed, [count]) for seed in range(100)], float)
    ranks = (orders - orders.mean(axis=1, keepdims=True)) / orders.std(axis=1, keepdims=True)
    likeness = (ranks[1:] * ranks[:-1]).mean(axis=1)
    assert np.abs(likeness).max() < 4.5 / np.sqrt(count)
