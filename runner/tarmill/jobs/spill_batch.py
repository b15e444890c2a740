"""The first pass of the external plan, in a worker: some input shards into run files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_intdigest

from tarmill import storage
from tarmill.engine.meter import current
from tarmill.errors import ChangedError, NotFoundError, StorageError
from tarmill.formats.digest import MASK_128
from tarmill.formats.keys import key_function
from tarmill.formats.samples import Record
from tarmill.formats.span_order import order_of, runs_of
from tarmill.formats.tar_header import BLOCK
from tarmill.formats.tar_span import decode_span, encode_sample
from tarmill.jobs.copy_writer import Chunk, Picks
from tarmill.jobs.group_values import group_member
from tarmill.jobs.long_keys import settle_long_keys
from tarmill.jobs.mapped_files import MappedFiles
from tarmill.jobs.ordering import cached_ordering
from tarmill.jobs.reduce import make_combiner
from tarmill.jobs.run_files import RunWriter, row_type
from tarmill.jobs.scan import scan_shard
from tarmill.jobs.span_sources import SpanSources, forget_file
from tarmill.planning.external_tasks import BatchDone, BatchTask
from tarmill.planning.prf import shuffle_keys
from tarmill.planning.span_tasks import Job, ShardSpans, Source
from tarmill.spec import SortSpec


def spill_batch(task: BatchTask) -> BatchDone:
    """Write the samples of the task's shards into run files; the function that engines run.

    Raises:
        FormatError, ScriptError: a bad sample under `--on-error fail`.
        StorageError: reading or writing failed for good; NoSpaceError when scratch is full.
    """
    job = task.job
    storage.configure(job.settings)
    done = BatchDone(task.index, tuple(shard.ordinal for shard in task.shards))
    batch: list[ShardSpans] = []
    held = 0
    for shard in task.shards:
        with redirect_stdout(sys.stderr):  # what a script prints must not mix with data on standard output
            spans = scan_shard(shard, job)  # a shard that is read once costs less so than mapped, where memory is short
        done.counts.merge(spans.counts)
        done.members += spans.members
        done.digest = (done.digest + spans.digest) & MASK_128
        batch.append(spans)
        held += int(spans.lengths.sum(dtype=np.int64)) * BLOCK
        if held >= task.batch_bytes or shard is task.shards[-1]:
            _Batch(job, batch).write(task, done)
            batch, held = [], 0
    storage.write_bytes(batch_file(job.state, task.index), json.dumps(done.to_dict()).encode(), owner=job.job)
    return done


def batch_file(state: str, index: int) -> str:
    """Name the manifest of a finished batch."""
    return f"{state}batch-{index:07d}.json"


def load_batch(task: BatchTask) -> BatchDone | None:
    """Read how a batch of this job ended, if it has, and its runs are still there as they were written."""
    try:
        found = json.loads(storage.read_bytes(batch_file(task.job.state, task.index)))
        done = BatchDone.from_dict(found, task.job.spill)
        intact = all(storage.stat(run.url).version == run.version for run in done.runs)
    except (StorageError, ValueError, KeyError, TypeError):
        return None
    wanted = tuple(shard.ordinal for shard in task.shards)
    return done if intact and done.shards == wanted else None


class _Batch:
    """The samples of some shards, as columns, on their way into one run."""

    def __init__(self, job: Job, shards: list[ShardSpans]) -> None:
        self.job = job
        self.shards = shards
        self.combines = isinstance(job.spec, SortSpec) and job.spec.combine
        counts = [len(spans.starts) for spans in shards]
        self.source = np.repeat(np.arange(len(shards), dtype=np.uint32), counts)
        self.starts, self.lengths, self.stems, self.fields = (
            np.concatenate([getattr(spans, name) for spans in shards])
            for name in ("starts", "lengths", "stems", "fields")
        )
        self.sources = SpanSources([spans.source for spans in shards], maps=MappedFiles() if job.maps else None)
        if isinstance(job.spec, SortSpec):
            self.keys: NDArray[Any] = np.concatenate([spans.keys for spans in shards if spans.keys is not None])
        else:
            drawn = [shuffle_keys(job.seed, spans.ordinal, n) for spans, n in zip(shards, counts, strict=True)]
            self.keys = np.concatenate(drawn)
        groups = [spans.groups for spans in shards if spans.groups is not None]
        self.groups = np.concatenate(groups) if groups else None
        self.cut = any(spans.keys_cut for spans in shards)
        self.proof_in = 0
        """Sum of the hashes of the ranges that were combined."""

    def write(self, task: BatchTask, done: BatchDone) -> None:
        """Write the runs, note them, and remove the scratch copies that they came from."""
        ends = np.cumsum(self.lengths, dtype=np.int64) * BLOCK
        size = int(ends[-1]) if len(ends) else 0
        # of few large runs larger pieces are read back: a shard that is a little larger than a batch becomes one
        share = -(-size // max(1, size // task.batch_bytes)) + int(self.lengths.max(initial=0)) * BLOCK
        begin = 0
        while begin < len(ends):
            before = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + share, "right")))
            self._write_run(begin, end, f"{self.job.spill}run-{task.index:07d}-{len(done.runs):04d}", done)
            begin = end
        expected = sum(spans.raw_digest for spans in self.shards) & MASK_128
        if not self.combines:
            done.proof = (done.proof + expected) & MASK_128  # the last pass compares it with what comes out of the runs
        elif self.proof_in & MASK_128 != expected:
            label = self.shards[0].source.label
            raise ChangedError(f"inputs near {label} have changed since their samples were found", url=label)
        for spans in self.shards:
            if spans.scratch:
                with suppress(NotFoundError):
                    storage.delete(spans.source.path)

    def _write_run(self, begin: int, end: int, url: str, done: BatchDone) -> None:
        """Write one run of consecutive samples of the input."""
        places = self._places(begin, end)
        for place in places:
            self.sources.announce(*place)  # what is read in random order next comes from the disk in one go
        order = begin + order_of(self.keys[begin:end])
        if self.cut:
            settle_long_keys(order, self.keys, self._span_of, self.job)
        writer = RunWriter(url, self.job.job)
        try:
            rows = self._combined(order, writer, done) if self.combines else self._copied(order, writer)
            self.sources.verify()
            self.sources.unmap()  # the kernel keeps pages that are mapped
            for place in places:
                self.sources.forget(*place)
            if len(rows):
                done.runs.append(writer.commit(rows, self.cut))
                forget_file(url)
        finally:
            writer.abort()
            self.sources.unmap()
            self.sources.release()

    def _places(self, begin: int, end: int) -> list[tuple[int, int, int]]:
        """Tell where some consecutive samples lie: source, first byte and number of bytes."""
        used, first = np.unique(self.source[begin:end], return_index=True)
        last = np.append(first[1:], end - begin) - 1 + begin
        starts = self.starts[first + begin].astype(np.int64) * BLOCK
        ends = (self.starts[last].astype(np.int64) + self.lengths[last]) * BLOCK
        return list(zip(used.tolist(), starts.tolist(), (ends - starts).tolist(), strict=True))

    def _span_of(self, sample: int) -> tuple[Source, int, int]:
        source = self.shards[int(self.source[sample])].source
        return source, int(self.starts[sample]) * BLOCK, int(self.lengths[sample]) * BLOCK

    def _copied(self, order: NDArray[np.int64], writer: RunWriter) -> NDArray[Any]:
        """Copy the ranges in order: the hot loop of this pass."""
        meter, sources = current(), self.sources
        lengths = self.lengths[order].astype(np.int64) * BLOCK
        starts = self.starts[order].astype(np.int64) * BLOCK
        for chunk in Picks(self.source[order], starts, lengths, lengths, lengths, None).chunks():
            if isinstance(chunk, Chunk):
                self._copy_chunk(chunk, writer)
            else:
                for piece in sources.stream(*chunk):
                    writer.write_all([piece])
            meter.written_bytes = writer.data_bytes
        ends = np.cumsum(lengths, dtype=np.int64)
        return self._rows(order, ends - lengths, lengths)

    def _copy_chunk(self, chunk: Chunk, writer: RunWriter) -> None:
        pieces = self.sources.pieces(*chunk.ranges)
        try:
            writer.write_pieces(pieces)
        except StorageError:
            self.sources.verify()  # what cannot be read in a mapped file fails to be written
            raise

    def _rows(self, order: NDArray[np.int64], offsets: NDArray[Any], lengths: NDArray[Any]) -> NDArray[Any]:
        ordinals = np.array([spans.ordinal for spans in self.shards], np.uint32)
        kind = row_type(
            self.keys, long=bool(len(lengths)) and int(lengths.max()) >= 1 << 32, groups=self.groups is not None
        )
        rows = np.empty(len(order), kind)
        rows["key"], rows["offset"], rows["length"] = self.keys[order], offsets, lengths
        rows["stem"], rows["fields"] = self.stems[order], self.fields[order]
        rows["shard"] = ordinals[self.source[order]]
        if self.groups is not None:
            rows["group"] = self.groups[order]
        return rows

    def _combined(self, order: NDArray[np.int64], writer: RunWriter, done: BatchDone) -> NDArray[Any]:
        """Reduce each group of the batch, and write what comes out."""
        spec, job = self.job.spec, self.job
        assert isinstance(spec, SortSpec)
        assert self.groups is not None
        combiner = make_combiner(spec, job.parts)
        ordering = cached_ordering(spec)
        begins = np.flatnonzero(runs_of(self.groups[order])).tolist()
        kept: list[int] = []
        offsets: list[int] = []
        lengths: list[int] = []
        proof_out = 0
        split = key_function(spec.key_function)

        def read(samples: list[int]) -> Iterator[Record]:
            for sample in samples:
                source, start, length = (int(c[sample]) for c in (self.source, self.starts, self.lengths))
                data = self.sources.read_one(source, start * BLOCK, length * BLOCK)
                self.proof_in += xxh3_128_intdigest(data)
                record = decode_span(data, self.sources.label(source), split, spec.max_member)
                record["__part__"] = self.sources.part(source)
                places[id(record)] = sample
                held.append(record)
                yield record

        for begin, end in zip(begins, [*begins[1:], len(order)], strict=True):
            samples = order[begin:end].tolist()
            places: dict[int, int] = {}
            held: list[Record] = []  # keeps identities apart
            first = next(read(samples[:1]))
            value = ordering.group_value(first)
            for record, key in combiner.reduce(value, _chain(first, read(samples[1:]))):
                data, _, _ = encode_sample(record, key, spec.key_function)
                data += group_member(key, value)
                proof_out += xxh3_128_intdigest(data)
                kept.append(places.get(id(record), samples[0]))
                offsets.append(writer.write(data))
                lengths.append(len(data))
        done.counts.dropped += combiner.dropped
        done.counts.added += combiner.added
        done.proof = (done.proof + proof_out) & MASK_128
        return self._rows(np.array(kept, np.int64), np.array(offsets, np.uint64), np.array(lengths, np.uint64))


def _chain(first: Record, rest: Iterator[Record]) -> Iterator[Record]:
    yield first
    yield from rest
