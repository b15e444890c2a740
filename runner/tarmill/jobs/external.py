"""The external plan of a shuffle or sort: run files, splitters chosen from them, and buckets of keys into shards.

The passes meet in files of the job's folder alone, so that a driver or worker that is lost loses only what it had in
hand: batches that left a manifest are not done again, nor are output shards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarmill import storage
from tarmill.engine.base import Engine
from tarmill.errors import NoSpaceError
from tarmill.jobs.bucket import outputs_without_group, write_bucket
from tarmill.jobs.bucket_walk import Places, Walk
from tarmill.jobs.drive import choose_engine, from_anywhere, probe_workers, run_tasks
from tarmill.jobs.gather_tasks import cuts_exactly, run_gather
from tarmill.jobs.reorder_job import Reorder
from tarmill.jobs.run_files import hash_of_rows, read_rows
from tarmill.jobs.run_stretches import release_memory
from tarmill.jobs.spill_batch import batch_file, load_batch, spill_batch
from tarmill.planning.cuts import Cuts, Totals, grouped, plan_cuts
from tarmill.planning.external_tasks import BatchDone, BatchTask, BucketTask, Located, LocateTask, Run
from tarmill.planning.span_tasks import Output
from tarmill.planning.splitters import choose_splitters, rows_at
from tarmill.spec import SortSpec
from tarmill.values import replace

_LEAST_BATCH = 8 << 20
_MOST_BATCH = 1 << 30


def reorder_externally(work: Reorder) -> None:
    """Do all passes; failures go into the report."""
    tasks = batch_tasks(work)
    urls = [work.inputs[0].shard.url, work.out.folder or "./"]
    count = max(2, len(tasks))
    with choose_engine(work.options, count, urls, scripts=work.runs_scripts, apart=work.job.maps) as engine:
        first = work.inputs[0].shard
        if first.url != "-":
            probe_workers(engine, first, from_anywhere(work.out.folder or "./"))
        runs = _spill(work, engine, tasks)
        if runs is None:
            return
        located = _locate(work, engine, runs)
        if located is None:
            return
        try:
            _write(work, engine, runs, located)
        finally:
            release_memory()


# -- the first pass: batches into runs -------------------------------------------------------------------------------


def batch_tasks(work: Reorder) -> list[BatchTask]:
    """Share out the input shards into batches, in order; by their sizes alone, so that a later run finds the same."""
    sizes = np.array([found.shard.size_bytes or 0 for found in work.inputs], np.int64)
    least = max(_LEAST_BATCH, min(_MOST_BATCH, int(sizes.sum()) // 8))
    return [
        BatchTask(index, work.job, tuple(work.inputs[begin:end]), work.plan.batch_bytes)
        for index, (begin, end) in enumerate(grouped(sizes, least))
    ]


def _spill(work: Reorder, engine: Engine, tasks: Sequence[BatchTask]) -> list[Run] | None:
    """Write the runs, but for those that an earlier attempt has written; None when that failed."""
    counts = work.report.counts
    done: dict[int, BatchDone] = {}
    if work.may_resume:
        done = {task.index: found for task in tasks if (found := load_batch(task)) is not None}
    todo = [task for task in tasks if task.index not in done]
    work.listener.stage("first pass", len(todo), sum(s.shard.size_bytes or 0 for task in todo for s in task.shards))
    for found in done.values():
        counts.merge(found.counts)
    with closing(run_tasks(engine, spill_batch, todo, work.listener, fail_fast=work.options.fail_fast)) as outcomes:  # type: ignore[type-var]
        for outcome in outcomes:
            if outcome.result is not None:
                done[outcome.task.index] = outcome.result
                read = outcome.result.counts
                counts.merge(read)
                _check_scratch(work, done)
                work.listener.finished(outcome.task.index, read.read, read.read_bytes, 0)
            elif outcome.error is not None:
                work.fail(outcome.task.index, outcome.task.label, outcome.error)
            if work.check_limit(counts, final=False):
                break
    work.scratch_files.update(batch_file(work.job.state, task.index) for task in tasks)
    work.scratch_files.update(run.url for found in done.values() for run in found.runs)
    if work.report.failures:
        return None
    for index in sorted(done):
        work.members += done[index].members
        work.digest += done[index].digest
        work.proof += done[index].proof
    return [run for index in sorted(done) for run in done[index].runs]


def _check_scratch(work: Reorder, done: Mapping[int, BatchDone]) -> None:
    """Fail the job when it uses more scratch than it may: how much it takes is known only now, of compressed inputs."""
    used = sum(run.data_bytes for found in done.values() for run in found.runs)
    if work.options.scratch and used > work.options.scratch:
        read = sum(work.inputs[ordinal].shard.size_bytes or 0 for found in done.values() for ordinal in found.shards)
        whole = sum(found.shard.size_bytes or 0 for found in work.inputs)
        raise NoSpaceError(
            f"{used / 1e6:,.1f} MB of scratch are in use and --scratch allows {work.options.scratch / 1e6:,.1f} MB; "
            f"the whole job needs about {used * whole / max(1, read) / 1e6:,.1f} MB: allow that, and run it again",
            used_bytes=used,
        )


# -- between the passes: where the buckets begin ---------------------------------------------------------------------


def locate(task: LocateTask) -> Located:
    """Find the splitters in one run; the function that engines run."""
    storage.configure(task.job.settings)
    rows = read_rows(task.run, 0, task.run.samples, task.run.rows_hash)
    places = rows_at(np.ascontiguousarray(rows["key"]), task.index, task.splitters)
    offsets = [int(rows["offset"][row]) if row < len(rows) else task.run.data_bytes for row in places]
    hashes = [hash_of_rows(rows[begin:end]) for begin, end in pairwise(places)]
    return Located(task.index, places, offsets, [*hashes, 0])


def _locate(work: Reorder, engine: Engine, runs: Sequence[Run]) -> list[Located] | None:
    splitters = tuple(choose_splitters(runs, work.plan.bucket_bytes))
    if not splitters:
        return [
            Located(index, [0, run.samples], [0, run.data_bytes], [run.rows_hash, 0]) for index, run in enumerate(runs)
        ]
    tasks = [LocateTask(index, work.job, replace(run, marks=()), splitters) for index, run in enumerate(runs)]
    work.listener.stage("splitting", len(tasks), None)
    found: dict[int, Located] = {}
    with closing(run_tasks(engine, locate, tasks, work.listener)) as outcomes:  # type: ignore[type-var]
        for outcome in outcomes:
            if outcome.result is not None:
                found[outcome.task.index] = outcome.result
            elif outcome.error is not None:
                work.fail(outcome.task.index, storage.mask(outcome.task.label), outcome.error)
    return None if work.report.failures else [found[index] for index in range(len(runs))]


# -- the second pass: buckets into shards ----------------------------------------------------------------------------


def _write(work: Reorder, engine: Engine, runs: list[Run], located: Sequence[Located]) -> None:
    rows = np.array([place.rows for place in located] or np.empty((0, 1)), np.int64).T
    offsets = np.array([place.offsets for place in located] or np.empty((0, 1)), np.int64).T
    first_sample, first_byte = rows.sum(axis=1), offsets.sum(axis=1)
    buckets = max(0, len(rows) - 1)
    work.samples = sum(run.samples for run in runs)
    url = f"{work.job.state}places.bin"
    work.scratch_files.add(url)
    storage.write_bytes(url, Places.pack(located) if located else b"", owner=work.job.job)
    bare = tuple(replace(run, marks=()) for run in runs)  # which every task would carry
    frame = BucketTask(0, work.job, 0, buckets, bare, url, (), "samples", _labels(work))
    size = sum(run.data_bytes for run in runs)
    if cuts_exactly(work):
        from tarmill.jobs.exact_cut import Pieces

        pieces = Pieces(work, work.samples, size)
        tasks = _bucket_tasks(frame, pieces.cuts, first_sample, pieces.urls, pieces.done)
        if run_gather(work, engine, "second pass", write_bucket, tasks, pieces.take, size):
            pieces.cut(engine)
        return
    cuts = _cuts(work, runs, frame)
    begins = first_sample if cuts.unit == "samples" else first_byte
    if frame.inputs and not work.count_is_asked:
        cuts = _without_empty(work, engine, frame, cuts, begins)
        if work.report.failures:
            return
    work.name_outputs(cuts)
    tasks = _bucket_tasks(frame, cuts, begins, work.outputs, work.done)
    run_gather(work, engine, "second pass", write_bucket, tasks, work.take, size)


def _without_empty(work: Reorder, engine: Engine, frame: BucketTask, cuts: Cuts, begins: NDArray[np.int64]) -> Cuts:
    """Leave out shards in which no group begins: a group that is larger than a shard leaves such."""
    empty = np.zeros(len(cuts), bool)
    tasks = _bucket_tasks(frame, cuts, begins, [""] * len(cuts), ())
    work.listener.stage("looking for groups", len(tasks), None)
    with closing(run_tasks(engine, outputs_without_group, tasks, work.listener)) as outcomes:  # type: ignore[type-var]
        for outcome in outcomes:
            if outcome.error is not None:
                work.fail(outcome.task.index, storage.mask(work.job.spill), outcome.error)
            empty[outcome.result or []] = True
    return cuts.without(empty)


def _labels(work: Reorder) -> tuple[tuple[str, int], ...]:
    if not (isinstance(work.spec, SortSpec) and work.spec.reduces):
        return ()
    return tuple((found.shard.label, found.part) for found in work.inputs)


def _cuts(work: Reorder, runs: Sequence[Run], frame: BucketTask) -> Cuts:
    size = sum(run.data_bytes for run in runs)
    largest = max((run.largest_bytes for run in runs), default=0)
    last = max(enumerate(runs), key=lambda item: (item[1].last_key, item[0]))[1].last_bytes if runs else 0
    totals = Totals(work.samples, size, largest, last)

    def lengths() -> Iterator[NDArray[Any]]:
        walk = Walk(frame)
        for bucket in range(frame.buckets):
            yield walk.lengths(bucket)

    return plan_cuts(work.spec, work.fixed_count, len(work.inputs), totals, lengths)


def _bucket_tasks(
    frame: BucketTask, cuts: Cuts, begins: NDArray[np.int64], urls: Sequence[str], done: Collection[int]
) -> list[BucketTask]:
    """Give each bucket the unfinished outputs that begin in it.

    Args:
        frame: a task without outputs.
        cuts: between the outputs.
        begins: where each bucket begins, in the unit of the cuts.
        urls: of the outputs.
        done: numbers of those that are finished.
    """
    edges = cuts.edges.tolist()
    buckets = np.clip(np.searchsorted(begins, cuts.edges[:-1], "right") - 1, 0, max(0, frame.buckets - 1))
    owned: dict[int, list[Output]] = {}
    for number, bucket in enumerate(buckets.tolist()):
        if number not in done:
            output = Output(number, urls[number], edges[number], edges[number + 1])
            owned.setdefault(bucket, []).append(output)
    return [
        replace(frame, index=index, bucket=bucket, outputs=tuple(outputs), unit=cuts.unit)
        for index, (bucket, outputs) in enumerate(sorted(owned.items()))
    ]
