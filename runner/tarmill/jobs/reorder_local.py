"""The plans `local` and `memory` of a shuffle or sort: find all samples, order them in one place, copy them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarmill.engine.base import Engine
from tarmill.engine.serial import serial_engine
from tarmill.formats.span_order import Order, order_of, runs_of
from tarmill.formats.tar_header import BLOCK
from tarmill.jobs.drive import choose_engine, from_anywhere, probe_workers, run_tasks
from tarmill.jobs.gather import gather
from tarmill.jobs.gather_tasks import Samples, cuts_exactly, gather_tasks, places_of, run_gather, totals_of
from tarmill.jobs.long_keys import settle_long_keys
from tarmill.jobs.reorder_job import Reorder
from tarmill.jobs.scan import scan_shards
from tarmill.jobs.scan_columns import load_scan, scan_file
from tarmill.planning.cuts import Cuts, grouped, plan_cuts, task_bytes
from tarmill.planning.prf import shuffle_keys
from tarmill.planning.span_tasks import ScanTask, ShardSpans
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
        _write(work, engine, found)


def _engine(work: Reorder, tasks: int) -> Engine:
    if work.plan.kind == "memory":
        return serial_engine()
    urls = [work.inputs[0].shard.url, work.out.folder or "./"]
    return choose_engine(work.options, max(2, tasks), urls, scripts=work.runs_scripts, apart=work.job.maps)


# -- the first pass --------------------------------------------------------------------------------------------------


def scan_tasks(work: Reorder) -> list[ScanTask]:
    """Share out the input shards: consecutive ones, as many as are worth a task."""
    sizes = np.array([found.shard.size_bytes or 0 for found in work.inputs], np.int64)
    groups = grouped(sizes, task_bytes(int(sizes.sum())))
    return [ScanTask(index, work.job, tuple(work.inputs[begin:end])) for index, (begin, end) in enumerate(groups)]


def scan_all(work: Reorder, engine: Engine, tasks: Sequence[ScanTask]) -> list[ShardSpans] | None:
    """Find the samples of all inputs, but for those that an earlier run has found; None when that failed."""
    kept = {task.index: _drawn(work, spans) for task in tasks if (spans := _earlier(work, task)) is not None}
    todo = [task for task in tasks if task.index not in kept]
    total = sum(found.shard.size_bytes or 0 for task in todo for found in task.shards)
    work.listener.stage("reading", len(todo), total)
    counts = work.report.counts
    for found in kept.values():
        for shard in found:
            counts.merge(shard.counts)
    with closing(run_tasks(engine, scan_shards, todo, work.listener, fail_fast=work.options.fail_fast)) as outcomes:  # type: ignore[type-var]
        for outcome in outcomes:
            if outcome.result is not None:
                counts.merge(outcome.result.counts)
                kept[outcome.task.index] = _drawn(work, outcome.result.spans or load_scan(outcome.task) or [])
                read = outcome.result.counts
                work.listener.finished(outcome.task.index, read.read, read.read_bytes, 0)
            elif outcome.error is not None:
                work.fail(outcome.task.index, outcome.task.label, outcome.error)
            if work.check_limit(counts, final=False):
                break
    if work.plan.kind != "memory":
        work.scratch_files.update(scan_file(work.job.state, task.index) for task in tasks)
    if work.report.failures:
        return None
    return [spans for index in sorted(kept) for spans in kept[index]]


def _earlier(work: Reorder, task: ScanTask) -> list[ShardSpans] | None:
    return load_scan(task) if work.may_resume and work.plan.kind != "memory" else None


def _drawn(work: Reorder, shards: list[ShardSpans]) -> list[ShardSpans]:
    """Draw the keys of a shuffle, while workers still read other shards."""
    if not isinstance(work.spec, SortSpec):
        for spans in shards:
            spans.keys = shuffle_keys(work.job.seed, spans.ordinal, len(spans.starts))
    return shards


# -- all samples in one place ----------------------------------------------------------------------------------------


def joined(shards: Sequence[ShardSpans]) -> Samples:
    """Join the columns of all shards; their own are given up."""
    ends = np.cumsum([len(spans.starts) for spans in shards], dtype=np.int64)
    names = ("starts", "lengths", "stems", "fields")
    columns = {name: np.concatenate([getattr(spans, name) for spans in shards]) for name in names}
    for spans in shards:
        spans.starts = spans.lengths = spans.stems = spans.fields = np.empty(0, np.uint32)
    return Samples([spans.source for spans in shards], ends, **columns)


def order_all(work: Reorder, shards: Sequence[ShardSpans], samples: Samples) -> NDArray[Any]:
    """Order all samples as the job asks for."""
    keys = np.concatenate([spans.keys for spans in shards if spans.keys is not None])
    for spans in shards:
        spans.keys = None
    order = order_of(keys)
    if any(spans.keys_cut for spans in shards):
        settle_long_keys(order, keys, samples.span_of, work.job)
    return _short(order)


def _short(order: Order) -> NDArray[Any]:
    """Hold an order in four bytes a sample where that is possible."""
    return order.astype(np.uint32) if len(order) < 1 << 32 else order


# -- the last pass ---------------------------------------------------------------------------------------------------


def _write(work: Reorder, engine: Engine, shards: Sequence[ShardSpans]) -> None:
    for spans in shards:
        work.members += spans.members
        work.digest += spans.digest
        work.proof += spans.raw_digest
    samples = joined(shards)
    order = order_all(work, shards, samples)
    work.samples = len(samples)
    fresh = None
    if isinstance(work.spec, SortSpec) and work.spec.reduces:
        fresh = runs_of(np.concatenate([spans.groups for spans in shards if spans.groups is not None])[order])
    for spans in shards:
        spans.groups = None
    if cuts_exactly(work):
        from tarmill.jobs.exact_cut import Pieces

        pieces = Pieces(work, len(samples), int(samples.lengths.sum(dtype=np.int64)) * BLOCK)
        tasks = gather_tasks(work.job, samples, order, pieces.cuts, pieces.urls, pieces.done, fresh)
        if run_gather(work, engine, "reducing", gather, tasks, pieces.take):
            pieces.cut(engine)
        return
    cuts = _cuts(work, samples.sizes(order), fresh)
    work.name_outputs(cuts)
    tasks = gather_tasks(work.job, samples, order, cuts, work.outputs, work.done, fresh)
    run_gather(work, engine, "writing", gather, tasks, work.take)


def _cuts(work: Reorder, lengths: NDArray[np.int64], fresh: NDArray[np.bool_] | None) -> Cuts:
    cuts = plan_cuts(work.spec, work.fixed_count, len(work.inputs), totals_of(lengths), lambda: [lengths])
    if fresh is None or work.count_is_asked:
        return cuts
    return cuts.without(np.diff(places_of(cuts, lengths, fresh)) == 0)
