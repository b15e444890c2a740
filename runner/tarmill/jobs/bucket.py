"""The second pass of the external plan, in a worker: the samples of a range of keys, from all runs, into shards."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_intdigest

from tarmill import storage
from tarmill.engine.meter import current
from tarmill.formats.keys import key_function
from tarmill.formats.samples import Record
from tarmill.formats.span_order import order_of, runs_of
from tarmill.formats.tar_span import decode_span
from tarmill.jobs.copy_writer import CopyWriter, Picks
from tarmill.jobs.long_keys import settle_long_keys
from tarmill.jobs.ordering import cached_ordering
from tarmill.jobs.reduce_writer import PieceDone, PieceWriter, ReduceWriter, reduce_writer
from tarmill.jobs.run_files import joined_column, read_rows
from tarmill.jobs.scratch_files import ScratchFile
from tarmill.jobs.span_sources import SpanSources
from tarmill.planning.cuts import Cuts
from tarmill.planning.external_tasks import BucketTask, Located, Run
from tarmill.planning.span_tasks import Job, Output, Source
from tarmill.planning.tasks import ShardDone
from tarmill.values import valueclass

_FETCH_BYTES = 8 << 20


class Places:
    """Where each bucket begins in each run, and in the global order; a small file that the tasks read parts of.

    Layout: for each bucket, and for the end behind the last, 64-bit integers: samples before it, bytes before it, then
    for each run its row and its offset there, and the hash of its rows in this bucket.
    """

    def __init__(self, url: str, runs: int) -> None:
        self._url = url
        self._runs = runs

    @staticmethod
    def pack(located: Sequence[Located]) -> bytes:
        """Lay out the places that were found in each run, in the order of the runs."""
        rows, offsets, hashes = (
            np.array([getattr(found, name) for found in located], np.uint64).T for name in ("rows", "offsets", "hashes")
        )
        return np.column_stack([rows.sum(axis=1), offsets.sum(axis=1), rows, offsets, hashes]).astype("<u8").tobytes()

    def read(self, bucket: int) -> Place:
        """Give the place of a bucket."""
        runs = self._runs
        width = (2 + 3 * runs) * 8
        (data,) = storage.read_ranges(self._url, [(bucket * width, 2 * width)])
        here, there = np.frombuffer(data, "<u8").reshape(2, -1).tolist()
        rows, ranges, hashes = slice(2, 2 + runs), slice(2 + runs, 2 + 2 * runs), slice(2 + 2 * runs, None)
        return Place(
            here[0],
            here[1],
            list(zip(here[rows], there[rows], strict=True)),
            list(zip(here[ranges], there[ranges], strict=True)),
            here[hashes],
        )


class Place(NamedTuple):
    """Where a bucket is."""

    first_sample: int
    first_byte: int
    rows: list[tuple[int, int]]
    """(begin, end) in each run."""
    data: list[tuple[int, int]]
    """The same of its data."""
    hashes: list[int]
    """Of its rows in each run."""


@valueclass(frozen=False)
class Bucket:
    """The samples of one bucket in their order, as columns."""

    first_sample: int
    first_byte: int
    picks: Picks
    shards: NDArray[Any]
    """Input shard of each sample."""
    groups: NDArray[Any] | None
    """Hash of the group of each; None where nothing is reduced."""
    sources: SpanSources
    scratch: list[ScratchFile]

    def positions(self, unit: str) -> NDArray[np.int64]:
        """Give the places of the samples in the global order, in samples or bytes."""
        if unit == "samples":
            return np.arange(self.first_sample, self.first_sample + len(self.shards))
        ends = np.cumsum(self.picks.lengths, dtype=np.int64)
        starts: NDArray[np.int64] = self.first_byte + ends - self.picks.lengths
        return starts

    def release(self) -> None:
        """Close its files, and remove what was fetched for it."""
        self.sources.release()
        for copy in self.scratch:
            storage.delete(copy.path)


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


class Walk:
    """The buckets from the task's own on, loaded one at a time."""

    def __init__(self, task: BucketTask) -> None:
        self.task = task
        self.places = Places(task.places, len(task.runs))
        self.current: Bucket | None = None

    def load(self, number: int, *, rows_only: bool = False) -> Bucket:
        """Load a bucket, and give back the one before.

        Args:
            number: of the bucket.
            rows_only: leave the data where it is, unless keys can be compared by nothing else.
        """
        self.release()
        task = self.task
        place = self.places.read(number)
        pieces = [
            read_rows(run, *where, expected)
            for run, where, expected in zip(task.runs, place.rows, place.hashes, strict=True)
        ]
        counts = [len(piece) for piece in pieces]
        run = np.repeat(np.arange(len(pieces), dtype=np.uint32), counts)
        keys, starts, lengths = (joined_column(pieces, name) for name in ("key", "offset", "length"))
        cut = any(item.keys_cut for item in task.runs)
        near = (rows_only and not cut) or all(storage.scheme_of(item.url) == "file" for item in task.runs)
        sources, scratch = _sources(task.job, task.runs, [] if near else place.data, f"bucket-{task.index}-{number}")
        starts = starts.astype(np.int64) - np.repeat(np.array([shift for _, shift in sources], np.int64), counts)
        known = [source for source, _ in sources]
        order = order_of(keys)
        if cut:

            def span_of(sample: int) -> tuple[Source, int, int]:
                return known[int(run[sample])], int(starts[sample]), int(lengths[sample])

            settle_long_keys(order, keys, span_of, task.job)
        groups = joined_column(pieces, "group")[order] if task.inputs else None
        stems, fields, shards = (joined_column(pieces, name)[order] for name in ("stem", "fields", "shard"))
        fresh = runs_of(groups) if groups is not None else None
        picks = Picks(run[order], starts[order], lengths[order], stems, fields, fresh)
        opened = SpanSources(known)
        self.current = Bucket(place.first_sample, place.first_byte, picks, shards, groups, opened, scratch)
        return self.current

    def lengths(self, number: int) -> NDArray[Any]:
        """Give the sizes of a bucket's samples in their order."""
        lengths = self.load(number, rows_only=True).picks.lengths
        self.release()
        return lengths

    def last_group_before(self, number: int) -> int | None:
        """Give the group of the last sample of all buckets before this one; None for the first."""
        rows = self.places.read(number).rows
        last = [
            (index, read_rows(run, begin - 1, begin)[0])
            for index, (run, (begin, _)) in enumerate(zip(self.task.runs, rows, strict=True))
            if begin
        ]
        if not last:
            return None
        top = max(_plain(row["key"]) for _, row in last)
        tied = [(index, row) for index, row in last if _plain(row["key"]) == top]
        if len(tied) > 1 and any(self.task.runs[index].keys_cut for index, _ in tied):
            tied.sort(key=lambda item: (self._whole_key(*item), item[0]))
        return int(tied[-1][1]["group"])

    def _whole_key(self, index: int, row: Any) -> bytes:
        run, job = self.task.runs[index], self.task.job
        where = [(int(row["offset"]), int(row["length"]))]
        (data,) = storage.read_ranges(run.url, where, version=run.version)
        return cached_ordering(job.spec).full_key(decode_span(data, run.url, key_function(job.spec.key_function)))

    def release(self) -> None:
        """Give back the bucket in hand."""
        if self.current is not None:
            self.current.release()
            self.current = None


def _plain(key: Any) -> Any:
    return bytes(key) if isinstance(key, bytes) else int(key)


def _sources(
    job: Job, runs: Sequence[Run], data: Sequence[tuple[int, int]], name: str
) -> tuple[list[tuple[Source, int]], list[ScratchFile]]:
    """Make each run's part of a bucket readable in any order: where it lies, and what to take off its offsets.

    Where `data` is empty, runs are read where they are; else these parts of them are fetched into one scratch file.
    """
    if not data:
        return [(Source(run.url, run.version, run.url, 0), 0) for run in runs], []
    copy = ScratchFile(job.scratch, f"{name}.dat", job.job)
    shifts = []
    try:
        for run, (begin, end) in zip(runs, data, strict=True):
            shifts.append(begin - copy.size_bytes)
            ranges = [(at, min(_FETCH_BYTES, end - at)) for at in range(begin, end, _FETCH_BYTES)]
            for at in range(0, len(ranges), 4):
                for piece in storage.read_ranges(run.url, ranges[at : at + 4], version=run.version):
                    copy.write(piece)
        copy.commit()
    finally:
        copy.abort()
    source = Source(copy.path, storage.stat(copy.path).version, name, 0)
    return [(source, shift) for shift in shifts], [copy]


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
                        writer.take(bucket.sources, bucket.picks.part(begin, end))
                        if (
                            end == len(bucket.picks.lengths)
                            and number + 1 < task.buckets
                            and not self._full(output, number + 1)
                        ):
                            break
                    done.append(writer.commit(bucket.sources.verify if bucket is not None else _nothing))
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
        return writer.commit(self.bucket.sources.verify)

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
