"""The closing report of a job: what was read, written and left out, and whether it balances."""

from __future__ import annotations

from typing import Any, Self

from tarmill.errors import ShardPatternError, TarmillError, reason_of
from tarmill.formats.shards import ShardPattern
from tarmill.planning.counts import Counts
from tarmill.values import field, valueclass


@valueclass(frozen=False)
class Failure:
    """A shard that failed: what errors call it, and the message of its error."""

    index: int
    shard: str
    message: str
    traceback: str = ""
    reason: str = "JobFailed"
    """Kind of the error, as `errors.reason_of` names it."""

    @classmethod
    def of(cls, index: int, shard: str, error: TarmillError) -> Self:
        """Tell of a shard's error."""
        return cls(index, shard, error.message, error.facts.get("script_traceback", ""), reason_of(error))


@valueclass(frozen=False)
class Report:
    """How a job ended."""

    kind: str
    job: str
    shards_total: int
    output: str = ""
    manifest: str = ""
    shards_done: int = 0
    shards_resumed: int = 0
    """Of those done: finished by an earlier run."""
    counts: Counts = field(default_factory=Counts)
    failures: list[Failure] = field(default_factory=list)
    digest: str = ""
    wall_s: float = 0.0
    interrupted: bool = False
    plan_only: bool = False
    notes: list[str] = field(default_factory=list)
    index: list[str] = field(default_factory=list)
    """Index files for other readers that were written: URLs, and how many stand beside each shard."""
    url: str = ""
    """Where `--report` has written it."""
    samples_total: int | None = None
    """How many samples there are to be read or left out, where that is known before."""
    shards_before: int | None = None
    """Of a data set that was added to: how many numbers its shards had used before."""

    @property
    def succeeded(self) -> bool:
        """Whether every shard is done and every sample is accounted for."""
        return not self.failures and self.shards_done == self.shards_total and self.counts.missing == 0

    @property
    def data_set(self) -> str:
        """The shard pattern that names just the shards of the finished data set: `out-@.tar` -> `out-@000012.tar`."""
        count = self.shards_total + (self.shards_before or 0)
        try:
            pattern = ShardPattern.parse(self.output)
            return pattern.with_count(count).text if self.succeeded and pattern.is_open and count else self.output
        except ShardPatternError:
            return self.output

    def to_dict(self) -> dict[str, Any]:
        """Give JSON-able values, for `--report`."""
        return {
            "kind": self.kind,
            "job": self.job,
            "succeeded": self.succeeded,
            "interrupted": self.interrupted,
            "output": self.output,
            "manifest": self.manifest,
            "shards": {"total": self.shards_total, "done": self.shards_done, "resumed": self.shards_resumed},
            "samples": self.counts.to_dict(),
            "balanced": self.counts.missing == 0,
            "digest": self.digest,
            "wall_s": round(self.wall_s, 3),
            "failures": [
                {"index": f.index, "shard": f.shard, "reason": f.reason, "message": f.message} for f in self.failures
            ],
            "notes": self.notes,
            **({"index": self.index} if self.index else {}),
        }
