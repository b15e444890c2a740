"""htupload of a tar on standard input: any tar, its members put together to samples, in one pass.

Members of a sample need not be neighbours, as in a tar of a folder in the order of the disk: samples are held back
until `--regroup` bytes have come after their first member.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

from tarmill import storage
from tarmill.engine.meter import Meter, current
from tarmill.errors import FormatError, Interrupted, JobFailed, LimitError, SampleError, TarmillError, UsageError
from tarmill.formats.digest import to_hex
from tarmill.formats.keys import key_function
from tarmill.formats.shards import ShardPattern
from tarmill.formats.tar_members import END_MARK, MemberReader
from tarmill.formats.tar_window import RawInput, Window
from tarmill.formats.tar_write import END_OF_ARCHIVE
from tarmill.jobs.cut_outputs import check_output, shards_before
from tarmill.jobs.drive import choose_engine, from_anywhere, run_tasks, settings_of
from tarmill.jobs.error_limit import ErrorLimit
from tarmill.jobs.inputs import manifest_url, name_in
from tarmill.jobs.listener import Listener
from tarmill.jobs.manifests import JobFolder, is_of_another_job, publish, refuse_existing, withdraw
from tarmill.jobs.report import Failure, Report
from tarmill.jobs.shard_io import ShardOutput, open_contents
from tarmill.jobs.upload_collect import hash_of_key
from tarmill.planning.counts import Counts
from tarmill.planning.jobid import job_id
from tarmill.planning.tasks import Shard, ShardDone
from tarmill.planning.upload_listing import tar_bytes
from tarmill.planning.upload_names import another_key, fault_of_field, fault_of_key, folder_test, name_test
from tarmill.spec import DEFAULT_UPLOAD_SHARD_BYTES, RunOptions, UploadSpec
from tarmill.values import field, valueclass

KIND = "ShardUpload"
_INPUT = Shard("-", "standard input")
_LINE_LIMIT = 1 << 20  # of the rejected: a stream of nothing else must not fill the memory


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


@valueclass(frozen=False)
class StreamDone:
    """What became of the stream."""

    shards: list[ShardDone] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    """Of what is in no shard."""


# ---- members to samples ---------------------------------------------------------------------------------------------


class Regrouper:
    """Puts members together to samples, in the order in which samples begin.

    Args:
        spec: key_function, key_prefix, same_key, on_error, include, exclude, hidden, regroup, max_member.
        done: takes counts and what is left out.
    """

    def __init__(self, spec: UploadSpec, done: StreamDone) -> None:
        self.spec = spec
        self.done = done
        self._split = key_function(spec.key_function)
        self._keep = name_test(spec.include, spec.exclude)
        self._leave = folder_test(spec.exclude)
        self._open: OrderedDict[str, dict[str, bytes]] = OrderedDict()
        self._held = 0
        self._names: dict[str, str] = {}
        """Keys that were given in place of those that were taken, while their samples are open."""
        self._past: set[int] = set()
        """Hashes of the keys of samples that were handed on or left out."""
        self._bad: set[int] = set()

    def samples(self, raw: RawInput) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Read a (decompressed) tar; give (key, fields) of each sample.

        Raises:
            FormatError: under `--on-error fail`, at the first thing that is wrong.
        """
        members = MemberReader(Window(raw), _INPUT.label, self.spec.max_member)
        key = ""
        try:
            while (member := members.next()) is not None:
                if member.kind == END_MARK:
                    continue
                pair = self._pair(member.text.removeprefix("./"), member.kind)
                if pair is None:
                    members.skip_data(member)
                    continue
                key = self.spec.key_prefix + pair[0]
                try:
                    yield from self._take(key, pair[1], members.read_data(member))
                except (LimitError, SampleError) as error:
                    self._drop(key, error)
                key = ""
                while self._held > self.spec.regroup and len(self._open) > 1:  # the last one may go on
                    yield self._close(next(iter(self._open)))
        except FormatError as error:
            if self.spec.on_error == "fail" or isinstance(error, _SameKey):
                raise
            self.done.counts.unread[error.reason] += 1
            self._note("", error.reason, error.message)
            if key and hash_of_key(key) not in self._bad:  # it was cut in the middle of this one
                self._drop(key, error)
        while self._open:
            yield self._close(next(iter(self._open)))

    def _pair(self, name: str, kind: str) -> tuple[str, str] | None:
        """Find key and field of a member; None, and counted, where it is in no sample."""
        skipped = self.done.counts.skipped_members
        folders = name.split("/")[:-1]
        if kind not in ("file", "sparse", "hardlink"):
            skipped[kind] += 1
        elif not self.spec.hidden and (name[:1] == "." or "/." in name):
            skipped["hidden"] += 1
        elif self._leave is not None and any(self._leave("/".join(folders[: n + 1])) for n in range(len(folders))):
            skipped["excluded"] += 1
        elif self._keep is not None and not self._keep(name):
            skipped["not-included"] += 1
        elif (pair := self._split(name)) is None:
            skipped["no-extension" if self.spec.key_function == "base_plus_ext" else "no-key"] += 1
        else:
            return pair
        return None

    def _take(self, key: str, name: str, data: bytes) -> Iterator[tuple[str, dict[str, bytes]]]:
        digest = hash_of_key(key)
        if digest in self._bad:
            return
        fields = self._open.get(self._names.get(key, key))
        if fields is not None and name in fields:
            self._same_key(key)
            yield self._close(self._names.get(key, key))
            fields = None
        if fields is None:
            if (fault := fault_of_key(key)) is not None:
                raise SampleError(f"{_INPUT.label}: {fault[1]}", key=key, reason=fault[0])
            if digest in self._past:
                self._same_key(key)
                self._names[key] = another_key(key, lambda other: hash_of_key(other) in self._past)
                self._past.add(hash_of_key(self._names[key]))
                self.done.counts.renamed += 1
            self._past.add(digest)
            fields = self._open[self._names.get(key, key)] = {}
        if (fault := fault_of_field(name)) is not None:
            raise SampleError(f"{_INPUT.label}, sample {key!r}: {fault[1]}", key=key, reason=fault[0])
        fields[name] = data
        self._held += len(data) + 1024

    def _same_key(self, key: str) -> None:
        if self.spec.same_key == "fail":
            raise _SameKey(
                f"{_INPUT.label} has two samples with the key {key!r}, or members of one that are more than "
                f"{self.spec.regroup} bytes apart; raise --regroup, or let the second have another key with --same-key "
                "rename",
                key=key,
                reason="same-key",
            )

    def _close(self, name: str) -> tuple[str, dict[str, bytes]]:
        fields = self._open.pop(name)
        self._held -= sum(map(len, fields.values())) + 1024 * len(fields)
        return name, fields

    def _drop(self, key: str, error: FormatError) -> None:
        """Leave a sample out, whole, or raise what is wrong with it."""
        if self.spec.on_error == "fail" or isinstance(error, _SameKey):
            raise error
        name = self._names.get(key, key)
        if name in self._open:
            self._close(name)
        self._bad.add(hash_of_key(key))
        self._past.add(hash_of_key(key))
        self.done.counts.read += 1
        self.done.counts.dropped[error.reason] += 1
        self._note(key, error.reason, error.message)

    def _note(self, key: str, reason: str, message: str) -> None:
        if len(self.done.rejected) < _LINE_LIMIT:
            line = {"shard": _INPUT.label, "key": key, "reason": reason, "message": message, "kept": False}
            self.done.rejected.append(line)


class _SameKey(SampleError):
    """Two samples have one key: `--same-key` decides about that, not `--on-error`."""


# ---- samples to shards ----------------------------------------------------------------------------------------------


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
        raw, _ = stack.enter_context(open_contents(_INPUT, meter))
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
    job = job_id(KIND, spec, [_INPUT], [storage.mask(spec.output)])
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
    for name in ("shuffle", "class_from_dir", "num_shards", "append", "columns", "follow_symlinks"):
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
    report.failures.append(Failure(0, "standard input", error.message))
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
