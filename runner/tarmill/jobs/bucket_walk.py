"""Buckets of the external plan, one after the other: rows and ranges of all runs between two splitters, in order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tarmill import storage
from tarmill.formats.keys import key_function
from tarmill.formats.span_order import order_of, runs_of
from tarmill.formats.tar_span import decode_span
from tarmill.jobs.copy_writer import Picks, Portions
from tarmill.jobs.long_keys import settle_long_keys
from tarmill.jobs.ordering import cached_ordering
from tarmill.jobs.run_files import joined_column, read_rows
from tarmill.jobs.run_stretches import RunStretches
from tarmill.jobs.scratch_files import ScratchFile
from tarmill.jobs.span_sources import SpanSources
from tarmill.planning.external_tasks import BucketTask, Located, Run
from tarmill.planning.span_tasks import Job, Source
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
    places: list[tuple[int, int, int]]
    """Where its samples lie in local runs: source, first byte and number of bytes."""
    stretches: RunStretches | None
    """What reads samples to copy out of local runs."""

    def positions(self, unit: str) -> NDArray[np.int64]:
        """Give the places of the samples in the global order, in samples or bytes."""
        if unit == "samples":
            return np.arange(self.first_sample, self.first_sample + len(self.shards))
        ends = np.cumsum(self.picks.lengths, dtype=np.int64)
        starts: NDArray[np.int64] = self.first_byte + ends - self.picks.lengths
        return starts

    @property
    def portions(self) -> Portions | None:
        """What gives some of its samples a portion at a time (see `CopyWriter.take`)."""
        return self.stretches.portions if self.stretches is not None else None

    def release(self) -> None:
        """Close its files, and remove what was fetched for it."""
        if self.stretches is not None:
            self.stretches.release()
        for place in self.places:
            self.sources.forget(*place)
        self.sources.release()
        for copy in self.scratch:
            storage.delete(copy.path)


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
        local = all(storage.scheme_of(run.url) == "file" for run in task.runs)
        opened = SpanSources([Source(run.url, run.version, run.url, 0) for run in task.runs] if local else [])
        pieces = [
            read_rows(run, *where, expected, partial(opened.read_one, index) if local else None)
            for index, (run, where, expected) in enumerate(zip(task.runs, place.rows, place.hashes, strict=True))
        ]
        counts = [len(piece) for piece in pieces]
        run = np.repeat(np.arange(len(pieces), dtype=np.uint32), counts)
        keys, starts, lengths = (joined_column(pieces, name) for name in ("key", "offset", "length"))
        cut = any(item.keys_cut for item in task.runs)
        near = local or (rows_only and not cut)
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
        if not local:
            opened = SpanSources(known)
        places, stretches = [], None
        if near and not rows_only:
            places = [(index, begin, end - begin) for index, (begin, end) in enumerate(place.data) if end > begin]
            stretches = RunStretches(known, opened) if groups is None else None
        for where in places if stretches is None else ():
            opened.announce(*where)
        self.current = Bucket(
            place.first_sample,
            place.first_byte,
            picks,
            shards,
            groups,
            opened,
            scratch,
            places,
            stretches,
        )
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
