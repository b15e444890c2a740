"""The plans `local` and `memory` of a shuffle or sort: find all samples, order them in one place, copy them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarmill import storage
from tarmill.engine.base import Engine
from tarmill.engine.serial import serial_engine
from tarmill.formats.span_order import MAX_KEY_WIDTH, Order, order_of, runs_of
from tarmill.jobs.drive import choose_engine, from_anywhere, probe_workers, run_tasks
from tarmill.jobs.gather import gather
from tarmill.jobs.long_keys import settle_long_keys
from tarmill.jobs.reorder import Reorder
from tarmill.jobs.scan import load_scan, scan_shards
from tarmill.planning.cuts import Totals, grouped, plan_cuts, task_bytes
from tarmill.planning.prf import shuffle_keys
from tarmill.planning.span_tasks import GatherTask, Output, ScanTask, ShardSpans, Source
from tarmill.spec import SortSpec


def reorder_locally(work: Reorder) -> None:
    """Do all passes; failures go into the report."""
    tasks = scan_tasks(work)
    with _engine(work, len(tasks)) as engine:
        first = work.inputs[0].shard
        if first.url != "-":
            probe_workers(engine, first, from_anywhere(work.out.folder or "./"))
        found = scan_all(work, engine, tasks)
        if found is None:
            return
        samples = Samples.of(found)
        order = samples.order(work)
        _write(work, engine, samples, order)


def _engine(work: Reorder, tasks: int) -> Engine:
    if work.plan.kind == "memory":
        return serial_engine()
    return choose_engine(work.options, max(2, tasks), [work.inputs[0].shard.url, work.out.folder or "./"])


# -- the first pass --------------------------------------------------------------------------------------------------


def scan_tasks(work: Reorder) -> list[ScanTask]:
    """Share out the input shards: consecutive ones, as many as are worth a task."""
    sizes = np.array([found.shard.size_bytes or 0 for found in work.inputs], np.int64)
    groups = grouped(sizes, task_bytes(int(sizes.sum())))
    return [ScanTask(index, work.job, tuple(work.inputs[begin:end])) for index, (begin, end) in enumerate(groups)]


def scan_all(work: Reorder, engine: Engine, tasks: Sequence[ScanTask]) -> list[ShardSpans] | None:
    """Find the samples of all inputs, but for those that an earlier run has found; None when that failed."""
    kept = {task.index: spans for task in tasks if (spans := _earlier(work, task)) is not None}
    todo = [task for task in tasks if task.index not in kept]
    total = sum(found.shard.size_bytes or 0 for task in todo for found in task.shards)
    work.listener.stage("reading", len(todo), total)
    counts = work.report.counts
    for found in kept.values():
        for shard in found:
            counts.merge(shard.counts)
    with closing(run_tasks(engine, scan_shards, todo, work.listener)) as outcomes:  # type: ignore[type-var]
        for outcome in outcomes:
            if outcome.result is not None:
                counts.merge(outcome.result.counts)
                kept[outcome.task.index] = outcome.result.spans or load_scan(outcome.task) or []
                read = outcome.result.counts
                work.listener.finished(outcome.task.index, read.read, read.read_bytes, 0)
            elif outcome.error is not None:
                work.fail(outcome.task.index, outcome.task.label, outcome.error)
            if work.check_limit(counts, final=False):
                break
    if work.report.failures:
        return None
    return [spans for index in sorted(kept) for spans in kept[index]]


def _earlier(work: Reorder, task: ScanTask) -> list[ShardSpans] | None:
    return None if work.plan.kind == "memory" or work.spec.exists == "overwrite" else load_scan(task)


# -- all samples in one place ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Samples:
    """The columns of all input shards, one behind the other: 16 bytes a sample, and its key's width."""

    shards: list[ShardSpans]
    ends: NDArray[np.int64]
    """For each shard how many samples it and those before it have."""
    starts: NDArray[Any]
    lengths: NDArray[Any]
    stems: NDArray[Any]

    @classmethod
    def of(cls, shards: list[ShardSpans]) -> Samples:
        """Join the columns; those of the shards are given up."""
        ends = np.cumsum([len(spans.starts) for spans in shards], dtype=np.int64)
        columns = {
            name: np.concatenate([getattr(spans, name) for spans in shards]) for name in ("starts", "lengths", "stems")
        }
        for spans in shards:
            spans.starts = spans.lengths = spans.stems = np.empty(0, np.uint32)
        return cls(shards, ends, **columns)

    def __len__(self) -> int:
        return len(self.starts)

    def source_of(self, samples: NDArray[Any]) -> NDArray[np.uint32]:
        """Give the shard of each sample."""
        return np.searchsorted(self.ends, samples, "right").astype(np.uint32)

    def order(self, work: Reorder) -> Order:
        """Order the samples as the job asks for."""
        if not isinstance(work.spec, SortSpec):
            counts, seed = np.diff(self.ends, prepend=0).tolist(), work.job.seed
            drawn = [shuffle_keys(seed, spans.ordinal, n) for spans, n in zip(self.shards, counts, strict=True)]
            return order_of(np.concatenate(drawn))
        keys = np.concatenate([spans.keys for spans in self.shards if spans.keys is not None])
        order = order_of(keys)
        if any(spans.keys_cut for spans in self.shards):
            settle_long_keys(order, keys, MAX_KEY_WIDTH, self._span_of, work.job)
        return order

    def _span_of(self, sample: int) -> tuple[Source, int, int]:
        shard = int(self.source_of(np.array([sample]))[0])
        return self.shards[shard].source, int(self.starts[sample]), int(self.lengths[sample])

    def fresh(self, work: Reorder, order: Order) -> NDArray[np.bool_] | None:
        """Tell where groups begin, in the new order; None where nothing is reduced."""
        if not (isinstance(work.spec, SortSpec) and work.spec.reduces):
            return None
        return runs_of(np.concatenate([spans.groups for spans in self.shards if spans.groups is not None])[order])


# -- the last pass ---------------------------------------------------------------------------------------------------


def _write(work: Reorder, engine: Engine, samples: Samples, order: Order) -> None:
    work.samples = len(samples)
    for spans in samples.shards:
        work.members += spans.members
        work.digest += spans.digest
        work.proof += spans.raw_digest
    lengths = samples.lengths[order]
    totals = Totals(
        len(samples),
        int(lengths.sum(dtype=np.int64)),
        int(lengths.max(initial=0)),
        int(lengths[-1]) if len(lengths) else 0,
    )
    cuts = plan_cuts(
        work.spec, None if work.out.is_open else work.out.count, len(work.inputs), totals, lambda: [lengths]
    )
    work.name_outputs(cuts)
    places = cuts.places(lengths)
    places[-1] = len(samples)
    fresh = samples.fresh(work, order)
    if fresh is not None:
        begins = np.append(np.flatnonzero(fresh), len(samples))
        places = begins[np.searchsorted(begins, places, "left")]
    tasks = list(_gather_tasks(work, samples, order, lengths, places, fresh))
    work.listener.stage("writing", len(tasks), sum(int(task.lengths.sum(dtype=np.int64)) for task in tasks))
    with closing(run_tasks(engine, gather, tasks, work.listener)) as outcomes:  # type: ignore[type-var]
        for outcome in outcomes:
            if outcome.result is not None:
                for done in outcome.result:
                    work.take(done)
                read = int(outcome.task.lengths.sum(dtype=np.int64))
                work.listener.finished(outcome.task.index, len(outcome.task.lengths), read, 0)
            elif outcome.error is not None:
                work.fail(outcome.task.index, storage.mask(outcome.task.label), outcome.error)


def _gather_tasks(
    work: Reorder,
    samples: Samples,
    order: Order,
    lengths: NDArray[Any],
    places: NDArray[np.int64],
    fresh: NDArray[np.bool_] | None,
) -> Iterator[GatherTask]:
    """Share out the output shards that are not finished."""
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    sizes = ends[places[1:]] - ends[places[:-1]]
    todo = [number for number in range(len(sizes)) if number not in work.done]
    for index, (begin, end) in enumerate(grouped(sizes[todo], task_bytes(int(sizes.sum())))):
        numbers = todo[begin:end]
        chosen = np.concatenate([order[places[number] : places[number + 1]] for number in numbers])
        shards = samples.source_of(chosen)
        used, source = np.unique(shards, return_inverse=True)
        outputs = []
        at = 0
        for number in numbers:
            count = int(places[number + 1] - places[number])
            outputs.append(Output(number, from_anywhere(work.outputs[number]), at, at + count))
            at += count
        flags = None
        if fresh is not None:
            flags = np.concatenate([fresh[places[number] : places[number + 1]] for number in numbers])
        yield GatherTask(
            index,
            work.job,
            tuple(outputs),
            tuple(samples.shards[shard].source for shard in used.tolist()),
            source.astype(np.uint32),
            samples.starts[chosen],
            samples.lengths[chosen],
            samples.stems[chosen],
            flags,
        )
