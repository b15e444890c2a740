"""A shuffle or sort as its passes see it: what was decided before it began, and what is known as it goes on."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from tarmill import storage
from tarmill.errors import (
    NoSpaceError,
    NotFoundError,
    TarmillError,
)
from tarmill.formats.shards import ShardPattern
from tarmill.jobs.cut_outputs import named
from tarmill.jobs.drive import from_anywhere
from tarmill.jobs.error_limit import ErrorLimit
from tarmill.jobs.inputs import refuse_inputs
from tarmill.jobs.listener import Listener
from tarmill.jobs.manifests import (
    JobFolder,
    refuse_existing,
)
from tarmill.jobs.report import Failure, Report
from tarmill.jobs.scratch_files import MEMORY
from tarmill.planning.counts import Counts
from tarmill.planning.cuts import Cuts
from tarmill.planning.reorder_plan import Plan
from tarmill.planning.span_tasks import InputShard, Job
from tarmill.planning.tasks import ShardDone
from tarmill.spec import ReorderOptions, ReorderSpec, SortSpec
from tarmill.values import field, valueclass

if TYPE_CHECKING:
    from tarmill.jobs.sidecar_places import Places


@valueclass(frozen=False)
class Reorder:
    """One job: all that is decided before it begins, and what is known as it goes on."""

    spec: ReorderSpec
    options: ReorderOptions
    kind: str
    inputs: list[InputShard]
    parts: int
    out: ShardPattern
    job: Job
    folder: JobFolder
    manifest: str
    plan: Plan
    listener: Listener
    report: Report
    index: Places | None = None
    """Of the files for other readers that are wanted, beside such shards as there may be."""
    is_ours: bool = False
    """Whether this very job was begun before, so that what is there already is its own."""
    outputs: list[str] = field(default_factory=list)
    """URLs of the output shards, once the cuts are known."""
    done: dict[int, ShardDone] = field(default_factory=dict)
    """Output shards that are finished, by number."""
    samples: int = 0
    """That are to be written, or reduced."""
    members: int = 0
    digest: int = 0
    proof: int = 0
    """Sum of the hashes of the ranges of all those samples."""
    scratch_files: set[str] = field(default_factory=set)
    """URLs of what the passes leave for each other."""
    stale: set[str] = field(default_factory=set)
    """Shards of a data set that this one overwrites."""

    @property
    def is_pinned(self) -> bool:
        """Whether all inputs have a version, so that the same job id means the same bytes."""
        return all(found.shard.version is not None for found in self.inputs)

    @property
    def may_resume(self) -> bool:
        """Whether what earlier passes of this job left may be used: not when the inputs may be others by now."""
        return self.is_pinned and self.spec.exists != "overwrite"

    @property
    def runs_scripts(self) -> bool:
        """Whether users' code is a part of it."""
        return runs_scripts(self.spec)

    @property
    def fixed_count(self) -> int | None:
        """How many shards the output pattern has; None when its count is open."""
        return None if self.out.is_open else self.out.count

    @property
    def count_is_asked(self) -> bool:
        """Whether somebody said how many shards there are to be, so that some may be empty."""
        return self.fixed_count is not None or bool(self.spec.num_shards)

    def name_outputs(self, cuts: Cuts) -> None:
        """Name the output shards, and find those that an earlier run has finished.

        Raises:
            OutputExistsError: one is there already, and not of this job.
            SpecError: one is also an input.
        """
        count = len(cuts)
        self.outputs = [from_anywhere(url) for url in named(self.out, count)]
        self.report.shards_total = count
        refuse_inputs([found.shard for found in self.inputs], self.outputs, self.spec.output)
        if self.spec.exists == "overwrite":
            return
        if self.spec.exists == "fail":
            refuse_existing(self.outputs, self.job.job)
        self.done = self.folder.finished(range(count), self.outputs) if self.is_ours else {}
        others = [url for number, url in enumerate(self.outputs) if number not in self.done]
        if not self.is_ours:
            refuse_existing(others, self.job.job)
        for found in self.done.values():
            self.take(found)
        self.report.shards_resumed = len(self.done)

    def take(self, found: ShardDone) -> None:
        """Take note of a finished output shard."""
        self.done[found.index] = found
        self.report.shards_done += 1
        self.report.counts.merge(found.counts)

    def fail(self, index: int, label: str, error: TarmillError) -> None:
        """Take note of a task that failed for good."""
        failure = Failure.of(index, label, error)
        if isinstance(error, NoSpaceError) and self.plan.scratch_bytes:
            failure.message += f"; the job needs about {self.plan.scratch_bytes / 1e6:,.0f} MB of scratch space in all"
        self.report.failures.append(failure)
        self.listener.failed(label, error)

    def check_limit(self, counts: Counts, *, final: bool) -> bool:
        """Tell whether too many samples were left out because of errors."""
        limit = ErrorLimit.parse(self.spec.max_errors)
        if not limit.exceeded(counts, final=final):
            return False
        self.report.notes.append(limit.message(counts))
        self.report.failures.append(Failure(-1, "the whole job", self.report.notes[-1]))
        return True

    def sweep(self) -> None:
        """Remove what killed processes of this job left beside its files."""
        index = self.index.of_data_set().values() if self.index else ()
        self.folder.sweep([*self.outputs, self.manifest, *index])
        for place in {self.job.spill, self.job.scratch} - {"", MEMORY}:
            with suppress(NotFoundError):
                storage.sweep(place, self.job.job)


def runs_scripts(spec: ReorderSpec) -> bool:
    """Tell whether users' code is a part of a shuffle or sort."""
    return isinstance(spec, SortSpec) and bool(spec.script or spec.reduce_script)
