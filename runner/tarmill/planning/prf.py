"""The random order of a shuffle: a keyed function of seed, shard and sample, so that nothing else decides over it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shuffle_keys(seed: int, shard: int, count: int) -> NDArray[np.uint64]:
    """Draw the sort keys of a shard's samples, 64 bits each.

    Philox-4x64-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011) keyed by (seed, shard), at the
    counters 1, 2, ...: independent of other shards, of batches and of who computes them. Samples in the order of
    independent keys, ties by shard and sample, are a uniform permutation (Rao 1961, Sandelius 1962).

    Args:
        seed: below 2^64.
        shard: the shard's place in the list of inputs.
        count: how many samples it has.
    """
    return np.random.Philox(key=np.array([seed, shard], np.uint64)).random_raw(count)
