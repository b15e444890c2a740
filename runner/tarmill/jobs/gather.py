"""The last pass of a shuffle or sort, in a worker: samples copied, or reduced, into output shards."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from xxhash import xxh3_128_intdigest

from tarmill import storage
from tarmill.engine.meter import current
from tarmill.formats.keys import key_function
from tarmill.formats.samples import Record
from tarmill.formats.tar_span import decode_span
from tarmill.jobs.copy_writer import CopyWriter, Picks
from tarmill.jobs.mapped_files import kept
from tarmill.jobs.span_sources import SpanSources
from tarmill.planning.span_tasks import GatherTask, Job
from tarmill.planning.tasks import ShardDone

if TYPE_CHECKING:
    from tarmill.jobs.reduce_writer import PieceDone


def gather(task: GatherTask) -> Sequence[ShardDone | PieceDone]:
    """Write the task's output shards, or pieces of reduced samples; the function that engines run.

    Each is committed, and leaves its manifest, before the next is begun.

    Raises:
        ChangedError: an input was changed since its samples were found.
        FormatError, ScriptError: from a reduce, under `--on-error fail`.
        StorageError: reading or writing failed for good.
    """
    job = task.job
    storage.configure(job.settings)
    columns = task.columns.load()
    sources = SpanSources(columns.sources, scratch=job.scratch, owner=job.job, maps=kept if job.maps else None)
    picks = Picks(columns.source, columns.starts, columns.lengths, columns.stems, columns.fields, columns.fresh)
    try:
        if task.reduces:
            return _reduce(task, sources, picks)
        done = []
        for output in task.outputs:
            with CopyWriter(job, output.number, output.url) as writer:
                writer.take(sources, picks.part(output.begin, output.end))
                done.append(writer.commit(sources.verify))
        return done
    finally:
        sources.release()


def _reduce(task: GatherTask, sources: SpanSources, picks: Picks) -> Sequence[ShardDone | PieceDone]:
    from tarmill.jobs.reduce_writer import reduce_writer

    done: list[ShardDone | PieceDone] = []
    for output in task.outputs:
        with redirect_stdout(sys.stderr), reduce_writer(task.job, output.number, output.url) as writer:
            mine = picks.part(output.begin, output.end)
            assert mine.fresh is not None
            edges = [*np.flatnonzero(mine.fresh).tolist(), len(mine.fresh)]
            for begin, end in pairwise(edges):
                writer.reduce_group(_records(task.job, sources, mine.part(begin, end)))
            done.append(writer.commit(sources.verify))
    return done


def _records(job: Job, sources: SpanSources, picks: Picks) -> Iterator[tuple[Record, int]]:
    """Read samples as records, with the hash of the range that each came from."""
    split, meter = key_function(job.spec.key_function), current()
    for source, start, length in picks.rows():
        data = sources.read_one(source, start, length)
        record = decode_span(data, sources.label(source), split, job.spec.max_member)
        record["__part__"] = sources.part(source)
        meter.read_bytes += length
        yield record, xxh3_128_intdigest(data)
