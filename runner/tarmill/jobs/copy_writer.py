"""Samples copied into an output shard, and those renamed whose neighbour has their key."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, chain
from typing import Any, NamedTuple

from numpy.typing import NDArray
from xxhash import xxh3_128, xxh3_128_intdigest

from tarmill.engine.meter import current
from tarmill.errors import SampleError
from tarmill.formats.digest import MASK_128, sample_digest, to_hex
from tarmill.formats.keys import key_function
from tarmill.formats.range_hash import HashSum, digests_of
from tarmill.formats.samples import Record
from tarmill.formats.tar_span import decode_span, encode_sample, fields_of_record
from tarmill.jobs.inputs import name_in
from tarmill.jobs.manifests import save_shard
from tarmill.jobs.shard_io import ShardOutput
from tarmill.jobs.shard_names import ShardNames
from tarmill.jobs.span_sources import STREAM_BYTES, Ranges, SpanSources
from tarmill.planning.counts import Counts
from tarmill.planning.span_tasks import Job
from tarmill.planning.tasks import ShardDone
from tarmill.values import valueclass

_CHUNK_BYTES = 512 << 10  # less costs calls, more leaves the cache before it is written
_CHUNK_ROWS = 512
_ROWS = 16 << 10


@valueclass
class Picks:
    """Samples in the order in which they are written."""

    source: NDArray[Any]
    starts: NDArray[Any]
    lengths: NDArray[Any]
    stems: NDArray[Any]
    """Hash of the key of each (`shard_names`)."""
    fields: NDArray[Any]
    """Signature of its fields."""
    fresh: NDArray[Any] | None
    """Where a group begins; None where nothing is reduced."""

    def part(self, begin: int, end: int) -> Picks:
        """Give some of them."""
        here = slice(begin, end)
        columns = (self.source[here], self.starts[here], self.lengths[here], self.stems[here], self.fields[here])
        return Picks(*columns, self.fresh[here] if self.fresh is not None else None)

    def rows(self) -> Iterator[tuple[int, int, int]]:
        """Give (source, start, length) as Python's integers, which take several times the room of the columns."""
        for at in range(0, len(self.starts), _ROWS):
            yield from zip(*self._lists(at, at + _ROWS), strict=True)

    def chunks(self) -> Iterator[Chunk | tuple[int, int, int]]:
        """Cut the samples into chunks to read at once; one that should not be held comes as (source, start, length)."""
        for begin in range(0, len(self.starts), _ROWS):
            source, starts, lengths = self._lists(begin, begin + _ROWS)
            ends = list(accumulate(lengths))
            at, before = 0, 0
            while at < len(ends):
                stop = bisect_right(ends, before + _CHUNK_BYTES, at, min(at + _CHUNK_ROWS, len(ends)))
                stop = max(stop, at + 1)
                if lengths[at] > STREAM_BYTES:
                    yield source[at], starts[at], lengths[at]
                else:
                    here = slice(at, stop)
                    yield Chunk(source[here], starts[here], lengths[here], ends[stop - 1] - before)
                at, before = stop, ends[stop - 1]

    def _lists(self, begin: int, end: int) -> tuple[list[int], list[int], list[int]]:
        here = slice(begin, end)
        return self.source[here].tolist(), self.starts[here].tolist(), self.lengths[here].tolist()


class Chunk(NamedTuple):
    """Samples to read at once."""

    source: list[int]
    starts: list[int]
    lengths: list[int]
    size_bytes: int
    """Of all."""

    @property
    def ranges(self) -> Ranges:
        """Give (source, starts, lengths)."""
        return self[:3]


Portions = Callable[[Picks], Iterable[tuple[SpanSources, Picks]]]


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
        self.proof = HashSum()
        self.change = 0
        self.meter = current()
        self.split = key_function(job.spec.key_function)
        self.names = ShardNames()
        self.output = output_of(job, url)

    def __enter__(self) -> CopyWriter:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.output.__exit__(*exception)

    def commit(self, verify: Callable[[], None]) -> ShardDone:
        """Publish the shard, after a last look at its sources, and leave its manifest."""
        verify()
        return finish_output(self.job, self.number, self.output, self.counts, self.proof.total(), self.change)

    def take(self, sources: SpanSources, picks: Picks, portions: Portions | None = None) -> None:
        """Write samples in the order given.

        Args:
            sources: where they are read, one by one or many.
            picks: the samples.
            portions: gives some of them a portion at a time, and where those are read; as above without it.
        """
        position = 0
        for place in chain(self.names.clashes(picks.stems, picks.fields), [len(picks.stems)]):
            part = picks.part(position, place)
            for where, portion in portions(part) if portions is not None else [(sources, part)]:
                self._copy(where, portion)
            if place < len(picks.stems):
                self._copy_renamed(sources, picks, place)
            position = place + 1

    def _copy(self, sources: SpanSources, picks: Picks) -> None:
        """Copy samples as they are: the hot loop."""
        meter, output = self.meter, self.output
        for chunk in picks.chunks():
            if isinstance(chunk, Chunk):
                read = sources.read(*chunk.ranges)
                self.proof.add_digests(digests_of(read.samples))
                output.copy(len(read.samples), read.blocks)
                meter.samples += len(chunk.lengths)
                meter.read_bytes += chunk.size_bytes
            else:
                whole = xxh3_128()
                for piece in sources.stream(*chunk):
                    whole.update(piece)
                    output.copy(0, [piece])
                self.proof.add_one(whole.intdigest())
                output.copied += 1
                meter.samples += 1
                meter.read_bytes += chunk[2]

    def _copy_renamed(self, sources: SpanSources, picks: Picks, position: int) -> None:
        """Write a sample under another key, since its own clashes with that of one before it."""
        record = self._record(sources, *next(picks.part(position, position + 1).rows()))
        key = record["__key__"]
        if self.job.spec.same_key == "fail":
            raise SampleError(
                f"sample {key!r} of {record['__url__']} would come into one shard with another one of that key, side "
                "by side or with other fields, so that no reader could tell them apart; give them different keys, "
                "reduce them (htsort --reduce), or let the second be renamed with --same-key rename",
                shard=record["__url__"],
                key=key,
                reason="same-key",
            )
        name = self.names.another(key)
        data, digest, _ = encode_sample(record, name, self.job.spec.key_function)
        if len(data) > picks.lengths[position]:  # a longer name needs more headers, which a shard may have no room for
            suffix = name[name.rindex("-") :]
            name = self.names.take(key[: max(1, len(key) - len(suffix))] + suffix)
            data, digest, _ = encode_sample(record, name, self.job.spec.key_function)
        self.change += digest - sample_digest(key, fields_of_record(record))
        self.counts.renamed += 1
        self.output.copy(1, [data])

    def _record(self, sources: SpanSources, source: int, start: int, length: int) -> Record:
        """Read one sample as a record."""
        data = sources.read_one(source, start, length)
        self.proof.add_one(xxh3_128_intdigest(data))
        self.meter.read_bytes += length
        return decode_span(data, sources.label(source), self.split, self.job.spec.max_member)
