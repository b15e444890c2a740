"""What crosses to a worker and back: small, frozen, picklable; never sample bytes, never a secret."""

from __future__ import annotations

from typing import Any, Self

from tarmill.planning.counts import Counts
from tarmill.spec import MapSpec
from tarmill.values import fields, valueclass


@valueclass
class Shard:
    """One input shard, pinned to the version that was seen when the job was planned."""

    url: str
    label: str
    """The URL for people and hashes, without a password."""
    size_bytes: int | None = None
    version: str | None = None
    """None: whatever is there (a stream that cannot be looked at)."""
    content_hash: str = ""
    """xxh3_128 of the stored bytes, where a manifest knows it; reading compares."""


@valueclass
class MapTask:
    """Map one shard to one output shard."""

    index: int
    shard: Shard
    output: str
    spec: MapSpec
    job: str
    """Job id: owner of temp files."""
    state: str
    """Folder URL for this job's small files, with '/' at its end; "" for none (streams)."""
    settings: Any
    """`storage.StorageSettings`, to be put in force in the worker."""

    @property
    def label(self) -> str:
        """What messages call the task."""
        return self.shard.label


@valueclass
class OutputShard:
    """A shard that was written and committed."""

    name: str
    """Relative to the folder of the data set."""
    size_bytes: int
    version: str
    content_hash: str
    """xxh3_128 of the stored bytes."""
    samples: int
    members: int
    """0 where nobody counted them: samples were copied as they were."""
    digest: str
    """Multiset hash of the samples, 32 hex digits; "" where only that of the whole data set is known."""


@valueclass
class ShardDone:
    """How one shard ended well: the result of a task, and the content of its manifest."""

    index: int
    counts: Counts
    output: OutputShard | None
    rejected: int = 0
    """How many lines its file of rejected samples has."""
    proof: str = ""
    """Of a shuffle or sort: sum of the hashes of the ranges that went in (`tar_scan.Spans.raw_digest`)."""
    change: str = ""
    """What the multiset hash changed by, where samples got another key."""
    seen: str = ""
    """Of an upload that looked at no file before: `upload_files.Seen` of those that were packed."""
    left_out: tuple[int, ...] = ()
    """With it: places in the shard of samples that could not be had."""

    def to_dict(self) -> dict[str, Any]:
        """Give JSON-able values."""
        output = self.output
        return {
            "index": self.index,
            "rejected": self.rejected,
            **({"proof": self.proof, "change": self.change} if self.proof else {}),
            **({"seen": self.seen, "left_out": list(self.left_out)} if self.seen else {}),
            "counts": self.counts.to_dict(),
            "output": {one.name: getattr(output, one.name) for one in fields(output)} if output else None,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` gave; KeyError or TypeError for anything else."""
        output = OutputShard(**values["output"]) if values["output"] else None
        counts = Counts.from_dict(values["counts"])
        proof, change = values.get("proof", ""), values.get("change", "")
        seen, left_out = values.get("seen", ""), tuple(values.get("left_out", ()))
        return cls(values["index"], counts, output, values["rejected"], proof, change, seen, left_out)
