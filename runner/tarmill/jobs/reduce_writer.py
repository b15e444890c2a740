"""Groups of samples through a reduce, into an output shard, or into a piece that is cut into shards later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_intdigest

from tarmill import storage
from tarmill.engine.meter import current
from tarmill.errors import FormatError, NotFoundError, ScriptError, StorageError
from tarmill.formats.digest import MASK_128, to_hex
from tarmill.formats.samples import OnError, Record
from tarmill.formats.span_order import pack_arrays, unpack_arrays
from tarmill.formats.tar_span import encode_sample
from tarmill.jobs.copy_writer import finish_output, output_of
from tarmill.jobs.group_values import GROUP_FIELD, group_value
from tarmill.jobs.ordering import cached_ordering
from tarmill.jobs.reduce import make_reducer
from tarmill.jobs.scratch_files import MEMORY, ScratchFile
from tarmill.jobs.shard_names import ShardNames, hash_of_key, signature_of
from tarmill.planning.counts import Counts
from tarmill.planning.span_tasks import Job
from tarmill.planning.tasks import ShardDone
from tarmill.spec import SortSpec
from tarmill.values import valueclass

_BLOCK_BYTES = 256 << 10


class _GroupWriter(ABC):
    """What both have in common: the reduce, its books, and what to do about a group that fails."""

    def __init__(self, job: Job) -> None:
        assert isinstance(job.spec, SortSpec)
        self.job = job
        self.counts = Counts()
        self.proof = 0
        """Sum of the hashes of the ranges that went in."""
        self.reducer = make_reducer(job.spec, job.parts)
        self._ordering = cached_ordering(job.spec)
        self._meter = current()

    def reduce_group(self, samples: Iterator[tuple[Record, int]]) -> None:
        """Send one group, of at least one sample, through the reduce; each sample comes with the hash of its range."""
        first, digest = next(samples)
        combined = first.get(GROUP_FIELD)
        value = self._ordering.group_value(first) if combined is None else group_value(combined)
        try:
            for record, name in self.reducer.reduce(value, self._fed(first, digest, samples)):
                try:
                    self._emit(record, name)
                except ScriptError as error:
                    if not self._goes_on:
                        raise
                    self.counts.dropped[error.reason] += 1
        except (ScriptError, FormatError):
            if not self._goes_on:  # else the reducer has read the group to its end and entered it into its books
                raise

    @property
    def _goes_on(self) -> bool:
        return self.job.spec.on_error in (OnError.SKIP, OnError.IGNORE)

    def _fed(self, record: Record, digest: int, rest: Iterator[tuple[Record, int]]) -> Iterator[Record]:
        meter = self._meter
        while True:
            record.pop(GROUP_FIELD, None)
            meter.samples += 1
            meter.key = record["__key__"]
            self.proof += digest
            yield record
            following = next(rest, None)
            if following is None:
                return
            record, digest = following

    @abstractmethod
    def _emit(self, record: Record, name: str) -> None:
        """Take one sample that came out of the reduce, under the key it is to have."""

    def _close_books(self) -> None:
        self.counts.added += self.reducer.added
        self.counts.dropped += self.reducer.dropped


class ReduceWriter(_GroupWriter):
    """Writes what comes out of the reduce into an output shard."""

    def __init__(self, job: Job, number: int, url: str) -> None:
        super().__init__(job)
        self._number = number
        self._names = ShardNames()
        self._output = output_of(job, url)

    def __enter__(self) -> ReduceWriter:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._output.__exit__(*exception)

    def _emit(self, record: Record, name: str) -> None:
        given = self._names.name_for(name, record)
        if given != name:
            if self.job.spec.same_key == "fail":
                raise ScriptError(
                    f"the reduce gave two samples with the key {name!r} into one shard, side by side or with other "
                    "fields, so that no reader could tell them apart; give them different keys, or let the second be "
                    "renamed with --same-key rename",
                    key=name,
                    reason="same-key",
                )
            self.counts.renamed += 1
        self._output.sink.add(record, given)

    def commit(self, verify: Callable[[], None]) -> ShardDone:
        """Publish the shard, after a last look at its sources, and leave its manifest."""
        verify()
        self._close_books()
        return finish_output(self.job, self._number, self._output, self.counts, self.proof)


@valueclass(frozen=False)
class PieceDone:
    """A committed piece: reduced samples one behind the other, to be cut into shards once their number is known."""

    number: int
    counts: Counts
    url: str
    version: str
    proof: int
    """Sum of the hashes of the ranges that went in."""
    raw_digest: int
    """And of those that it holds."""
    digest: int
    members: int
    lengths: NDArray[Any]
    stems: NDArray[Any]
    fields: NDArray[Any]


class PieceWriter(_GroupWriter):
    """Writes what comes out of the reduce into a piece; neighbours with one key are told apart when it is cut."""

    def __init__(self, job: Job, number: int, url: str) -> None:
        super().__init__(job)
        self._number = number
        self._file = ScratchFile(job.spill, url.removeprefix(job.spill), job.job)
        self._pieces: list[bytes] = []
        self._waiting = self._members = self._digest = self._raw_digest = 0
        self._lengths, self._stems, self._fields = array("Q"), array("Q"), array("Q")

    def __enter__(self) -> PieceWriter:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._file.abort()

    def _emit(self, record: Record, name: str) -> None:
        data, digest, members = encode_sample(record, name, "base_plus_ext")
        self._digest += digest
        self._members += members
        self._raw_digest += xxh3_128_intdigest(data)
        self._lengths.append(len(data))
        self._stems.append(hash_of_key(name))
        self._fields.append(signature_of(record))
        self._pieces.append(data)
        self._waiting += len(data)
        if self._waiting >= _BLOCK_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._file.write(b"".join(self._pieces))
        self._pieces.clear()
        self._waiting = 0

    def commit(self, verify: Callable[[], None]) -> PieceDone:
        """Publish the piece, after a last look at its sources, and leave its manifest."""
        verify()
        self._close_books()
        self._flush()
        self._file.commit()
        lengths = np.array(self._lengths, np.uint64)
        done = PieceDone(
            self._number,
            self.counts,
            self._file.path,
            storage.stat(self._file.path).version,
            self.proof & MASK_128,
            self._raw_digest & MASK_128,
            self._digest & MASK_128,
            self._members,
            lengths.astype(np.uint32) if not len(lengths) or lengths.max() < 1 << 32 else lengths,
            np.array(self._stems, np.uint64),
            np.array(self._fields, np.uint64).astype(np.uint32),
        )
        if self.job.spill != MEMORY:
            storage.write_bytes(piece_file(done.url), _pack(done), owner=self.job.job)
        return done


def reduce_writer(job: Job, number: int, url: str) -> ReduceWriter | PieceWriter:
    """Make what takes the results of a reduce: an output shard, or with an exact cut a piece."""
    assert isinstance(job.spec, SortSpec)
    return PieceWriter(job, number, url) if job.spec.cuts_exactly else ReduceWriter(job, number, url)


def piece_file(url: str) -> str:
    """Name the file that tells what is in a piece."""
    return f"{url}.idx"


def _pack(done: PieceDone) -> list[bytes | memoryview]:
    facts = {
        "counts": done.counts.to_dict(),
        "version": done.version,
        "proof": to_hex(done.proof),
        "raw_digest": to_hex(done.raw_digest),
        "digest": to_hex(done.digest),
        "members": done.members,
    }
    return pack_arrays(facts, {"lengths": done.lengths, "stems": done.stems, "fields": done.fields})


def load_piece(number: int, url: str) -> PieceDone | None:
    """Read how a piece ended, if it has, and is still there as it was written."""
    try:
        facts, arrays = unpack_arrays(storage.read_bytes(piece_file(url)))
        if storage.stat(url).version != facts["version"]:
            return None
        proof, raw_digest, digest = (int(facts[name], 16) for name in ("proof", "raw_digest", "digest"))
        return PieceDone(
            number,
            Counts.from_dict(facts["counts"]),
            url,
            facts["version"],
            proof,
            raw_digest,
            digest,
            facts["members"],
            arrays["lengths"],
            arrays["stems"],
            arrays["fields"],
        )
    except (NotFoundError, StorageError, ValueError, KeyError, TypeError):
        return None
