"""Where a shuffle or sort cuts its samples into output shards: pure arithmetic on counts and sizes.

A cut is a place in the global order, as a number of samples or of (uncompressed tar) bytes before it. It depends on
nothing but the order, so that every plan and every number of workers gives the same shards. With a reduce, the places
are those of the samples that go in, moved up to where the next group begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tarmill.errors import UsageError
from tarmill.spec import ReorderSpec
from tarmill.values import valueclass

END_BYTES = 1024
"""What ends a tar, besides its samples."""

Ints = NDArray[np.int64]


@valueclass
class Totals:
    """What is known of all samples together once they were read."""

    samples: int
    size_bytes: int
    largest_bytes: int
    last_bytes: int
    """Size of the last sample in the new order."""


@valueclass
class Cuts:
    """Shard i holds what begins at `edges[i]` or later, and before `edges[i + 1]`."""

    unit: Literal["samples", "bytes"]
    edges: Ints

    def __len__(self) -> int:
        return len(self.edges) - 1

    def without(self, empty: NDArray[np.bool_]) -> Cuts:
        """Leave out shards that would hold nothing; those before them end where the next begins."""
        return Cuts(self.unit, np.append(self.edges[:-1][~empty], self.edges[-1]))

    def places(self, lengths: NDArray[Any], first_sample: int = 0, first_byte: int = 0) -> Ints:
        """Turn the edges into positions among samples that follow each other in the order.

        Args:
            lengths: of the samples, in order, in bytes.
            first_sample, first_byte: place of the first of them in the global order.

        Returns:
            For each edge the position of the first sample at or behind it: 0 for those before the first sample,
            `len(lengths)` for those behind the last.
        """
        if self.unit == "samples":
            return np.clip(self.edges - first_sample, 0, len(lengths))
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - lengths
        return np.searchsorted(starts, self.edges - first_byte, "left").astype(np.int64)


def plan_cuts(
    spec: ReorderSpec, fixed: int | None, inputs: int, totals: Totals, lengths: Callable[[], Iterable[NDArray[Any]]]
) -> Cuts:
    """Decide where to cut.

    Args:
        spec: samples_per_shard, shard_size, num_shards, empty_shards.
        fixed: how many shards the output pattern has; None when its count is open.
        inputs: how many input shards there are.
        totals: of all samples.
        lengths: gives the samples' sizes in the new order, in pieces; asked only where each must be looked at.

    Raises:
        UsageError: there are more shards than samples, and nobody asked for empty ones.
    """
    count = totals.samples
    if spec.samples_per_shard:
        return Cuts("samples", np.append(np.arange(0, count, spec.samples_per_shard), count))
    if spec.shard_size:
        room = spec.shard_size - END_BYTES
        if 2 * totals.largest_bytes < room:
            step = room - totals.largest_bytes
            shards = (totals.size_bytes - totals.last_bytes) // step + 1 if count else 0
            return Cuts("bytes", np.append(np.arange(shards, dtype=np.int64) * step, totals.size_bytes))
        return Cuts("samples", _greedy(room, lengths()))
    asked = spec.num_shards or fixed
    shards = asked if asked is not None else min(inputs, count)
    if asked is not None and count < asked and not spec.empty_shards:
        raise UsageError(
            f"{count:,} samples do not fill {asked:,} shards; ask for fewer, or allow empty ones with --empty-shards",
            samples=count,
            shards=asked,
        )
    if not shards:
        return Cuts("samples", np.zeros(1, np.int64))
    return Cuts("samples", np.arange(shards + 1, dtype=np.int64) * count // shards)


def _greedy(room: int, lengths: Iterable[NDArray[Any]]) -> Ints:
    """Fill each shard as far as whole samples go: what to do where samples are large beside the shards."""
    edges = [0]
    used = position = 0
    for piece in lengths:
        for length in piece.tolist():
            if used and used + length > room:
                edges.append(position)
                used = 0
            used += length
            position += 1
    return np.array([*edges, position] if position else [0], np.int64)


def grouped(sizes: NDArray[Any], least_bytes: int) -> list[tuple[int, int]]:
    """Group consecutive things into (begin, end) so that each group has at least so many bytes, but for the last."""
    groups = []
    begin = total = 0
    for position, size in enumerate(sizes.tolist()):
        total += size
        if total >= least_bytes:
            groups.append((begin, position + 1))
            begin, total = position + 1, 0
    if begin < len(sizes):
        groups.append((begin, len(sizes)))
    return groups


def task_bytes(total_bytes: int) -> int:
    """Choose how much one task moves: enough to be worth starting, little enough to share out and to lose."""
    return max(4 << 20, min(64 << 20, total_bytes // 16))
