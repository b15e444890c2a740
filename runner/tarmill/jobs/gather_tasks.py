"""From an order of samples to tasks that write them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarmill import storage
from tarmill.engine.base import Engine
from tarmill.formats.tar_header import BLOCK
from tarmill.jobs.drive import run_tasks
from tarmill.jobs.reorder_job import Reorder
from tarmill.planning.cuts import Cuts, Totals, grouped, task_bytes
from tarmill.planning.span_tasks import Columns, GatherTask, Job, LazyColumns, Output, Source
from tarmill.spec import SortSpec
from tarmill.values import valueclass


@valueclass(frozen=False)
class Samples:
    """Samples of many sources as columns, one source behind the other: 20 bytes a sample."""

    sources: list[Source]
    ends: NDArray[np.int64]
    """For each source how many samples it and those before it have."""
    starts: NDArray[Any]
    """In tar blocks, as the lengths are."""
    lengths: NDArray[Any]
    stems: NDArray[Any]
    fields: NDArray[Any]

    def __len__(self) -> int:
        return len(self.starts)

    def source_of(self, samples: NDArray[Any]) -> NDArray[np.int64]:
        """Give the source of each sample."""
        return np.searchsorted(self.ends, samples, "right")

    def span_of(self, sample: int) -> tuple[Source, int, int]:
        """Tell where one sample lies."""
        source = int(self.source_of(np.array([sample]))[0])
        return self.sources[source], int(self.starts[sample]) * BLOCK, int(self.lengths[sample]) * BLOCK

    def sizes(self, order: NDArray[Any]) -> NDArray[np.int64]:
        """Give the samples' sizes in bytes, in some order."""
        sizes: NDArray[np.int64] = self.lengths[order].astype(np.int64) * BLOCK
        return sizes


def totals_of(lengths: NDArray[Any]) -> Totals:
    """Add up samples whose sizes are given in their new order."""
    size, largest = int(lengths.sum(dtype=np.int64)), int(lengths.max(initial=0))
    return Totals(len(lengths), size, largest, int(lengths[-1]) if len(lengths) else 0)


def places_of(cuts: Cuts, lengths: NDArray[Any], fresh: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Turn cuts into positions among all samples; those between groups move up to where the next group begins."""
    places = cuts.places(lengths)
    places[-1] = len(lengths)
    if fresh is None:
        return places
    begins = np.append(np.flatnonzero(fresh), len(lengths))
    return begins[np.searchsorted(begins, places, "left")]


def gather_tasks(
    job: Job,
    samples: Samples,
    order: NDArray[Any],
    cuts: Cuts,
    urls: Sequence[str],
    done: Collection[int],
    fresh: NDArray[np.bool_] | None,
) -> list[GatherTask]:
    """Share out the outputs that are not done.

    Args:
        job: for all of them.
        samples, order: what is written, and its order.
        cuts: between the outputs.
        urls: of the outputs.
        done: numbers of those that are finished.
        fresh: where groups to reduce begin, in that order; cuts move up to the next.
    """
    lengths = samples.sizes(order)
    places = places_of(cuts, lengths, fresh)
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    sizes = ends[places[1:]] - ends[places[:-1]]
    todo = [number for number in range(len(sizes)) if number not in done]
    groups = grouped(sizes[todo], task_bytes(int(sizes.sum())))
    return [
        _task(index, job, samples, order, places, [(number, urls[number]) for number in todo[begin:end]], fresh)
        for index, (begin, end) in enumerate(groups)
    ]


def _task(
    index: int,
    job: Job,
    samples: Samples,
    order: NDArray[Any],
    places: NDArray[np.int64],
    outputs: list[tuple[int, str]],
    fresh: NDArray[np.bool_] | None,
) -> GatherTask:
    slices = [slice(int(places[number]), int(places[number + 1])) for number, _ in outputs]
    edges = np.cumsum([0, *(piece.stop - piece.start for piece in slices)]).tolist()

    def cut() -> Columns:
        chosen = np.concatenate([order[piece] for piece in slices])
        source = samples.source_of(chosen)
        is_used = np.bincount(source, minlength=len(samples.sources)) > 0
        used, source = np.flatnonzero(is_used), (np.cumsum(is_used) - 1)[source]
        return Columns(
            tuple(samples.sources[number] for number in used.tolist()),
            source.astype(np.uint32),
            samples.starts[chosen].astype(np.int64) * BLOCK,
            samples.sizes(chosen),
            samples.stems[chosen],
            samples.fields[chosen],
            np.concatenate([fresh[piece] for piece in slices]) if fresh is not None else None,
        )

    named = tuple(Output(*one, *between) for one, between in zip(outputs, pairwise(edges), strict=True))
    return GatherTask(index, job, named, LazyColumns(cut), fresh is not None)


def run_gather(
    work: Reorder,
    engine: Engine,
    stage: str,
    function: Callable[[Any], Sequence[Any]],
    tasks: Sequence[Any],
    take: Callable[[Any], None],
    total_bytes: int | None = None,
) -> bool:
    """Run tasks that write outputs, and take note of each output; False when one failed.

    Args:
        work: whose report takes failures.
        engine: runs them.
        stage: what progress calls it.
        function: for each task.
        tasks: to run.
        take: is called with each output that is finished.
        total_bytes: that they read in all, where it is known.
    """
    work.listener.stage(stage, len(tasks), total_bytes)
    with closing(run_tasks(engine, function, tasks, work.listener, fail_fast=work.options.fail_fast)) as outcomes:  # type: ignore[type-var]
        for outcome in outcomes:
            if outcome.result is not None:
                for done in outcome.result:
                    take(done)
                samples = sum(done.counts.written for done in outcome.result)
                written = sum(done.counts.written_bytes for done in outcome.result)
                work.listener.finished(outcome.task.index, samples, written, written)
            elif outcome.error is not None:
                work.fail(outcome.task.index, storage.mask(outcome.task.label), outcome.error)
    return not work.report.failures


def cuts_exactly(work: Reorder) -> bool:
    """Tell whether what comes out of a reduce is cut once more."""
    return isinstance(work.spec, SortSpec) and work.spec.cuts_exactly
