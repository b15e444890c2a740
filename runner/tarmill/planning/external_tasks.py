"""What the external plan of a shuffle or sort sends to workers and gets back."""

from __future__ import annotations

from typing import Any, Self

from tarmill.planning.counts import Counts
from tarmill.planning.span_tasks import InputShard, Job, Output
from tarmill.values import field, fields, valueclass

Key = bytes | int
"""A sort key: bytes, or the 64 random bits of a shuffle."""


@valueclass
class Mark:
    """A row of a run that stands for those since the mark before it: what splitters are chosen from."""

    key: Key
    row: int
    size_bytes: int
    """Of the samples since the mark before."""


@valueclass
class Run:
    """A committed run file: samples in key order, and behind them a row for each."""

    url: str
    version: str
    samples: int
    data_bytes: int
    row_type: tuple[tuple[str, str], ...]
    """Names and types of a row's columns (`run_files`)."""
    keys_cut: bool
    marks: tuple[Mark, ...]
    largest_bytes: int
    last_key: Key
    last_bytes: int
    """Of the last sample."""
    rows_hash: int
    """Of all rows (`run_files.hash_of_rows`)."""

    def to_dict(self) -> dict[str, Any]:
        """Give JSON-able values; the URL without its folder, which may hold a password."""
        found: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        found["marks"] = [[_to_json(mark.key), mark.row, mark.size_bytes] for mark in self.marks]
        found["last_key"] = _to_json(self.last_key)
        found["url"] = self.url.rpartition("/")[2]
        return found

    @classmethod
    def from_dict(cls, values: dict[str, Any], folder: str) -> Self:
        """Read what `to_dict` gave, of a run in that folder; KeyError, TypeError or ValueError for anything else."""
        marks = tuple(Mark(_from_json(key), row, size) for key, row, size in values["marks"])
        row_type = tuple((name, kind) for name, kind in values["row_type"])
        last = _from_json(values["last_key"])
        url = folder + values["url"]
        return cls(**{**values, "url": url, "marks": marks, "row_type": row_type, "last_key": last})


def _to_json(key: Key) -> int | str:
    return key.hex() if isinstance(key, bytes) else key


def _from_json(value: int | str) -> Key:
    return bytes.fromhex(value) if isinstance(value, str) else value


@valueclass
class BatchTask:
    """Write the samples of some input shards into run files."""

    index: int
    job: Job
    shards: tuple[InputShard, ...]
    batch_bytes: int
    """Begin another run when the samples in hand are as large as this; those of one shard may be nearly twice that."""

    @property
    def label(self) -> str:
        """What messages call the task."""
        first = self.shards[0].shard.label
        return first if len(self.shards) == 1 else f"{first} and {len(self.shards) - 1} more"


@valueclass(frozen=False)
class BatchDone:
    """How a batch ended: its runs, in the order of the input, and what is in them."""

    index: int
    shards: tuple[int, ...]
    """Ordinals of the input shards."""
    counts: Counts = field(default_factory=Counts)
    runs: list[Run] = field(default_factory=list)
    members: int = 0
    digest: int = 0
    proof: int = 0
    """Sum of the hashes of the ranges in the runs."""

    def to_dict(self) -> dict[str, Any]:
        """Give JSON-able values."""
        return {
            "index": self.index,
            "shards": list(self.shards),
            "counts": self.counts.to_dict(),
            "runs": [run.to_dict() for run in self.runs],
            "members": self.members,
            "digest": f"{self.digest:x}",
            "proof": f"{self.proof:x}",
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], folder: str) -> Self:
        """Read what `to_dict` gave, of runs in that folder; KeyError, TypeError or ValueError for anything else."""
        runs = [Run.from_dict(run, folder) for run in values["runs"]]
        counts = Counts.from_dict(values["counts"])
        digest, proof = int(values["digest"], 16), int(values["proof"], 16)
        return cls(values["index"], tuple(values["shards"]), counts, runs, values["members"], digest, proof)


@valueclass
class Splitter:
    """Where a bucket begins: at a row of a run. Rows of equal keys are in order of run and row."""

    key: Key
    run: int
    row: int


@valueclass
class LocateTask:
    """Find the splitters in one run."""

    index: int
    job: Job
    run: Run
    splitters: tuple[Splitter, ...]

    @property
    def label(self) -> str:
        """What messages call the task."""
        return self.run.url


@valueclass
class Located:
    """Where each bucket begins in one run, and at the end where the last one ends: rows, and bytes of data."""

    index: int
    rows: list[int]
    offsets: list[int]
    hashes: list[int]
    """Of the rows in each bucket, and 0 for the end."""


@valueclass
class BucketTask:
    """Write the output shards that begin in one bucket; they may go on in those behind it."""

    index: int
    job: Job
    bucket: int
    buckets: int
    runs: tuple[Run, ...]
    places: str
    """URL of the file with the buckets' places (`bucket.Places`)."""
    outputs: tuple[Output, ...]
    """`begin` and `end` are edges, in the unit of the cuts."""
    unit: str
    inputs: tuple[tuple[str, int], ...]
    """Label and part of each input shard, where records are needed; else ()."""

    @property
    def label(self) -> str:
        """What messages call the task."""
        return self.outputs[0].url
