"""Samples copied into an output shard, and those renamed whose neighbour has their key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_intdigest

from tarmill.engine.meter import current
from tarmill.errors import FormatError, SampleError
from tarmill.formats.digest import MASK_128, sample_digest, to_hex
from tarmill.formats.keys import key_function
from tarmill.formats.samples import Record
from tarmill.formats.tar_span import decode_span, encode_sample, fields_of_record, key_in_span
from tarmill.jobs.inputs import name_in
from tarmill.jobs.manifests import save_shard
from tarmill.jobs.shard_io import ShardOutput
from tarmill.jobs.span_sources import SpanSources
from tarmill.planning.counts import Counts
from tarmill.planning.span_tasks import Job
from tarmill.planning.tasks import ShardDone

_JOIN_BYTES = 256 << 10
VIEW_BYTES = 32 << 10
"""Pieces above this are handed on as views of a map; below, a copy costs less."""
_ROWS = 16 << 10
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
        """Give (source, start, length) as Python's integers, which take several times the room of the columns."""
        for at in range(0, len(self.starts), _ROWS):
            here = slice(at, at + _ROWS)
            columns = (self.source[here].tolist(), self.starts[here].tolist(), self.lengths[here].tolist())
            yield from zip(*columns, strict=True)


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

    def shorten(self, length: int) -> str:
        """Take as much from the middle of that key as it is longer than this."""
        assert self.written is not None
        suffix = self.written[self.written.rindex("-") :]
        self.written = self.written[: max(1, length - len(suffix))] + suffix
        return self.written


def output_of(job: Job, url: str) -> ShardOutput:
    """Begin an output shard of a job."""
    return ShardOutput(url, name_in(job.folder, url), job.job, job.spec.level, current())


def finish_output(job: Job, number: int, output: ShardOutput, counts: Counts, proof: int, change: int = 0) -> ShardDone:
    """Publish an output shard and leave its manifest.

    Args:
        job, number, output: of the shard.
        counts: of what went in; what was written is added.
        proof: sum of the hashes of the ranges that went in.
        change: what the multiset hash changes by, since samples got another key.
    """
    committed = output.commit()
    counts.written, counts.written_bytes = committed.samples, committed.size_bytes
    done = ShardDone(number, counts, committed, 0, to_hex(proof & MASK_128), to_hex(change & MASK_128))
    if job.state:
        save_shard(job.state, done, job.job)
    return done


class CopyWriter:
    """Writes one output shard from samples that come in one or several pieces."""

    def __init__(self, job: Job, number: int, url: str) -> None:
        self.job = job
        self.number = number
        self.counts = Counts()
        self.proof = 0
        self.change = 0
        self.meter = current()
        self.split = key_function(job.spec.key_function)
        self.neighbour = Neighbour()
        self.output = output_of(job, url)

    def __enter__(self) -> CopyWriter:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.output.__exit__(*exception)

    def commit(self, verify: Callable[[], None]) -> ShardDone:
        """Publish the shard, after a last look at its sources, and leave its manifest."""
        verify()
        return finish_output(self.job, self.number, self.output, self.counts, self.proof, self.change)

    def take(self, sources: SpanSources, picks: Picks) -> None:
        """Write samples in the order given."""
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
        hash_128, meter, output = xxh3_128_intdigest, self.meter, self.output
        pieces: list[Any] = []
        add = pieces.append
        proof = waiting = count = 0
        maps: dict[int, tuple[Any, Any]] = {}
        for source, start, length in picks.rows():
            pair = maps.get(source)
            if pair is None:
                pair = maps[source] = sources.map(source), sources.view(source)
            piece = pair[length > VIEW_BYTES][start : start + length]
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
        data, digest, _ = encode_sample(record, name, self.job.spec.key_function)
        if len(data) > picks.lengths[position]:  # a longer name needs more headers, which a shard may have no room for
            name = self.neighbour.shorten(len(key))
            data, digest, _ = encode_sample(record, name, self.job.spec.key_function)
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
        return decode_span(data, sources.label(source), self.split, self.job.spec.max_member)
