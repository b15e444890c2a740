"""The last pass of a shuffle or sort, in a worker: samples copied, or reduced, into output shards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_intdigest

from tarmill import storage
from tarmill.engine.meter import Meter, current
from tarmill.errors import FormatError, SampleError, ScriptError
from tarmill.formats.digest import MASK_128, sample_digest, to_hex
from tarmill.formats.keys import key_function
from tarmill.formats.samples import OnError, Record
from tarmill.formats.tar_span import decode_span, encode_sample, fields_of_record, key_in_span
from tarmill.jobs.group_values import GROUP_FIELD, group_value
from tarmill.jobs.inputs import name_in
from tarmill.jobs.manifests import save_shard
from tarmill.jobs.ordering import cached_ordering
from tarmill.jobs.reduce import Reducer, make_reducer
from tarmill.jobs.shard_io import ShardOutput
from tarmill.jobs.span_sources import SpanSources
from tarmill.planning.counts import Counts
from tarmill.planning.span_tasks import GatherTask, Job
from tarmill.planning.tasks import ShardDone
from tarmill.spec import SortSpec

_JOIN_BYTES = 256 << 10
_VIEW_BYTES = 64 << 10
_HEAD_BYTES = 4 << 10
"""Enough for the first headers of nearly every sample."""


@dataclass(frozen=True, slots=True)
class Picks:
    """Samples in the order in which they are written: source, start and length of each, and the hash of its key."""

    source: NDArray[Any]
    starts: NDArray[Any]
    lengths: NDArray[Any]
    stems: NDArray[Any]
    fresh: NDArray[Any] | None
    """Where a group begins; None where nothing is reduced."""

    def part(self, begin: int, end: int) -> Picks:
        """Give some of them."""
        fresh = self.fresh[begin:end] if self.fresh is not None else None
        here = slice(begin, end)
        return Picks(self.source[here], self.starts[here], self.lengths[here], self.stems[here], fresh)

    def rows(self) -> Iterator[tuple[int, int, int]]:
        """Give (source, start, length) as Python's integers."""
        return zip(self.source.tolist(), self.starts.tolist(), self.lengths.tolist(), strict=True)


def gather(task: GatherTask) -> list[ShardDone]:
    """Write the task's output shards; the function that engines run.

    Each is committed, and leaves its manifest, before the next is begun.

    Raises:
        ChangedError: an input was changed since its samples were found.
        FormatError, ScriptError: from a reduce, under `--on-error fail`.
        StorageError: reading or writing failed for good.
    """
    job = task.job
    storage.configure(job.settings)
    sources = SpanSources(task.sources, mapped=job.mapped)
    picks = Picks(task.source, task.starts, task.lengths, task.stems, task.fresh)
    done = []
    for output in task.outputs:
        with OutputWriter(job, output.number, output.url) as writer:
            writer.take(sources, picks.part(output.begin, output.end))
            done.append(writer.commit(sources.verify))
    return done


@dataclass
class Neighbour:
    """What is known of the sample that was written last, so that the next one can be told from it."""

    stem: int = -1
    """Low half of the hash of its key; -1 for none."""
    original: str | None = None
    """Its key in the input; None where nobody has looked."""
    written: str | None = None
    """The key that it was given instead."""
    count: int = 0

    def pass_over(self) -> None:
        """Forget: another sample has been written since."""
        self.original = self.written = None
        self.count = 0

    def another(self, key: str) -> str:
        """Give a key for a sample that cannot keep its own."""
        self.count = self.count + 1 if key == self.original else 1
        if f"{key}-{self.count}" == self.written:
            self.count += 1
        self.original, self.written = key, f"{key}-{self.count}"
        return self.written


@dataclass
class OutputWriter:
    """Writes one output shard from samples that come in one or several pieces."""

    job: Job
    number: int
    url: str
    counts: Counts = field(default_factory=Counts)
    proof: int = 0
    """Sum of the hashes of the ranges that went in."""
    change: int = 0
    """What the multiset hash changes by, since samples got another key."""

    def __post_init__(self) -> None:
        self.meter: Meter = current()
        self.ordering = cached_ordering(self.job.spec)
        self.split = key_function(self.job.spec.key_function)
        name = name_in(self.job.folder, self.url)
        self.output = ShardOutput(self.url, name, self.job.job, self.job.spec.level, self.meter)
        self.neighbour = Neighbour()
        self.reducer: Reducer | None = None
        if isinstance(self.job.spec, SortSpec) and self.job.spec.reduces:
            self.reducer = make_reducer(self.job.spec, self.job.parts)

    def __enter__(self) -> OutputWriter:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.output.__exit__(*exception)

    def take(self, sources: SpanSources, picks: Picks) -> None:
        """Write samples; with a reduce, whole groups."""
        if self.reducer is not None:
            self._reduce(self.reducer, sources, picks)
            return
        count, position = len(picks.stems), 0
        for place in [*self._doubtful(picks), count]:
            if place < position:
                continue
            self._copy(sources, picks.part(position, place))
            if place > position:
                self.neighbour.pass_over()
            position = place
            while position < count and self._has_key_of_neighbour(sources, picks, position):
                self._copy_renamed(sources, picks, position)
                position += 1
        if count:
            self.neighbour.stem = int(picks.stems[-1])
            if self.neighbour.original is None:
                self.neighbour.original = self._key_at(sources, picks, count - 1)

    def _doubtful(self, picks: Picks) -> list[int]:
        """Find the samples whose key may be that of the sample before them."""
        stems = picks.stems
        places: list[int] = (np.flatnonzero(stems[1:] == stems[:-1]) + 1).tolist()
        return [0, *places] if len(stems) and int(stems[0]) == self.neighbour.stem else places

    def _has_key_of_neighbour(self, sources: SpanSources, picks: Picks, position: int) -> bool:
        neighbour = self.neighbour
        if neighbour.original is None and position:
            neighbour.original = self._key_at(sources, picks, position - 1)
        return self._key_at(sources, picks, position) in (neighbour.original, neighbour.written)

    def _key_at(self, sources: SpanSources, picks: Picks, position: int) -> str:
        source, start, length = (int(column[position]) for column in (picks.source, picks.starts, picks.lengths))
        span = sources.map(source)
        shard = sources.label(source)
        try:
            return key_in_span(span[start : start + min(length, _HEAD_BYTES)], shard, self.split)
        except FormatError:  # headers that are longer than that
            return key_in_span(span[start : start + length], shard, self.split)

    def _copy(self, sources: SpanSources, picks: Picks) -> None:
        """Copy samples as they are: the hot loop."""
        hash_128, meter, output, map_of = xxh3_128_intdigest, self.meter, self.output, sources.map
        pieces: list[Any] = []
        add = pieces.append
        proof = waiting = count = 0
        maps: dict[int, Any] = {}
        for source, start, length in picks.rows():
            span = maps.get(source)
            if span is None:
                span = maps[source] = map_of(source)
            piece = span[start : start + length]
            if len(piece) != length:
                raise sources.cut(source)
            proof += hash_128(piece)
            add(piece)
            waiting += length
            count += 1
            if waiting >= _JOIN_BYTES:
                output.copy(len(pieces), pieces)
                pieces.clear()
                sources.relax(waiting)
                meter.samples += count
                meter.read_bytes += waiting
                waiting = count = 0
        if pieces:
            output.copy(len(pieces), pieces)
        meter.samples += count
        meter.read_bytes += waiting
        self.proof += proof

    def _copy_renamed(self, sources: SpanSources, picks: Picks, position: int) -> None:
        """Write a sample under another key, since the sample before it has its key."""
        record = self._record(sources, *next(picks.part(position, position + 1).rows()))
        key = record["__key__"]
        if self.job.spec.same_key == "fail":
            raise SampleError(
                f"sample {key!r} of {record['__url__']} would stand beside another one with that key, so that no "
                "reader could tell them apart; give them different keys, reduce them (htsort --reduce), or let the "
                "second be renamed with --same-key rename",
                shard=record["__url__"],
                key=key,
                reason="same-key",
            )
        name = self.neighbour.another(key)
        data, digest = encode_sample(record, name, self.job.spec.key_function)
        self.change += digest - sample_digest(key, fields_of_record(record))
        self.counts.renamed += 1
        self.output.copy(1, [data])

    def _record(self, sources: SpanSources, source: int, start: int, length: int) -> Record:
        """Read one sample as a record."""
        data = sources.map(source)[start : start + length]
        if len(data) != length:
            raise sources.cut(source)
        self.proof += xxh3_128_intdigest(data)
        self.meter.read_bytes += length
        record = decode_span(data, sources.label(source), self.split, self.job.spec.max_member)
        record["__part__"] = sources.part(source)
        return record

    def commit(self, verify: Callable[[], None]) -> ShardDone:
        """Publish the shard, after a last look at its sources, and leave its manifest."""
        verify()
        committed = self.output.commit()
        counts = self.counts
        counts.written = committed.samples
        counts.written_bytes = committed.size_bytes
        if self.reducer is not None:
            counts.added += self.reducer.added
            counts.dropped += self.reducer.dropped
        done = ShardDone(
            self.number, counts, committed, 0, to_hex(self.proof & MASK_128), to_hex(self.change & MASK_128)
        )
        if self.job.state:
            save_shard(self.job.state, done, self.job.job)
        return done

    def _reduce(self, reducer: Reducer, sources: SpanSources, picks: Picks) -> None:
        """Send whole groups through the reduce into the output."""
        assert picks.fresh is not None
        begins = np.flatnonzero(picks.fresh).tolist()
        for begin, end in zip(begins, [*begins[1:], len(picks.fresh)], strict=True):
            self.reduce_group(reducer, (self._record(sources, *row) for row in picks.part(begin, end).rows()))

    def reduce_group(self, reducer: Reducer, samples: Iterator[Record]) -> None:
        """Send one group through the reduce into the output."""
        spec, meter, neighbour = self.job.spec, self.meter, self.neighbour
        first = next(samples)
        combined = first.get(GROUP_FIELD)
        value = self.ordering.group_value(first) if combined is None else group_value(combined)

        def counted() -> Iterator[Record]:
            for record in itertools.chain([first], samples):
                record.pop(GROUP_FIELD, None)
                meter.samples += 1
                meter.key = record["__key__"]
                yield record

        try:
            for record, name in reducer.reduce(value, counted()):
                if name in (neighbour.written, neighbour.original):
                    if spec.same_key == "fail":
                        raise ScriptError(
                            f"the reduce gave two samples with the key {name!r} in a row, which no reader could tell "
                            "apart; give them different keys, or let the second be renamed with --same-key rename",
                            key=name,
                            reason="same-key",
                        )
                    self.counts.renamed += 1
                    name = neighbour.another(name)
                else:
                    neighbour.original, neighbour.written, neighbour.count = name, None, 0
                self.output.sink.add(record, name)
        except (ScriptError, FormatError):
            if spec.on_error not in (OnError.SKIP, OnError.IGNORE):
                raise
            # the reducer has read the group to its end, and counted what it left out under the error's reason
