"""htupload of a tar on standard input: any tar, its members put together to samples, in one pass.

Members of a sample need not be neighbours, as in a tar of a folder in the order of the disk: samples are held back
until `--regroup` bytes have come after their first member.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

from tarmill import storage
from tarmill.engine.meter import Meter, current
from tarmill.errors import Interrupted, JobFailed, TarmillError, UsageError
from tarmill.formats.digest import to_hex
from tarmill.formats.shards import ShardPattern
from tarmill.formats.tar_write import END_OF_ARCHIVE
from tarmill.jobs.cut_outputs import check_output, shards_before
from tarmill.jobs.drive import choose_engine, from_anywhere, run_tasks, settings_of
from tarmill.jobs.error_limit import ErrorLimit
from tarmill.jobs.inputs import manifest_url, name_in
from tarmill.jobs.listener import Listener
from tarmill.jobs.manifests import JobFolder, is_of_another_job, publish, refuse_existing, withdraw
from tarmill.jobs.report import Failure, Report
from tarmill.jobs.shard_io import ShardOutput, open_contents
from tarmill.jobs.upload_regroup import INPUT, Regrouper, StreamDone
from tarmill.planning.counts import Counts
from tarmill.planning.jobid import job_id
from tarmill.planning.tasks import ShardDone
from tarmill.planning.upload_listing import tar_bytes
from tarmill.planning.upload_names import fault_of_key
from tarmill.spec import DEFAULT_UPLOAD_SHARD_BYTES, RunOptions, UploadSpec
from tarmill.values import valueclass

KIND = "ShardUpload"


@valueclass
class StreamTask:
    """Read standard input into shards."""

    index: int
    spec: UploadSpec
    job: str
    folder: str
    """Of the outputs."""
    settings: Any
    label: str = "standard input"


def upload_stream(task: StreamTask) -> StreamDone:
    """Write shards of what comes; the function that the engine runs.

    Raises:
        FormatError: something is wrong with the tar, under `--on-error fail`; shards before that stay.
        OutputExistsError: a shard is there already.
    """
    storage.configure(task.settings)
    meter, done = current(), StreamDone()
    regrouper = Regrouper(task.spec, done)
    with ExitStack() as stack:
        raw, _ = stack.enter_context(open_contents(INPUT, meter))
        writer = stack.enter_context(_Shards(task, done, meter))
        for key, fields in regrouper.samples(raw):
            meter.key = key
            meter.samples += 1
            writer.add(key, fields)
        writer.close()
    return done


class _Shards:
    """Cuts samples into shards as they come."""

    def __init__(self, task: StreamTask, done: StreamDone, meter: Meter) -> None:
        self._task, self._done, self._meter = task, done, meter
        spec = task.spec
        self._pattern = None if spec.output == "-" else ShardPattern.parse(spec.output)
        is_open = self._pattern is not None and self._pattern.is_open
        self._most_samples = spec.samples_per_shard if is_open else 0
        size = spec.shard_size or (0 if spec.samples_per_shard else DEFAULT_UPLOAD_SHARD_BYTES)
        self._room = size - len(END_OF_ARCHIVE) if is_open else 0
        self._current: ShardOutput | None = None
        self._used = 0
        self._read = 0

    def add(self, key: str, fields: dict[str, bytes]) -> None:
        """Write a sample."""
        size = tar_bytes(key, ((name, None, len(data), None, None) for name, data in fields.items()))
        samples = self._current.sink.samples if self._current else 0
        if (self._most_samples and samples >= self._most_samples) or (
            self._room > 0 and self._used and self._used + size > self._room
        ):
            self.close()
        if self._current is None:
            self._current = self._begin()
        self._current.sink.add(dict(fields), key)
        self._used += size

    def close(self) -> None:
        """Publish the last shard; one without samples where there was none, if the output names a single one."""
        if self._current is None and not self._done.shards and (self._pattern is None or not self._pattern.is_open):
            self._current = self._begin()
        if self._current is None:
            return
        current, self._current = self._current, None
        with current:
            committed = current.commit()
        counts = Counts(read=committed.samples, written=committed.samples, written_bytes=committed.size_bytes)
        counts.read_bytes, self._read = self._meter.read_bytes - self._read, self._meter.read_bytes
        self._done.shards.append(ShardDone(len(self._done.shards), counts, committed))
        self._used = 0

    def _begin(self) -> ShardOutput:
        number, task = len(self._done.shards), self._task
        url = "-"
        if self._pattern is not None:
            pattern = self._pattern.with_count(number + 1) if self._pattern.is_open else self._pattern
            url = pattern.format(number)
            if task.spec.exists != "overwrite":
                refuse_existing([url], task.job)
        self._done.urls.append(url)
        return ShardOutput(url, name_in(task.folder, url), task.job, task.spec.level, self._meter)

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._current is not None:
            self._current.__exit__(*exception)


# ---- the job --------------------------------------------------------------------------------------------------------


def run_stream(spec: UploadSpec, options: RunOptions, listener: Listener) -> Report:
    """Run an upload of standard input; see `upload.run`."""
    started = time.monotonic()
    settings = settings_of(options)
    _refuse_what_needs_all(spec)
    if spec.key_prefix and (fault := fault_of_key(f"{spec.key_prefix}x")) is not None:
        spec.refuse("key_prefix", fault[1])
    out = None if spec.output == "-" else ShardPattern.parse(spec.output)
    if out is not None:
        check_output(spec, out)
        if not out.is_open and out.count != 1:
            spec.refuse("output", "how much comes on standard input is not known before; leave the count open")
    folder_url = out.folder if out is not None else ""
    job = job_id(KIND, spec, [INPUT], [storage.mask(spec.output)])
    manifest = manifest_url(out) if out is not None else ""
    report = Report(KIND, job, 0, storage.mask(spec.output), storage.mask(manifest))
    stale = _claim(spec, out, job, manifest)
    listener.plan(report, None, [f"job {job}: standard input into {storage.mask(spec.output)}"])
    if options.dry_run:
        report.plan_only = True
        return report
    folder = JobFolder(folder_url, job) if out is not None else None
    if folder is not None:
        withdraw(manifest)
        folder.begin({"kind": KIND, "output": storage.mask(spec.output)})
    task = StreamTask(0, spec, job, folder_url, settings)
    done: StreamDone | None = None
    try:
        with choose_engine(options, 1, ["-", spec.output]) as engine:
            for outcome in _outcomes(engine, task, listener):
                done = outcome.result
                if outcome.error is not None:
                    _hear_failure(report, outcome.error, listener)
    except Interrupted:
        report.interrupted = True
        raise
    finally:
        if folder is not None:
            folder.sweep([from_anywhere(f"{folder_url}x"), manifest])
    report.wall_s = time.monotonic() - started
    if done is not None:
        _finish(spec, report, done, manifest)
        ours = {done_one.output.name for done_one in done.shards if done_one.output}
        for name in sorted(stale - ours if report.succeeded else ()):
            storage.delete(folder_url + name)
            listener.note(f"removed {folder_url}{name}, which was a shard of the data set that was overwritten")
    if not report.succeeded:
        raise JobFailed(report.failures[0].message if report.failures else "it was not done", report=report)
    return report


def _refuse_what_needs_all(spec: UploadSpec) -> None:
    for name in ("shuffle", "class_from_dir", "num_shards", "append", "columns", "follow_symlinks", "index"):
        if getattr(spec, name):
            spec.refuse(name, "what comes on standard input is not known before; pack it, and then shuffle or sort it")


def _claim(spec: UploadSpec, out: ShardPattern | None, job: str, manifest: str) -> set[str]:
    """Refuse outputs that are there already; give the shards of a data set that is overwritten."""
    if out is None:
        return set()
    if spec.exists == "overwrite":
        return shards_before(manifest)
    is_of_another_job(manifest, job, ())
    refuse_existing([(out.with_count(1) if out.is_open else out).format(0)], job)
    return set()


def _outcomes(engine: Any, task: StreamTask, listener: Listener) -> Iterator[Any]:
    run: Callable[..., Any] = run_tasks
    with closing(run(engine, upload_stream, [task], listener)) as outcomes:
        yield from outcomes


def _hear_failure(report: Report, error: TarmillError, listener: Listener) -> None:
    if error.facts.get("kind") == "BrokenPipeError":
        raise BrokenPipeError(error.message)
    if isinstance(error, UsageError):
        raise error
    report.failures.append(Failure.of(0, "standard input", error))
    listener.failed("standard input", error)


def _finish(spec: UploadSpec, report: Report, done: StreamDone, manifest: str) -> None:
    report.shards_total = report.shards_done = len(done.shards)
    report.counts.merge(done.counts)
    for shard in done.shards:
        report.counts.merge(shard.counts)
    report.digest = to_hex(sum(int(shard.output.digest, 16) for shard in done.shards if shard.output))
    if spec.rejected:
        lines = "".join(json.dumps(line) + "\n" for line in done.rejected)
        storage.write_bytes(spec.rejected, lines.encode(), owner=report.job)
    limit = ErrorLimit.parse(spec.max_errors)
    if limit.exceeded(report.counts, final=True):
        report.failures.append(Failure(-1, "the whole job", limit.message(report.counts)))
    if not done.shards:
        report.failures.append(Failure(-1, "the whole job", "there was no sample on standard input"))
    if report.succeeded and manifest:
        publish(manifest, KIND, report.job, done.shards, done.urls, report.counts)
