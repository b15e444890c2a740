"""htupload: files, lists of files and objects of stores into new shards.

What there is to pack is listed first, with sizes and times where cuts or sources need them: that gives order, cuts and
the job's id. Then each shard is one task. A tar on standard input goes another way, see `upload_stream`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any

from tarmill import storage
from tarmill.engine.base import Outcome
from tarmill.errors import Interrupted, JobFailed
from tarmill.formats.digest import to_hex
from tarmill.formats.shards import ShardPattern
from tarmill.jobs.drive import probe_workers, run_tasks
from tarmill.jobs.error_limit import ErrorLimit
from tarmill.jobs.listener import Listener
from tarmill.jobs.manifests import (
    in_parallel,
    publish,
    rejected_part,
    withdraw,
)
from tarmill.jobs.output_index import index_outputs, withdraw_index
from tarmill.jobs.report import Failure, Report
from tarmill.jobs.upload_named import weigh
from tarmill.jobs.upload_plan import KIND, LISTING, Engines, Upload, make_tasks, places_of, plan
from tarmill.jobs.upload_shard import upload_shard
from tarmill.jobs.upload_told import bytes_left, describe
from tarmill.planning.tasks import ShardDone
from tarmill.planning.upload_tasks import UploadTask
from tarmill.spec import RunOptions, UploadSpec


def run(spec: UploadSpec, options: RunOptions | None = None, listener: Listener | None = None) -> Report:
    """Run an upload to its end and report.

    Every finished shard stays, whatever happens later; run the same job again and it does what is missing.

    Raises:
        UsageError: it cannot be started as asked for.
        SampleError: two samples have one key.
        JobFailed: shards failed; `report` says which and why.
        Interrupted: someone asked to stop; temp files are gone, finished shards stay.
    """
    options, listener = options or RunOptions(), listener or Listener()
    if spec.sources == ("-",):
        from tarmill.jobs.upload_stream import run_stream

        return run_stream(spec, options, listener)
    started = time.monotonic()
    with ExitStack() as stack:
        engines = Engines(options, [*places_of(spec), spec.output], stack)
        work = plan(spec, engines, listener)
        stack.callback(work.found.listing.close)
        report, tasks = work.report, [] if options.dry_run else make_tasks(work)
        if options.dry_run and work.found.by_name:
            weigh(work)
        listener.plan(report, bytes_left(work), describe(work))
        for note in work.found.notes:
            listener.note(note)
        if options.dry_run:
            report.plan_only = True
            return report
        work.sweep()
        if tasks:
            _run_tasks(work, tasks, engines, listener)
        report.wall_s = time.monotonic() - started
        if not work.is_complete:
            _finish(work, options, listener)
        report.wall_s = time.monotonic() - started
    if not report.succeeded:
        raise JobFailed(_verdict(report), report=report)
    return report


def _run_tasks(work: Upload, tasks: Sequence[UploadTask], engines: Engines, listener: Listener) -> None:
    limit, report = ErrorLimit.parse(work.spec.max_errors), work.report
    if work.folder:
        facts = {"kind": KIND, "output": storage.mask(work.spec.output), "shards": len(work.outputs)}
        if work.base is None:
            keep = work.spec.index if work.spec.exists == "resume" else ()
            withdraw_index(work.manifest, ShardPattern.parse(work.spec.output), work.report.job, keep)
            withdraw(work.manifest)
        else:
            facts["first"] = work.base.first
        work.folder.begin(facts)
    try:
        engine = engines.get(len(tasks))
        if work.probe.url or work.folder:
            probe_workers(engine, work.probe, work.job.folder or "./")
        with closing(run_tasks(engine, upload_shard, tasks, listener, fail_fast=engines.options.fail_fast)) as outcomes:  # type: ignore[type-var]
            for outcome in outcomes:
                _hear(work, outcome, listener)
                if limit.exceeded(report.counts, final=False):
                    break
    except Interrupted:
        report.interrupted = True
        raise
    finally:
        work.sweep()


def _hear(work: Upload, outcome: Outcome[UploadTask, ShardDone], listener: Listener) -> None:
    """Take note of how a shard ended."""
    task, done, error = outcome.task, outcome.result, outcome.error
    if done is not None:
        work.take(done)
        listener.finished(task.index, done.counts.read, done.counts.read_bytes, done.counts.written_bytes)
    elif error is not None:
        if work.folder is None and error.facts.get("kind") == "BrokenPipeError":
            raise BrokenPipeError(error.message)  # whoever reads our standard output has seen enough
        work.report.failures.append(Failure.of(task.index, task.label, error))
        listener.failed(task.label, error)


def _finish(work: Upload, options: RunOptions, listener: Listener) -> None:
    """Write what was rejected, check that all samples are accounted for, and publish the manifest."""
    report, spec, folder = work.report, work.spec, work.folder
    limit = ErrorLimit.parse(spec.max_errors)
    if limit.exceeded(report.counts, final=not report.failures):
        report.notes.append(limit.message(report.counts))
        report.failures.append(Failure(-1, "the whole job", report.notes[-1]))
    if spec.rejected:
        lines = "".join(json.dumps(line) + "\n" for line in work.found.rejected).encode()
        rejected = [index for index, done in sorted(work.finished.items()) if done.rejected]
        parts = [rejected_part(folder.url, index) for index in rejected] if folder else []
        storage.write_bytes(spec.rejected, [lines, *in_parallel(storage.read_bytes, parts)], owner=report.job)
    if not report.succeeded or folder is None:
        return
    expected = len(work.found.listing) + sum(work.found.dropped.values())
    if report.counts.read != expected:
        message = f"{expected:,} samples were found and {report.counts.read:,} read: this is a fault in tarmill"
        report.failures.append(Failure(-1, "the whole job", message))
        return
    if work.classes_url:
        text = json.dumps(work.found.classes, indent=1) + "\n"
        storage.write_bytes(work.classes_url, text.encode(), owner=report.job)
    _publish(work, options, listener)
    if not report.succeeded:
        return
    out_folder = ShardPattern.parse(spec.output).folder
    for name in sorted(work.stale):
        storage.delete(out_folder + name)
        listener.note(f"removed {out_folder}{name}, which was a shard of the data set that was overwritten")
    storage.delete(work.job.state + LISTING)


def _publish(work: Upload, options: RunOptions, listener: Listener) -> None:
    """Index the shards where that is wanted, and write the manifest; with old shards and new where some were added."""
    report, base = work.report, work.base
    done = [work.finished[index] for index in range(report.shards_total)]
    urls, every = [*(base.urls if base else ()), *work.outputs], [*(base.done() if base else ()), *done]
    facts: dict[str, Any] = {"seed": work.seed} if work.spec.shuffle else {}
    if work.index and work.folder:
        index_outputs(work.index, every, work.folder, options, listener, report)
        if report.failures:
            return
        facts["index"] = sorted(work.spec.index)
    if base is None:
        publish(work.manifest, KIND, report.job, done, work.outputs, report.counts, facts=facts)
        return
    facts |= base.facts(report.job, len(done), report.counts)
    counts = base.counts
    counts.merge(report.counts)
    digest = to_hex(int(base.digest, 16) + int(report.digest or "0", 16))
    members = base.members + sum(item.output.members for item in done if item.output)
    publish(work.manifest, KIND, report.job, every, urls, counts, digest=digest, members=members, facts=facts)


def _verdict(report: Report) -> str:
    if report.counts.missing:
        return f"{report.counts.missing} samples are unaccounted for: this is a fault in tarmill, please report it"
    first = report.failures[0].message if report.failures else "not all shards were done"
    failed = sum(1 for item in report.failures if item.index >= 0)
    return f"{failed} of {report.shards_total} shards failed; the first: {first}" if failed else first
