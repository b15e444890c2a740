"""htextract: rows or aggregates from every sample, in shard order, the same for any number of workers."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tarmill import storage
from tarmill.engine.base import Outcome
from tarmill.errors import Interrupted, JobFailed, NotFoundError, SpecError, StorageError
from tarmill.formats.compression import compress
from tarmill.formats.rows import row_encoder
from tarmill.formats.shards import ShardPattern
from tarmill.jobs.drive import choose_engine, from_anywhere, probe_workers, run_tasks, settings_of
from tarmill.jobs.error_limit import ErrorLimit
from tarmill.jobs.extract_places import row_codec
from tarmill.jobs.extract_request import Request
from tarmill.jobs.extract_shard import EncodedRows, extract_shard
from tarmill.jobs.inputs import find_shards, refuse_inputs, total_bytes
from tarmill.jobs.listener import Listener
from tarmill.jobs.manifests import refuse_existing
from tarmill.jobs.report import Failure, Report
from tarmill.planning.extract_tasks import ExtractDone, ExtractTask
from tarmill.planning.jobid import job_id
from tarmill.planning.tasks import Shard
from tarmill.spec import ExtractSpec, RunOptions
from tarmill.values import replace, valueclass

if TYPE_CHECKING:
    from tarmill.planning.aggregates import Table

WAITING_BYTES = 64 << 20
"""Small results of shards whose turn has not come stay in memory up to this sum; the rest waits on disk."""
INLINE_BYTES = 1 << 20
"""Rows of one shard up to this size travel in the result; larger ones wait in a file."""
HERE_BYTES = 8 << 20
"""The same where the result stays in this process, one shard at a time."""
_BLOCK_BYTES = 512 << 10
_KIND = "ShardExtract"

_Outcome = Outcome[ExtractTask, ExtractDone]


@valueclass(frozen=False)
class ExtractPlan:
    """All that is decided before the first task runs."""

    spec: ExtractSpec
    request: Request
    shards: list[Shard]
    parts: list[str]
    """One output per shard, or [] when all rows go to `spec.output`."""
    job: str

    def sweep(self) -> None:
        """Remove what killed processes of this job left of its outputs."""
        outputs = frozenset(self.parts or ([self.spec.output] if self.spec.output != "-" else []))
        for folder in sorted({url[: url.rfind("/") + 1] for url in outputs}):
            with suppress(NotFoundError):
                storage.sweep(folder or "./", self.job, outputs)

    def tasks(self, spool: str, inline_bytes: int, settings: storage.StorageSettings) -> list[ExtractTask]:
        """Give a task for each shard."""
        outputs = self.parts or [""] * len(self.shards)
        return [
            ExtractTask(
                index,
                replace(shard, url=from_anywhere(shard.url)),
                self.spec,
                self.job,
                from_anywhere(output),
                from_anywhere(spool),
                inline_bytes,
                settings,
            )
            for index, (shard, output) in enumerate(zip(self.shards, outputs, strict=True))
        ]


def plan(spec: ExtractSpec) -> ExtractPlan:
    """Parse columns and filter, pin inputs, name outputs.

    Raises:
        UsageError: the request cannot be read or carried out.
        OutputExistsError: an output is there already.
        StorageError: an input cannot be looked at.
    """
    request = Request.of(spec)
    _need_libraries(spec, request)
    pattern, out = ShardPattern.parse(spec.input), ShardPattern.parse(spec.output)
    shards = find_shards(pattern)
    parts: list[str] = []
    if out.is_open or out.count != 1:
        if request.aggregate:
            spec.refuse("output", f"--{request.aggregate} has one result: name one file")
        if not out.is_open and out.count != len(shards):
            raise SpecError(
                f"there are {len(shards)} input shards but {out.count} outputs in {storage.mask(spec.output)!r}; leave "
                "the count open for a part per shard, as in 'part-@.jsonl', or name one file",
                field="output",
                value=storage.mask(spec.output),
            )
        parts = out.with_count(len(shards)).expand()
    outputs = parts or out.expand()
    row_codec(outputs[0])
    if spec.format == "parquet" and row_codec(outputs[0]) != "none":
        spec.refuse("output", "Parquet is compressed inside: leave the second extension away")
    refuse_inputs(shards, outputs, spec.output)
    job = job_id(_KIND, spec, shards, [storage.mask(url) for url in outputs])
    if outputs != ["-"] and spec.exists == "fail":
        refuse_existing(outputs, job)
    return ExtractPlan(spec, request, shards, parts, job)


def _need_libraries(spec: ExtractSpec, request: Request) -> None:
    """Tell before any work of a library that is not there."""
    if request.aggregate:
        from tarmill.planning.aggregates import make_aggregate

        make_aggregate(request.aggregate, request.names, spec.top)
    if spec.format == "parquet":
        from tarmill.jobs.parquet import schema_of

        schema_of(request.columns)


def run(spec: ExtractSpec, options: RunOptions | None = None, listener: Listener | None = None) -> Report:
    """Run an extraction to its end and report.

    Rows go out in shard order as they become ready. When a shard fails, what came before it has gone to standard
    output; a file does not appear. With a part per shard the other parts are finished.

    Raises:
        UsageError: it cannot be started as asked for.
        JobFailed: a shard failed; `report` says which and why.
        Interrupted: someone asked to stop; temp files are gone.
    """
    options, listener = options or RunOptions(), listener or Listener()
    started = time.monotonic()
    settings = settings_of(options)
    found = plan(spec)
    report = Report(_KIND, found.job, len(found.shards), storage.mask(spec.output))
    total = total_bytes(found.shards)
    listener.plan(report, total, _describe(found, total))
    if options.dry_run:
        report.plan_only = True
        return report
    try:
        found.sweep()
        with ExitStack() as stack:
            spool = stack.enter_context(_spool_folder(found, options, settings))
            urls = [found.shards[0].url, *found.parts[:1]]
            engine = stack.enter_context(choose_engine(options, len(found.shards), urls))
            tasks = found.tasks(spool, HERE_BYTES if engine.name == "serial" else INLINE_BYTES, settings)
            probe_workers(engine, found.shards[0], spool or ShardPattern.parse(spec.output).folder or "-")
            told = run_tasks(engine, extract_shard, tasks, listener, fail_fast=options.fail_fast)
            outcomes = stack.enter_context(closing(told))  # type: ignore[type-var]
            ordered = in_order(_told(outcomes, listener), spool if not options.scheduler else "")
            _consume(found, ordered, report)
        found.sweep()
    except Interrupted:
        report.interrupted = True
        raise
    report.wall_s = time.monotonic() - started
    if not report.succeeded:
        raise JobFailed(_verdict(report), report=report)
    return report


def _consume(found: ExtractPlan, ordered: Iterator[_Outcome], report: Report) -> None:
    """Take the results in shard order to where they go; nothing appears in a file unless all is well."""
    spec = found.spec
    limit = ErrorLimit.parse(spec.max_errors)
    if found.parts:
        for outcome in ordered:
            _take(report, outcome)
            if limit.exceeded(report.counts, final=False):
                break
        _check(limit, report)
        return
    with storage.open_write(spec.output, owner=found.job) as stream:
        packer = compress(stream, row_codec(spec.output))
        sink = _aggregate_sink(found, packer.write) if found.request.aggregate else _row_sink(found, packer.write)
        for outcome in ordered:
            _take(report, outcome)
            if outcome.result is None or limit.exceeded(report.counts, final=False):
                break
            sink.add(outcome.result)
        _check(limit, report)
        if report.succeeded:
            sink.finish()
            packer.finish()
            stream.commit()
        else:
            stream.abort()
        report.counts.written_bytes = stream.bytes_written


def _take(report: Report, outcome: _Outcome) -> None:
    if outcome.result is not None:
        report.shards_done += 1
        report.counts.merge(outcome.result.counts)
    elif outcome.error is not None:
        report.failures.append(Failure.of(outcome.task.index, outcome.task.label, outcome.error))


def _check(limit: ErrorLimit, report: Report) -> None:
    if limit.exceeded(report.counts, final=not report.failures):
        report.notes.append(limit.message(report.counts))
        report.failures.append(Failure(-1, "the whole job", report.notes[-1]))


def _told(outcomes: Iterator[_Outcome], listener: Listener) -> Iterator[_Outcome]:
    """Tell the listener of each outcome when it comes, whenever its turn is."""
    for outcome in outcomes:
        if outcome.result is not None:
            counts = outcome.result.counts
            listener.finished(outcome.task.index, counts.read, counts.read_bytes, counts.written_bytes)
        elif outcome.error is not None:
            listener.failed(outcome.task.label, outcome.error)
        yield outcome


def in_order(outcomes: Iterator[_Outcome], spool: str = "", waiting_bytes: int = WAITING_BYTES) -> Iterator[_Outcome]:
    """Yield outcomes by the index of their task, each as soon as all before it were there.

    Args:
        outcomes: in any order.
        spool: folder URL for results that wait, once `waiting_bytes` of them are in memory; "" keeps them there.
        waiting_bytes: see there.
    """
    waiting: dict[int, _Outcome] = {}
    held = turn = 0
    for outcome in outcomes:
        done = outcome.result
        if done is not None and done.payload and outcome.task.index != turn:
            if spool and held + len(done.payload) > waiting_bytes:
                part = f"{spool}waiting-{done.index:07d}"
                storage.write_bytes(part, done.payload)
                done = ExtractDone(done.index, done.counts, b"", part)
                outcome = Outcome(outcome.task, done, None, outcome.attempts, outcome.worker)
            held += len(done.payload)
        waiting[outcome.task.index] = outcome
        while turn in waiting:
            ready = waiting.pop(turn)
            if ready is not outcome and ready.result is not None:
                held -= len(ready.result.payload)
            turn += 1
            yield ready
    # only what ended before its turn would come leaves any: what failed is told
    yield from (waiting[index] for index in sorted(waiting) if waiting[index].error is not None)


# ---- where results go -------------------------------------------------------------------------------------------


@valueclass(frozen=False)
class _Sink:
    """Takes the results of shards, in order."""

    add: Callable[[ExtractDone], None]
    finish: Callable[[], None]


def _row_sink(found: ExtractPlan, write: Callable[[bytes], Any]) -> _Sink:
    if found.spec.format == "parquet":
        from tarmill.jobs.parquet import BlockReader, ParquetRows

        rows = ParquetRows(found.request.columns, write)
        return _Sink(lambda done: rows.add_stream(io.BufferedReader(BlockReader(_blocks(done)))), rows.finish)
    EncodedRows(found.spec.format, found.request.names, write, header=True)

    def add(done: ExtractDone) -> None:
        for block in _blocks(done):
            write(block)

    return _Sink(add, lambda: None)


def _aggregate_sink(found: ExtractPlan, write: Callable[[bytes], Any]) -> _Sink:
    from tarmill.planning.aggregates import make_aggregate

    spec, request = found.spec, found.request
    whole = make_aggregate(request.aggregate, request.names, spec.top)

    def add(done: ExtractDone) -> None:
        part = make_aggregate(request.aggregate, request.names, spec.top)
        part.load(json.loads(b"".join(_blocks(done))))
        whole.merge(part)

    return _Sink(add, lambda: write(encode_table(whole.result(), spec.format, request.aggregate)))


def encode_table(table: Table, name: str, aggregate: str) -> bytes:
    """Encode the result of an aggregate as rows.

    As text, statistics stand with one line for each and a column for each column, and keys have a line with names.
    """
    names, rows = list(table.names), [list(row) for row in table.rows]
    if name == "text" and aggregate == "stats":
        names, *rows = [list(line) for line in zip(names, *rows, strict=True)]
    encoder = row_encoder(name, names)
    head = encoder.encode([names]) if name == "text" and aggregate in ("stats", "keys") else encoder.header()
    return head + encoder.encode(rows)


def _blocks(done: ExtractDone) -> Iterator[bytes]:
    """Give what a shard sent, and remove it from where it waited."""
    if not done.part:
        if done.payload:
            yield done.payload
        return
    with storage.open_read(done.part) as stream:
        while block := stream.read(_BLOCK_BYTES):
            yield block
    storage.delete(done.part)


@contextmanager
def _spool_folder(found: ExtractPlan, options: RunOptions, settings: storage.StorageSettings) -> Iterator[str]:
    """Give the folder where rows wait that are too many to be sent, "" for none; it is gone afterwards.

    On this machine that is scratch; workers elsewhere share only the place of the output, or a `--scratch-dir`.
    """
    if found.parts:
        yield ""
        return
    if options.scheduler and found.spec.output != "-":
        folder = ShardPattern.parse(found.spec.output).folder
        state = f"{folder}_tarmill/{found.job}/"
        try:
            yield state
        finally:
            for index in range(len(found.shards)):
                with suppress(StorageError):
                    storage.delete(f"{state}rows-{index:07d}")
            if storage.scheme_of(state) == "file":
                for name in (state, f"{folder}_tarmill"):
                    with suppress(OSError):
                        os.rmdir(name.removeprefix("file://"))
        return
    if options.scheduler and not settings.scratch_dir:
        yield ""
        return
    local = os.path.abspath(_private_folder(settings.scratch_dir))
    try:
        yield local + "/"
    finally:
        _remove_folder(local)


def _private_folder(parent: str | None) -> str:
    """Make a folder that nobody else may read, as `tempfile.mkdtemp` does, whose import costs more than the work."""
    folder = os.path.join(parent or os.environ.get("TMPDIR") or "/tmp", f"tarmill-rows-{os.urandom(8).hex()}")
    try:
        os.mkdir(folder, 0o700)
    except OSError:
        if parent:
            raise
        import tempfile  # knows of more places

        return tempfile.mkdtemp(prefix="tarmill-rows-")
    return folder


def _remove_folder(folder: str) -> None:
    try:
        os.rmdir(folder)
    except OSError:  # rows are left in it
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


def _describe(found: ExtractPlan, total: int | None) -> list[str]:
    size = "an unknown size" if total is None else f"{total / 1e6:,.1f} MB"
    spec, request = found.spec, found.request
    what = f"--{request.aggregate}" + (f" of {', '.join(request.names)}" if request.names else "")
    lines = [f"job {found.job}: {len(found.shards)} shards, {size}"]
    lines.append(f"rows:  {', '.join(request.names)}" if not request.aggregate else f"result: {what}")
    if spec.where:
        lines.append(f"where: {spec.where}")
    reads = request.read_options(spec)
    lines.append(f"reads: {', '.join(sorted(reads.load or ())) or 'no contents, only headers'}")
    lines.append(f"to:    {storage.mask(found.parts[0] if found.parts else spec.output)}")
    return lines


def _verdict(report: Report) -> str:
    if report.counts.missing:
        return f"{report.counts.missing} samples are unaccounted for: this is a fault in tarmill, please report it"
    failed = sum(1 for item in report.failures if item.index >= 0)
    first = report.failures[0].message if report.failures else "not all shards were done"
    return f"{failed} of {report.shards_total} shards failed; the first: {first}" if failed else first
