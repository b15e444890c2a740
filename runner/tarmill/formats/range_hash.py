"""The proof that ranges of bytes were copied exactly: xxh3_128 of each, many at a time, added up modulo 2^128."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from tarmill.formats.digest import MASK_128

Hashes = NDArray[np.uint64]
"""A row for each range: high and low half."""

_AT_ONCE = 4096
_HALF = np.uint64(32)
_LOW_HALF = np.uint64(0xFFFFFFFF)


def hashes_of(pieces: Iterable[Any], *seeds: Iterable[int]) -> Hashes:
    """Give xxh3_128 of each piece, with a seed for each where there are seeds; no step of Python's own for a piece."""
    digests = b"".join(map(xxh3_128_digest, pieces, *seeds))  # as bytes they come twice as fast as as int
    return np.ndarray((len(digests) // 16, 2), ">u8", digests).astype(np.uint64)


class HashSum:
    """A sum of hashes modulo 2^128; those of many calls are added up at once, which is cheaper where each has few."""

    def __init__(self) -> None:
        self._sum = 0
        self._waiting: list[Hashes] = []
        self._count = 0

    def add(self, hashes: Hashes) -> None:
        """Add hashes as `hashes_of` gives them."""
        self._waiting.append(hashes)
        self._count += len(hashes)
        if self._count >= _AT_ONCE:
            self.total()

    def add_one(self, value: int) -> None:
        """Add a single hash."""
        self._sum += value

    def total(self) -> int:
        """Give the sum of all that was added so far."""
        if self._waiting:
            high, low = np.concatenate(self._waiting).T
            self._sum += (int(high.sum()) << 64) + (int((low >> _HALF).sum()) << 32) + int((low & _LOW_HALF).sum())
            self._waiting.clear()
            self._count = 0
        self._sum &= MASK_128
        return self._sum
