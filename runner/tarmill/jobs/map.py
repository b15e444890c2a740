"""htmapper: every sample through the user's script, input shard i to output shard i."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tarmill import storage
from tarmill.engine.meter import Meter, current
from tarmill.errors import Interrupted, JobFailed, ScriptError, SpecError, TarmillError
from tarmill.formats.compression import codec_for
from tarmill.formats.digest import to_hex
from tarmill.formats.samples import OnError, ReadOptions, Record, Rejection, Tally
from tarmill.formats.shards import ShardPattern
from tarmill.formats.tar_write import TarSink
from tarmill.jobs.drive import choose_engine, probe_workers, run_tasks, settings_of
from tarmill.jobs.inputs import find_shards, manifest_url
from tarmill.jobs.listener import Listener
from tarmill.jobs.manifests import JobFolder, in_parallel, publish, refuse_existing, rejected_part, save_shard
from tarmill.jobs.report import Failure, Report
from tarmill.jobs.script import Script, failure, key_of, load, prepared, results_of
from tarmill.jobs.shard_io import ShardOutput, open_samples
from tarmill.planning.counts import Counts
from tarmill.planning.jobid import job_id
from tarmill.planning.tasks import MapTask, Shard, ShardDone
from tarmill.spec import MapSpec, RunOptions

_KIND = "ShardMap"


# ---- one shard, in a worker -------------------------------------------------------------------------------------


def map_shard(task: MapTask) -> ShardDone:
    """Map one shard and commit its output; the function that engines run.

    Raises:
        FormatError, ScriptError: a bad sample under `--on-error fail`; the output does not appear.
        StorageError: reading or writing failed for good.
    """
    storage.configure(task.settings)
    spec, meter = task.spec, current()
    script = prepared(spec.script, spec.script_name, spec.params)
    run = _ShardMap(script, spec, task.shard.label, meter)
    folder = task.state[: -len(f"_tarmill/{task.job}/")] if task.state else ""
    with (
        ShardOutput(task.output, task.output.removeprefix(folder), task.job, spec.level, meter) as output,
        open_samples(task.shard, read_options(spec), run.tally, meter, verify=not spec.limit) as samples,
    ):
        run.map(islice(samples, spec.limit) if spec.limit else samples, output.sink)
        samples.close()  # type: ignore[attr-defined]  # a generator: its counts are complete when it has ended
        committed = output.commit()
    counts = run.counts
    counts.add_tally(run.tally)
    counts.written = committed.samples
    counts.read_bytes, counts.written_bytes = meter.read_bytes, committed.size_bytes
    if run.rejected and task.state:
        lines = "".join(json.dumps(line) + "\n" for line in run.rejected)
        storage.write_bytes(rejected_part(task.state, task.index), lines.encode(), owner=task.job)
    done = ShardDone(task.index, counts, committed, len(run.rejected))
    if task.state:
        save_shard(task.state, done, task.job)
    return done


def read_options(spec: MapSpec) -> ReadOptions:
    """Give the reader's options that a spec asks for."""
    load = frozenset(spec.fields) if spec.fields and not spec.keep_rest else None
    return ReadOptions(spec.key_function, load, False, spec.on_error, spec.max_member)


@dataclass
class _ShardMap:
    """The samples of one shard through one script: the hot loop, and what it does seldom."""

    script: Script
    spec: MapSpec
    shard: str
    meter: Meter
    counts: Counts = field(default_factory=Counts)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False

    def __post_init__(self) -> None:
        self.tally = Tally(on_rejection=self._note_rejection if self.spec.rejected else None)

    def map(self, samples: Iterator[Record], sink: TarSink) -> None:
        """Send all samples through the script into the sink."""
        if self.script.process_samples is not None:
            self._map_stream(self.script.process_samples, samples, sink)
        else:
            assert self.script.process_sample is not None
            self._map_each(self.script.process_sample, samples, sink)

    def _map_each(self, process: Callable[[Record], Any], samples: Iterator[Record], sink: TarSink) -> None:
        meter, add = self.meter, sink.add
        keys_fit = self.spec.key_function == "base_plus_ext"
        keep_input = self.spec.on_error == OnError.IGNORE
        if self.spec.keep_rest:
            process = _with_rest(process, frozenset(self.spec.fields))
        for record in samples:
            key = meter.key = record["__key__"]
            meter.samples += 1
            if self.stopped:
                self.counts.dropped["after-stop"] += 1
                continue
            source = dict(record) if keep_input else record
            try:
                result = process(record)
                if (
                    result.__class__ is dict
                    and keys_fit
                    and result.get("__key__", key) is key
                    and result.get("key", key) is key
                ):
                    add(result, key)
                else:
                    self._add_results(result, key, sink)
            except ScriptError as error:
                self._reject(error, source, key, sink)
            except TarmillError:
                raise
            except Exception as error:
                fault = failure(self.script.name, "process_sample failed", error, key, self.shard)
                self._reject(fault, source, key, sink)

    def _add_results(self, result: Any, key: str, sink: TarSink) -> None:
        name = self.script.name
        found = [(record, key_of(record, key, name)) for record in results_of(result, name, key)]
        sink.add_all(found)
        if not found:
            self.counts.dropped["by-script"] += 1
        self.counts.added += max(0, len(found) - 1)

    def _map_stream(self, process: Callable[[Iterator[Record]], Any], samples: Iterator[Record], sink: TarSink) -> None:
        """Hand the whole shard to a generator; what it fails on cannot be told, so any exception fails the shard."""
        meter, name = self.meter, self.script.name
        handed = 0

        def stream() -> Iterator[Record]:
            nonlocal handed
            for record in samples:
                meter.key = record["__key__"]
                meter.samples += 1
                handed += 1
                yield record

        source = stream()
        try:
            for result in process(source):
                for record in results_of(result, name, meter.key):
                    if not isinstance(record.get("__key__"), str):
                        raise ScriptError(
                            f"{name}: process_samples gave a record without __key__ after sample {meter.key!r} of "
                            f"{self.shard}; expected the str under which it is stored",
                            script=name,
                            key=meter.key,
                        )
                    sink.add_all([(record, key_of(record, record["__key__"], name))])
        except TarmillError:
            raise
        except Exception as error:
            raise failure(name, "process_samples failed", error, meter.key, self.shard) from None
        for _ in source:
            pass  # a script that stops early has dropped the rest; it is read all the same, to know that it is whole
        if sink.samples < handed:
            self.counts.dropped["by-script"] += handed - sink.samples
        self.counts.added += max(0, sink.samples - handed)

    def _reject(self, error: ScriptError, source: Record, key: str, sink: TarSink) -> None:
        """Treat a sample that the script failed on as the policy says."""
        policy = self.spec.on_error
        if policy == OnError.FAIL:
            raise error
        if policy == OnError.IGNORE:
            sink.add(source, key)
            self.counts.kept_damaged[error.reason] += 1
        else:
            self.counts.dropped[error.reason] += 1
            self.stopped = policy == OnError.STOP
        if self.spec.rejected:
            trace = error.facts.get("script_traceback", "")
            self.rejected.append(self._line(key, error.reason, error.message, policy == OnError.IGNORE, trace))

    def _note_rejection(self, rejection: Rejection) -> None:
        self.rejected.append(self._line(rejection.key, rejection.reason, rejection.message, rejection.kept, ""))

    def _line(self, key: str, reason: str, message: str, kept: bool, trace: str) -> dict[str, Any]:
        line = {"shard": self.shard, "key": key, "reason": reason, "message": message, "kept": kept}
        return line | {"traceback": trace} if trace else line


def _with_rest(process: Callable[[Record], Any], fields: frozenset[str]) -> Callable[[Record], Any]:
    """Show a script only some fields, and join the others to what it returns."""
    shown = fields | {"__key__", "__url__", "key"}

    def call(record: Record) -> Any:
        rest = {name: value for name, value in record.items() if name not in shown}
        result = process({name: value for name, value in record.items() if name in shown})
        if result is None:
            return None
        if isinstance(result, dict):
            return rest | result
        return [rest | item if isinstance(item, dict) else item for item in results_of(result, "script", "")]

    return call


# ---- the whole job, in the driver -------------------------------------------------------------------------------


@dataclass
class MapPlan:
    """All that is decided before the first task runs."""

    spec: MapSpec
    shards: list[Shard]
    outputs: list[str]
    job: str
    folder: JobFolder | None
    manifest: str
    finished: dict[int, ShardDone] = field(default_factory=dict)

    def tasks(self, settings: storage.StorageSettings) -> list[MapTask]:
        """Give the tasks that are left to do."""
        state = self.folder.url if self.folder else ""
        return [
            MapTask(index, shard, output, self.spec, self.job, state, settings)
            for index, (shard, output) in enumerate(zip(self.shards, self.outputs, strict=True))
            if index not in self.finished
        ]


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
    if outputs == ["-"]:
        return MapPlan(spec, shards, outputs, job, None, "")
    if clash := {shard.url for shard in shards} & set(outputs):
        raise SpecError(
            f"{storage.mask(min(clash))} is both input and output; expected other names for the outputs",
            field="output",
            value=storage.mask(spec.output),
        )
    folder = JobFolder(out_pattern.folder, job)
    found = MapPlan(spec, shards, outputs, job, folder, manifest_url(out_pattern))
    begun = folder.has_begun()
    if spec.exists == "fail" or (spec.exists == "resume" and not begun):
        refuse_existing(outputs, job)
    if spec.exists == "resume" and begun:
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
    for url in outputs[:1]:
        if url != "-":
            codec_for(url)
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
    script = load(spec.script, spec.script_name)
    found = plan(spec)
    report = Report(_KIND, found.job, len(found.shards), storage.mask(spec.output), storage.mask(found.manifest))
    for done in found.finished.values():
        _take(report, done)
    report.shards_resumed = report.shards_done
    tasks = found.tasks(settings)
    sizes = [task.shard.size_bytes for task in tasks]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    listener.plan(report, total, _describe(found, tasks, total))
    if options.dry_run:
        report.plan_only = True
        return report
    if tasks:
        _try_first_sample(script, tasks[0])
        _run_tasks(found, tasks, options, listener, report)
    report.wall_s = time.monotonic() - started
    _finish(found, report)
    report.wall_s = time.monotonic() - started
    if not report.succeeded:
        raise JobFailed(_verdict(report), report=report)
    return report


def _run_tasks(
    found: MapPlan, tasks: Sequence[MapTask], options: RunOptions, listener: Listener, report: Report
) -> None:
    limit = _error_limit(found.spec.max_errors)
    urls = [found.shards[0].url, found.outputs[0]]
    if found.folder:
        found.folder.begin({"kind": _KIND, "output": storage.mask(found.spec.output), "shards": len(found.shards)})
    try:
        with (
            choose_engine(options, len(tasks), urls) as engine,
            closing(run_tasks(engine, map_shard, tasks, listener)) as outcomes,  # type: ignore[type-var]
        ):
            probe_workers(engine, found.shards[0], ShardPattern.parse(found.spec.output).folder)
            for outcome in outcomes:
                if outcome.result is not None:
                    found.finished[outcome.task.index] = outcome.result
                    counts = outcome.result.counts
                    _take(report, outcome.result)
                    listener.finished(outcome.task.index, counts.read, counts.read_bytes, counts.written_bytes)
                elif outcome.error is not None:
                    trace = outcome.error.facts.get("script_traceback", "")
                    report.failures.append(
                        Failure(outcome.task.index, outcome.task.label, outcome.error.message, trace)
                    )
                    listener.failed(outcome.task.label, outcome.error)
                if limit is not None and report.counts.errors > limit:
                    report.notes.append(_too_many(found.spec.max_errors, report.counts))
                    break
    except Interrupted:
        report.interrupted = True
        raise
    finally:
        if found.folder:
            found.folder.sweep(found.outputs)


def _take(report: Report, done: ShardDone) -> None:
    report.shards_done += 1
    report.counts.merge(done.counts)
    if done.output is not None:
        report.digest = to_hex(int(report.digest or "0", 16) + int(done.output.digest, 16))


def _finish(found: MapPlan, report: Report) -> None:
    """Publish the manifest of a job whose shards are all done, and join what was rejected."""
    share = _error_share(found.spec.max_errors)
    if share is not None and report.counts.errors > share * max(1, report.counts.read) and not report.failures:
        report.notes.append(_too_many(found.spec.max_errors, report.counts))
    if found.spec.rejected and found.folder:
        parts = [
            rejected_part(found.folder.url, index) for index, done in sorted(found.finished.items()) if done.rejected
        ]
        storage.write_bytes(found.spec.rejected, in_parallel(storage.read_bytes, parts), owner=found.job)
    if report.notes:
        report.failures.append(Failure(-1, "the whole job", report.notes[-1]))
    if report.succeeded and found.manifest:
        done = [found.finished[index] for index in range(len(found.shards))]
        publish(found.manifest, _KIND, found.job, done, found.outputs, report.counts)


def _try_first_sample(script: Script, task: MapTask) -> None:
    """Run the script on one sample in this process, so that nonsense is told before any worker starts.

    Scripts with a `setup` (a model, a GPU) and standard input are left to the workers.
    """
    if script.process_sample is None or script.setup is not None or task.shard.url == "-":
        return
    run = _ShardMap(script, task.spec, task.shard.label, Meter())
    with open_samples(task.shard, read_options(task.spec), run.tally, run.meter, verify=False) as samples:
        run.map(islice(samples, 1), TarSink(lambda block: None))


def _describe(found: MapPlan, tasks: Sequence[MapTask], total: int | None) -> list[str]:
    size = "an unknown size" if total is None else f"{total / 1e6:,.1f} MB"
    lines = [
        f"job {found.job}: {len(found.shards)} shards, {len(found.finished)} finished before, {len(tasks)} to do, "
        f"{size}",
        f"first: {found.shards[0].label} -> {storage.mask(found.outputs[0])}",
        f"last:  {found.shards[-1].label} -> {storage.mask(found.outputs[-1])}",
    ]
    return lines + ([f"manifest: {storage.mask(found.manifest)}"] if found.manifest else [])


def _error_limit(text: str) -> int | None:
    return int(text) if text and not text.endswith("%") else None


def _error_share(text: str) -> float | None:
    return float(text[:-1]) / 100 if text.endswith("%") else None


def _too_many(limit: str, counts: Counts) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted((counts.dropped + counts.unread).items()))
    return f"{counts.errors} samples were left out because of errors, more than --max-errors {limit} ({reasons})"


def _verdict(report: Report) -> str:
    if report.counts.missing:
        return f"{report.counts.missing} samples are unaccounted for: this is a fault in tarmill, please report it"
    first = report.failures[0].message if report.failures else "not all shards were done"
    failed = sum(1 for item in report.failures if item.index >= 0)
    return f"{failed} of {report.shards_total} shards failed; the first: {first}"
