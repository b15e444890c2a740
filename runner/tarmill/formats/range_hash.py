"""The proof that ranges of bytes were copied exactly: xxh3_128 of each, many at a time, added up modulo 2^128."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

Hashes = NDArray[np.uint64]
"""A row for each range: high and low half."""

_NO_HASHES = np.empty((0, 2), np.uint64)
_HALF = np.uint64(32)
_LOW_HALF = np.uint64(0xFFFFFFFF)


def hashes_of(pieces: Iterable[Any], *seeds: Iterable[int]) -> Hashes:
    """Give xxh3_128 of each piece, with a seed for each where there are seeds; no step of Python's own for a piece."""
    digests = b"".join(map(xxh3_128_digest, pieces, *seeds))  # as bytes they come twice as fast as as int
    return np.ndarray((len(digests) // 16, 2), ">u8", digests).astype(np.uint64)


def total_of(hashes: Sequence[Hashes]) -> int:
    """Add up hashes, exactly but for multiples of 2^128."""
    high, low = np.concatenate([_NO_HASHES, *hashes]).T
    return (int(high.sum()) << 64) + (int((low >> _HALF).sum()) << 32) + int((low & _LOW_HALF).sum())
