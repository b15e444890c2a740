"""Sort keys that are longer than an index keeps: where they agree so far, the samples are read to compare the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarmill.formats.keys import key_function
from tarmill.formats.span_order import MAX_KEY_WIDTH, Order, is_cut
from tarmill.formats.tar_span import decode_span
from tarmill.jobs.ordering import cached_ordering
from tarmill.jobs.span_sources import SpanSources
from tarmill.planning.span_tasks import Job, Source

SpanOf = Callable[[int], tuple[Source, int, int]]


def settle_long_keys(order: Order, keys: NDArray[Any], span_of: SpanOf, job: Job) -> None:
    """Put samples whose kept keys are equal and cut into the order of their whole keys, in place.

    Args:
        order: of all samples by their kept keys; equal ones in the order of the input.
        keys: the kept keys, by sample.
        span_of: tells where a sample lies.
        job: says what the keys are.
    """
    for begin, end in _doubtful(order, keys):
        group = order[begin:end].tolist()
        whole = {sample: whole_key(*span_of(sample), job) for sample in group}
        order[begin:end] = sorted(group, key=whole.__getitem__)


def _doubtful(order: Order, keys: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Find the stretches of the order with equal keys that may have been cut."""
    if keys.dtype.itemsize < MAX_KEY_WIDTH:
        return
    ordered = keys[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if not len(same):
        return
    breaks = np.flatnonzero(np.diff(same) > 1)
    begins = same[np.concatenate([[0], breaks + 1])]
    ends = same[np.concatenate([breaks, [len(same) - 1]])] + 2
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        if is_cut(bytes(ordered[begin])):
            yield begin, end


def whole_key(source: Source, start: int, length: int, job: Job) -> bytes:
    """Read a sample and encode its sort key."""
    sources = SpanSources([source])
    try:
        data = sources.read_one(0, start, length)
    finally:
        sources.release()
    record = decode_span(data, source.label, key_function(job.spec.key_function), job.spec.max_member)
    return cached_ordering(job.spec).full_key(record)
