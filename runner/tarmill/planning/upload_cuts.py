"""In which order an upload writes its samples, and where it cuts them into shards: pure.

Where shards have a size, those of all samples are known, so that a shard is filled as far as whole samples go.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from tarmill.errors import UsageError
from tarmill.formats.tar_write import END_OF_ARCHIVE
from tarmill.spec import DEFAULT_UPLOAD_SAMPLES, DEFAULT_UPLOAD_SHARD_BYTES, UploadSpec


def cuts_by_count(spec: UploadSpec, fixed: int | None) -> bool:
    """Tell whether shards are cut by numbers of samples alone, whatever their sizes are.

    Args:
        spec: samples_per_shard, shard_size, num_shards.
        fixed: how many shards the output pattern has; None when its count is open.
    """
    return bool(spec.samples_per_shard or ((spec.num_shards or fixed) and not spec.shard_size))


def shard_edges(
    spec: UploadSpec, fixed: int | None, sizes: Sequence[int], order: Sequence[int] | None, *, sizes_known: bool
) -> list[int]:
    """Decide where to cut: shard i holds the samples at places edges[i] to edges[i + 1] of the order.

    Args:
        spec: samples_per_shard, shard_size, num_shards, empty_shards.
        fixed: how many shards the output pattern has; None when its count is open.
        sizes: of each sample in a tar; zeros will do where it `cuts_by_count`.
        order: place -> sample; None for as they are.
        sizes_known: False where some objects tell their size only when they are fetched.

    Raises:
        UsageError: there are more shards than samples, and nobody asked for empty ones; or sizes are not known.
    """
    count = len(sizes)
    if spec.samples_per_shard:
        return by_count(count, spec.samples_per_shard)
    asked = spec.num_shards or fixed
    if asked and cuts_by_count(spec, fixed):
        if count < asked and not spec.empty_shards:
            raise UsageError(
                f"{count:,} samples do not fill {asked:,} shards; ask for fewer, or allow empty ones with "
                "--empty-shards",
                samples=count,
                shards=asked,
            )
        return [number * count // asked for number in range(asked + 1)]
    if not sizes_known and spec.shard_size:
        raise UsageError(
            "--shard-size needs the sizes of all samples, and some of them are known only when they are fetched; use "
            "--samples-per-shard or --num-shards"
        )
    if not sizes_known:
        return by_count(count, DEFAULT_UPLOAD_SAMPLES)
    in_order = sizes if order is None else (sizes[index] for index in order)
    return by_size(in_order, spec.shard_size or DEFAULT_UPLOAD_SHARD_BYTES)


def by_count(count: int, samples_per_shard: int) -> list[int]:
    """Cut after exactly so many samples."""
    return [*range(0, count, samples_per_shard), count] if count else [0]


def by_size(sizes: Iterable[int], shard_bytes: int) -> list[int]:
    """Fill each shard as far as whole samples go; one sample that is larger has a shard of its own."""
    room = shard_bytes - len(END_OF_ARCHIVE)
    edges, used, place = [0], 0, 0
    for size in sizes:
        if used and used + size > room:
            edges.append(place)
            used = 0
        used += size
        place += 1
    return [*edges, place] if place else [0]


def shuffled(count: int, seed: int) -> Sequence[int]:
    """Draw the random order: place -> sample, from a keyed function of seed and place (see `prf`)."""
    import numpy as np  # a tenth of a second, and only a shuffle needs it

    from tarmill.planning.prf import shuffle_keys

    return array("Q", np.argsort(shuffle_keys(seed, 0, count), kind="stable").astype(np.uint64).tobytes())
