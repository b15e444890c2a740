"""htmapper: every sample through the user's script, input shard i to output shard i."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, redirect_stdout
from typing import TYPE_CHECKING

from tarmill import storage
from tarmill.engine.base import Outcome
from tarmill.errors import Interrupted, JobFailed, SpecError
from tarmill.formats.codec_write import check_level
from tarmill.formats.compression import codec_for
from tarmill.formats.digest import to_hex
from tarmill.formats.shards import ShardPattern
from tarmill.jobs.drive import choose_engine, from_anywhere, probe_workers, run_tasks, settings_of
from tarmill.jobs.error_limit import ErrorLimit
from tarmill.jobs.inputs import find_shards, manifest_url, name_in, refuse_inputs, total_bytes
from tarmill.jobs.listener import Listener
from tarmill.jobs.manifests import (
    JobFolder,
    in_parallel,
    is_of_another_job,
    publish,
    refuse_existing,
    rejected_part,
    withdraw,
)
from tarmill.jobs.map_shard import map_shard, try_first_sample
from tarmill.jobs.output_index import index_outputs, plan_index, recorded_index, withdraw_index
from tarmill.jobs.report import Failure, Report
from tarmill.jobs.script import Script, load
from tarmill.planning.jobid import job_id
from tarmill.planning.tasks import MapTask, Shard, ShardDone
from tarmill.spec import MapSpec, RunOptions
from tarmill.values import field, replace, valueclass

if TYPE_CHECKING:
    from tarmill.jobs.sidecar_places import Places

_KIND = "ShardMap"


@valueclass(frozen=False)
class MapPlan:
    """All that is decided before the first task runs."""

    spec: MapSpec
    shards: list[Shard]
    outputs: list[str]
    job: str
    folder: JobFolder | None
    manifest: str
    index: Places | None = None
    """Of the files for other readers that are wanted."""
    finished: dict[int, ShardDone] = field(default_factory=dict)

    def tasks(self, settings: storage.StorageSettings) -> list[MapTask]:
        """Give the tasks that are left to do."""
        state = from_anywhere(self.folder.url) if self.folder else ""
        return [
            MapTask(
                index,
                replace(shard, url=from_anywhere(shard.url)),
                from_anywhere(output),
                self.spec,
                self.job,
                state,
                settings,
            )
            for index, (shard, output) in enumerate(zip(self.shards, self.outputs, strict=True))
            if index not in self.finished
        ]

    def sweep(self) -> None:
        """Remove what killed processes of this job left."""
        if self.folder:
            index = self.index.of_data_set().values() if self.index else ()
            self.folder.sweep([*self.outputs, self.manifest, *index, *filter(None, [self.spec.rejected])])


def plan(spec: MapSpec) -> MapPlan:
    """Resolve patterns, pin inputs, name outputs and find what an earlier run has finished.

    Raises:
        UsageError: the patterns do not fit together, or the outputs belong to another job.
        StorageError: an input cannot be looked at.
    """
    pattern, out_pattern = ShardPattern.parse(spec.input), ShardPattern.parse(spec.output)
    shards = find_shards(pattern)
    outputs = _name_outputs(out_pattern, len(shards), spec)
    labels = [storage.mask(url) for url in outputs]
    job = job_id(_KIND, spec, shards, labels)
    index = plan_index(spec.index, out_pattern, outputs)
    if outputs == ["-"]:
        return MapPlan(spec, shards, outputs, job, None, "")
    refuse_inputs(shards, outputs, spec.output)
    folder = JobFolder(out_pattern.folder, job)
    found = MapPlan(spec, shards, outputs, job, folder, manifest_url(out_pattern), index)
    if spec.exists == "overwrite":
        return found
    names = {name_in(out_pattern.folder, url) for url in outputs}
    taken = is_of_another_job(found.manifest, job, names)
    # what a stream held the last time nobody knows, so that nothing can be resumed
    ours = not taken and all(shard.version is not None for shard in shards) and folder.has_begun()
    if spec.exists == "fail" or not ours:
        refuse_existing(outputs, job)
    else:
        found.finished = folder.finished(range(len(shards)), outputs)
    return found


def _name_outputs(pattern: ShardPattern, count: int, spec: MapSpec) -> list[str]:
    if pattern.needs_listing or pattern.list_files:
        raise SpecError(
            f"output {storage.mask(spec.output)!r} is known only after looking; write a count, "
            f"as in 'out-@{count:04d}.tar'",
            field="output",
            value=storage.mask(spec.output),
        )
    if not pattern.is_open and pattern.count != count:
        raise SpecError(
            f"there are {count} input shards but {pattern.count} outputs in {storage.mask(spec.output)!r}; htmapper "
            "writes one output for each input: leave the count open, as in 'out-@.tar'; to change the number of shards "
            "use htshuffle or htsort",
            field="output",
            value=storage.mask(spec.output),
        )
    outputs = pattern.with_count(count).expand()
    for codec in {codec_for(url) for url in outputs}:
        check_level(codec, spec.level if spec.level >= 0 else None)
    if len(set(outputs)) < count:
        twice = Counter(outputs).most_common(1)[0][0]
        raise SpecError(
            f"output {storage.mask(twice)!r} is named twice; expected another name for each of {count} outputs",
            field="output",
            value=storage.mask(spec.output),
        )
    return outputs


def run(spec: MapSpec, options: RunOptions | None = None, listener: Listener | None = None) -> Report:
    """Run a map job to its end and report.

    Every finished shard stays, whatever happens later; run the same job again and it does what is missing.

    Raises:
        UsageError: it cannot be started as asked for.
        JobFailed: shards failed; `report` says which and why.
        Interrupted: someone asked to stop; temp files are gone, finished shards stay.
    """
    options, listener = options or RunOptions(), listener or Listener()
    started = time.monotonic()
    settings = settings_of(options)
    script = _loaded(spec)
    found = plan(spec)
    report = Report(_KIND, found.job, len(found.shards), storage.mask(spec.output), storage.mask(found.manifest))
    for done in found.finished.values():
        _take(report, done)
    report.shards_resumed = report.shards_done
    tasks = found.tasks(settings)
    total = total_bytes(task.shard for task in tasks)
    listener.plan(report, total, _describe(found, tasks, total))
    if options.dry_run:
        report.plan_only = True
        return report
    if tasks and not options.task_timeout:  # a script that may hang must not do so here, where nobody ends it
        try_first_sample(script, tasks[0])
    found.sweep()
    try:
        if tasks:
            _run_tasks(found, tasks, options, listener, report)
        report.wall_s = time.monotonic() - started
        _finish(found, report, options, listener, resumed=not tasks)
    except Interrupted:
        report.interrupted = True
        raise
    finally:
        if tasks or found.index:
            found.sweep()
        report.wall_s = time.monotonic() - started
    if not report.succeeded:
        raise JobFailed(_verdict(report), report=report)
    return report


def _loaded(spec: MapSpec) -> Script:
    with redirect_stdout(sys.stderr):
        script = load(spec.script, spec.script_name)
    if spec.keep_rest and script.process_sample is None:
        spec.refuse("keep_rest", "it needs a script with process_sample: what process_samples gives has no one input")
    return script


def _run_tasks(
    found: MapPlan, tasks: Sequence[MapTask], options: RunOptions, listener: Listener, report: Report
) -> None:
    limit = ErrorLimit.parse(found.spec.max_errors)
    if found.folder:
        keep = found.spec.index if found.spec.exists == "resume" else ()
        withdraw_index(found.manifest, ShardPattern.parse(found.spec.output), found.job, keep)
        withdraw(found.manifest)
        found.folder.begin({"kind": _KIND, "output": storage.mask(found.spec.output), "shards": len(found.shards)})
    with choose_engine(options, len(tasks), [tasks[0].shard.url, tasks[0].output], scripts=True) as engine:
        probe_workers(engine, tasks[0].shard, from_anywhere(ShardPattern.parse(found.spec.output).folder or "./"))
        with closing(run_tasks(engine, map_shard, tasks, listener, fail_fast=options.fail_fast)) as outcomes:  # type: ignore[type-var]
            for outcome in outcomes:
                _hear(found, outcome, listener, report)
                if limit.exceeded(report.counts, final=False):
                    break


def _hear(found: MapPlan, outcome: Outcome[MapTask, ShardDone], listener: Listener, report: Report) -> None:
    """Take note of how a shard ended."""
    task, done, error = outcome.task, outcome.result, outcome.error
    if done is not None:
        found.finished[task.index] = done
        _take(report, done)
        listener.finished(task.index, done.counts.read, done.counts.read_bytes, done.counts.written_bytes)
    elif error is not None:
        if found.folder is None and error.facts.get("kind") == "BrokenPipeError":
            raise BrokenPipeError(error.message)  # whoever reads our standard output has seen enough
        report.failures.append(Failure.of(task.index, task.label, error))
        listener.failed(task.label, error)


def _take(report: Report, done: ShardDone) -> None:
    report.shards_done += 1
    report.counts.merge(done.counts)
    if done.output is not None:
        report.digest = to_hex(int(report.digest or "0", 16) + int(done.output.digest, 16))


def _finish(found: MapPlan, report: Report, options: RunOptions, listener: Listener, *, resumed: bool) -> None:
    """Join what was rejected; index the shards of a job whose shards are all done, and publish its manifest."""
    limit = ErrorLimit.parse(found.spec.max_errors)
    if limit.exceeded(report.counts, final=not report.failures):
        report.notes.append(limit.message(report.counts))
    if found.spec.rejected and found.folder:
        parts = [
            rejected_part(found.folder.url, index) for index, done in sorted(found.finished.items()) if done.rejected
        ]
        storage.write_bytes(found.spec.rejected, in_parallel(storage.read_bytes, parts), owner=found.job)
    if report.notes:
        report.failures.append(Failure(-1, "the whole job", report.notes[-1]))
    if not (report.succeeded and found.folder):
        return
    done = [found.finished[index] for index in range(len(found.shards))]
    if found.index:
        index_outputs(found.index, done, found.folder, options, listener, report)
        if report.failures:
            return
    # what an earlier run has indexed is still so where this one wrote no shard
    kinds = {*found.spec.index, *(recorded_index(found.manifest, found.job) if resumed else ())}
    facts = {"index": sorted(kinds)} if kinds else {}
    publish(found.manifest, _KIND, found.job, done, found.outputs, report.counts, facts=facts)


def _describe(found: MapPlan, tasks: Sequence[MapTask], total: int | None) -> list[str]:
    size = "an unknown size" if total is None else f"{total / 1e6:,.1f} MB"
    lines = [
        f"job {found.job}: {len(found.shards)} shards, {len(found.finished)} finished before, {len(tasks)} to do, "
        f"{size}",
        f"first: {found.shards[0].label} -> {storage.mask(found.outputs[0])}",
        f"last:  {found.shards[-1].label} -> {storage.mask(found.outputs[-1])}",
    ]
    lines += [f"index for {kind}" for kind in found.index.wanted] if found.index else []
    return lines + ([f"manifest: {storage.mask(found.manifest)}"] if found.manifest else [])


def _verdict(report: Report) -> str:
    if report.counts.missing:
        return f"{report.counts.missing} samples are unaccounted for: this is a fault in tarmill, please report it"
    first = report.failures[0].message if report.failures else "not all shards were done"
    failed = sum(1 for item in report.failures if item.index >= 0)
    if not failed:
        return first
    return f"{failed} of {report.shards_total} shards failed; the first: {first}"
