"""What a shuffle or sort sends to workers and gets back: URLs and small arrays of numbers, never sample bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from tarmill.planning.counts import Counts
from tarmill.planning.tasks import Shard
from tarmill.spec import ReorderSpec
from tarmill.values import valueclass


@valueclass
class InputShard:
    """One input shard and its place in the whole."""

    ordinal: int
    part: int
    """Which of the `::` parts of the input pattern it came from."""
    shard: Shard


@valueclass
class Source:
    """A local file that holds samples as ranges of plain tar bytes: an input shard, or a scratch copy of one."""

    path: str
    version: str
    """As `storage.stat` gave it when the ranges were found; "" for files in memory, which nobody else can change."""
    label: str
    part: int


@valueclass
class Job:
    """What all tasks of one job share."""

    job: str
    """Job id: owner of temp files."""
    spec: ReorderSpec
    parts: int
    state: str
    """Folder URL for the job's small files, with '/' at its end; "" for none."""
    spill: str
    """Folder URL for run files, with '/' at its end, which all workers reach; "memory:" for none."""
    scratch: str
    """Folder of a worker's own for scratch copies, likewise."""
    folder: str
    """Folder of the outputs: what names in manifests are relative to."""
    seed: int
    maps: bool
    """Whether there is room for inputs, or a batch of them, to be mapped."""
    settings: Any
    """`storage.StorageSettings`, to be put in force in the worker."""


@valueclass
class ScanTask:
    """Find the samples of some input shards."""

    index: int
    job: Job
    shards: tuple[InputShard, ...]

    @property
    def label(self) -> str:
        """What messages call the task."""
        first = self.shards[0].shard.label
        return first if len(self.shards) == 1 else f"{first} and {len(self.shards) - 1} more"


@valueclass(frozen=False)
class ShardSpans:
    """The samples of one input shard, as columns; `starts` and `lengths` are in tar blocks of `source`."""

    ordinal: int
    source: Source
    starts: NDArray[Any]
    lengths: NDArray[Any]
    stems: NDArray[Any]
    """Hash of each sample's key, to find equal ones."""
    fields: NDArray[Any]
    """Signature of each sample's fields."""
    keys: NDArray[Any] | None
    """Encoded sort keys; those of a shuffle are drawn behind the scan, None before."""
    keys_cut: bool
    """Whether some of them are longer than they are kept."""
    groups: NDArray[Any] | None
    """Hash of each sample's group; None where nothing is reduced."""
    digest: int
    raw_digest: int
    members: int
    counts: Counts
    scratch: bool
    """Whether the source is a scratch copy."""


@valueclass
class ScanDone:
    """How a scan ended: its columns are in a file of the job, or here where there is none."""

    index: int
    counts: Counts
    spans: list[ShardSpans] | None = None


@valueclass
class Output:
    """One output shard to write: a slice of the samples that came with the task."""

    number: int
    url: str
    begin: int
    end: int


@valueclass
class Columns:
    """Samples to write, in order, and where they lie; offsets and lengths in bytes."""

    sources: tuple[Source, ...]
    source: NDArray[Any]
    """For each sample which of `sources` holds it."""
    starts: NDArray[Any]
    lengths: NDArray[Any]
    stems: NDArray[Any]
    fields: NDArray[Any]
    fresh: NDArray[Any] | None
    """Where a group of samples to reduce begins; None where nothing is reduced."""

    def load(self) -> Columns:
        """Give them."""
        return self


class LazyColumns:
    """Columns that are cut out of those of the whole job when a task is sent: they take three times their room."""

    def __init__(self, cut: Callable[[], Columns]) -> None:
        self._cut = cut

    def load(self) -> Columns:
        """Cut them out."""
        return self._cut()

    def __reduce__(self) -> tuple[Any, ...]:
        return _as_they_are, (self.load(),)


def _as_they_are(columns: Columns) -> Columns:
    return columns


@valueclass
class GatherTask:
    """Write some output shards, copying the samples in the order given."""

    index: int
    job: Job
    outputs: tuple[Output, ...]
    columns: Columns | LazyColumns
    reduces: bool
    """Whether groups of samples are reduced on the way."""

    @property
    def label(self) -> str:
        """What messages call the task."""
        return self.outputs[0].url
