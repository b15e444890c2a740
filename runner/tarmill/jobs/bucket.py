"""The second pass of the external plan, in a worker: the samples of a range of keys, from all runs, into shards."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout

import numpy as np
from xxhash import xxh3_128_intdigest

from tarmill import storage
from tarmill.engine.meter import current
from tarmill.formats.keys import key_function
from tarmill.formats.samples import Record
from tarmill.formats.span_order import runs_of
from tarmill.formats.tar_span import decode_span
from tarmill.jobs.bucket_walk import Bucket, Walk
from tarmill.jobs.copy_writer import CopyWriter
from tarmill.jobs.reduce_writer import PieceDone, PieceWriter, ReduceWriter, reduce_writer
from tarmill.jobs.span_sources import forget_file
from tarmill.planning.cuts import Cuts
from tarmill.planning.external_tasks import BucketTask
from tarmill.planning.span_tasks import Output
from tarmill.planning.tasks import ShardDone


def write_bucket(task: BucketTask) -> Sequence[ShardDone | PieceDone]:
    """Write the task's output shards; the function that engines run.

    Raises:
        ChangedError: a run file is not the one that was written.
        FormatError, ScriptError: from a reduce, under `--on-error fail`.
        StorageError: reading or writing failed for good.
    """
    storage.configure(task.job.settings)
    if task.inputs:
        with redirect_stdout(sys.stderr):  # what a script prints must not mix with data on standard output
            return _Reduction(task).run()
    return _Copying(task).run()


def outputs_without_group(task: BucketTask) -> list[int]:
    """Name those of the task's outputs in which no group begins; the function that engines run. Reads rows alone."""
    storage.configure(task.job.settings)
    walk = Walk(task)
    before = walk.last_group_before(task.bucket)
    left = {output.number: output for output in task.outputs}
    end = task.outputs[-1].end
    for number in range(task.bucket, task.buckets):
        bucket = walk.load(number, rows_only=True)
        place = bucket.first_sample if task.unit == "samples" else bucket.first_byte
        if not left or place >= end:
            break
        groups = bucket.groups
        assert groups is not None
        if not len(groups):
            continue
        fresh = runs_of(groups)
        fresh[0] = before is None or int(groups[0]) != before
        begins = bucket.positions(task.unit)[fresh]
        for output in list(left.values()):
            if ((begins >= output.begin) & (begins < output.end)).any():
                del left[output.number]
        before = int(groups[-1])
    walk.release()
    return sorted(left)


class _Copying:
    """Copies the samples of the task's shards, bucket by bucket, until the last shard is full."""

    def __init__(self, task: BucketTask) -> None:
        self.task = task
        self.walk = Walk(task)

    def run(self) -> list[ShardDone]:
        task, done = self.task, []
        left = list(task.outputs)
        writer: CopyWriter | None = None
        number = task.bucket
        try:
            while left:
                bucket = self.walk.load(number) if number < task.buckets else None
                while left:
                    output = left[0]
                    writer = writer or CopyWriter(task.job, output.number, output.url)
                    if bucket is not None and output.begin < output.end:
                        begin, end = _inside(bucket, output, task.unit)
                        writer.take(bucket.sources, bucket.picks.part(begin, end), bucket.portions)
                        if (
                            end == len(bucket.picks.lengths)
                            and number + 1 < task.buckets
                            and not self._full(output, number + 1)
                        ):
                            break
                    done.append(writer.commit(bucket.sources.verify if bucket is not None else _nothing))
                    forget_file(output.url)
                    writer = None
                    left.pop(0)
                number += 1
        finally:
            if writer is not None:
                writer.__exit__(None, None, None)
            self.walk.release()
        return done

    def _full(self, output: Output, following: int) -> bool:
        """Tell whether a shard ends before the bucket that follows."""
        place = self.walk.places.read(following)
        return output.end <= (place.first_sample if self.task.unit == "samples" else place.first_byte)


def _nothing() -> None:
    """There is nothing to verify."""


def _inside(bucket: Bucket, output: Output, unit: str) -> tuple[int, int]:
    """Find which of a bucket's samples an output shard holds."""
    edges = np.array([output.begin, output.end], np.int64)
    cuts = Cuts("samples" if unit == "samples" else "bytes", edges)
    begin, end = cuts.places(bucket.picks.lengths, bucket.first_sample, bucket.first_byte).tolist()
    return begin, end


class _Reduction:
    """Sends the groups that begin in the task's shards through the reduce; a group may reach over many buckets."""

    def __init__(self, task: BucketTask) -> None:
        self.task = task
        self.walk = Walk(task)
        self.number = task.bucket
        self.at = 0
        """Which sample of the bucket comes next."""
        self.group_before: int | None = None
        self.positions: list[int] = []
        """Places of the bucket's samples in the global order, in the unit of the cuts."""
        self.split = key_function(task.job.spec.key_function)
        self.bucket = self.walk.load(self.number)
        self._begin(self.walk.last_group_before(self.number))

    def run(self) -> list[ShardDone | PieceDone]:
        task = self.task
        done: list[ShardDone | PieceDone] = []
        begins = [output.begin for output in task.outputs]
        left = list(task.outputs)
        writer: ReduceWriter | PieceWriter | None = None
        try:
            for place, samples in self._groups():
                if place >= task.outputs[-1].end:
                    break
                number = bisect_right(begins, place) - 1
                if number < 0:
                    for _ in samples:
                        pass  # it begins in a shard of the task before
                    continue
                while left[0].number != task.outputs[number].number:
                    done.append(self._close(writer, left.pop(0)))
                    writer = None
                writer = writer or reduce_writer(task.job, left[0].number, left[0].url)
                writer.reduce_group(samples)
            while left:
                done.append(self._close(writer, left.pop(0)))
                writer = None
        finally:
            if writer is not None:
                writer.__exit__(None, None, None)
            self.walk.release()
        return done

    def _close(self, writer: ReduceWriter | PieceWriter | None, output: Output) -> ShardDone | PieceDone:
        writer = writer or reduce_writer(self.task.job, output.number, output.url)
        done = writer.commit(self.bucket.sources.verify)
        forget_file(output.url)
        return done

    def _groups(self) -> Iterator[tuple[int, Iterator[tuple[Record, int]]]]:
        """Give each group that begins from here on: its place in the global order, and its samples."""
        while self._more():
            fresh = self.bucket.picks.fresh
            assert fresh is not None
            if not fresh[self.at]:
                self.at += 1  # the rest of a group that began in a bucket before the task's
                continue
            yield self.positions[self.at], self._samples()

    def _samples(self) -> Iterator[tuple[Record, int]]:
        """Read the samples of the group that begins here, on into the next buckets, and hash their ranges."""
        first, meter, job = True, current(), self.task.job
        while self._more():
            bucket, picks = self.bucket, self.bucket.picks
            assert picks.fresh is not None
            if picks.fresh[self.at] and not first:
                return
            first = False
            source, start, length = (int(c[self.at]) for c in (picks.source, picks.starts, picks.lengths))
            data = bucket.sources.read_one(source, start, length)
            label, part = self.task.inputs[int(bucket.shards[self.at])]
            record = decode_span(data, label, self.split, job.spec.max_member)
            record["__part__"] = part
            meter.read_bytes += length
            self.at += 1
            yield record, xxh3_128_intdigest(data)

    def _more(self) -> bool:
        """Go on to the next bucket where this one is at its end; False when there is none."""
        while self.at >= len(self.bucket.picks.lengths):
            if self.number + 1 >= self.task.buckets:
                return False
            if len(self.bucket.picks.lengths):
                assert self.bucket.groups is not None
                self.group_before = int(self.bucket.groups[-1])
            self.number += 1
            self.bucket = self.walk.load(self.number)
            self._begin(self.group_before)
        return True

    def _begin(self, group_before: int | None) -> None:
        """Stand at the first sample of the bucket, which may go on with the group of the last one before it."""
        picks, groups = self.bucket.picks, self.bucket.groups
        assert picks.fresh is not None
        assert groups is not None
        self.at, self.group_before = 0, group_before
        if len(groups) and group_before is not None:
            picks.fresh[0] = int(groups[0]) != group_before
        self.positions = self.bucket.positions(self.task.unit).tolist()
