"""One shard through the user's script, in a worker: the function that engines run, and its hot loop."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from itertools import islice
from typing import Any

from tarmill import storage
from tarmill.engine.meter import Meter, current
from tarmill.errors import FormatError, ScriptError, StorageError, TarmillError
from tarmill.formats.samples import OnError, ReadOptions, Record, Rejection, Tally
from tarmill.formats.tar_write import TarSink, check_key
from tarmill.jobs.inputs import name_in
from tarmill.jobs.manifests import rejected_part, save_shard
from tarmill.jobs.script import Script, batch_key_of, batch_results, failure, key_of, prepared, results_of
from tarmill.jobs.shard_io import ShardOutput, open_samples
from tarmill.planning.counts import Counts
from tarmill.planning.tasks import MapTask, ShardDone
from tarmill.spec import MapSpec
from tarmill.values import field, valueclass


def map_shard(task: MapTask) -> ShardDone:
    """Map one shard and commit its output; the function that engines run.

    Raises:
        FormatError, ScriptError: a bad sample under `--on-error fail`; the output does not appear.
        StorageError: reading or writing failed for good.
    """
    storage.configure(task.settings)
    spec, meter = task.spec, current()
    folder = task.state[: -len(f"_tarmill/{task.job}/")] if task.state else ""
    with (
        ShardOutput(task.output, name_in(folder, task.output), task.job, spec.level, meter) as output,
        redirect_stdout(sys.stderr),  # what a script prints must not mix with data on standard output
    ):
        run = ShardMap(prepared(spec.script, spec.script_name, spec.params), spec, task.shard.label, meter)
        with open_samples(task.shard, read_options(spec), run.tally, meter, verify=not spec.limit) as samples:
            run.map(islice(samples, spec.limit) if spec.limit else samples, output.sink)
            samples.close()  # type: ignore[attr-defined]  # a generator: its counts are complete when it has ended
        committed = output.commit()
    counts = run.counts
    counts.add_tally(run.tally)
    counts.written = committed.samples
    counts.read_bytes, counts.written_bytes = meter.read_bytes, committed.size_bytes
    # Kept in the job's folder also when nobody asks for them: a later run of the job may.
    place = rejected_part(task.state, task.index) if task.state else spec.rejected
    if place and (run.rejected or not task.state):
        lines = "".join(json.dumps(line) + "\n" for line in run.rejected)
        storage.write_bytes(place, lines.encode(), owner=task.job)
    done = ShardDone(task.index, counts, committed, len(run.rejected))
    if task.state:
        save_shard(task.state, done, task.job)
    return done


def try_first_sample(script: Script, task: MapTask) -> None:
    """Run the script on one sample in this process, so that nonsense is told before any worker starts.

    Scripts with a `setup` (a model, a GPU) and standard input are left to the workers, and so is a shard that cannot be
    read: it is one of many.
    """
    if script.process_sample is None or script.setup is not None or task.shard.url == "-":
        return
    run = ShardMap(script, task.spec, task.shard.label, Meter())
    with redirect_stdout(sys.stderr):
        try:
            with open_samples(task.shard, read_options(task.spec), run.tally, run.meter, verify=False) as samples:
                first = list(islice(samples, 1))
        except (FormatError, StorageError):
            return
        run.map(iter(first), TarSink(lambda block: None))


def read_options(spec: MapSpec) -> ReadOptions:
    """Give the reader's options that a spec asks for."""
    load = frozenset(spec.fields) if spec.fields and not spec.keep_rest else None
    return ReadOptions(spec.key_function, load, False, spec.on_error, spec.max_member)


@valueclass(frozen=False)
class ShardMap:
    """The samples of one shard through one script: the hot loop, and what it does seldom."""

    script: Script
    spec: MapSpec
    shard: str
    meter: Meter
    counts: Counts = field(default_factory=Counts)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False

    def __post_init__(self) -> None:
        self.tally = Tally(on_rejection=self._note_rejection)

    def map(self, samples: Iterator[Record], sink: TarSink) -> None:
        """Send all samples through the script into the sink."""
        if self.script.process_samples is not None:
            self._map_stream(self.script.process_samples, samples, sink)
        else:
            assert self.script.process_sample is not None
            self._map_each(self.script.process_sample, samples, sink)

    def _map_each(self, process: Callable[[Record], Any], samples: Iterator[Record], sink: TarSink) -> None:
        meter, add, name = self.meter, sink.add, self.script.name
        keys_fit = self.spec.key_function == "base_plus_ext"
        keep_input = self.spec.on_error == OnError.IGNORE
        if self.spec.keep_rest:
            process = _with_rest(process, frozenset(self.spec.fields), name)
        for count, record in enumerate(samples, 1):
            key = meter.key = record["__key__"]
            meter.samples = count
            source = dict(record) if keep_input else record
            fault: ScriptError
            try:
                result = process(record)
                if result.__class__ is not dict:
                    result = results_of(result, name, key)
            except ScriptError as error:
                fault = error
            except (Exception, SystemExit) as error:
                fault = failure(name, "process_sample failed", error, key, self.shard)
            else:
                try:
                    if result.__class__ is not dict:
                        self._add_results(result, key, sink)
                    elif keys_fit and result.get("__key__", key) is key and result.get("key", key) is key:
                        add(result, key)
                    else:
                        self._add_results([result], key, sink)
                    continue
                except ScriptError as error:
                    fault = error
                except (TypeError, ValueError, BufferError) as error:  # a value without bytes: a released memoryview
                    fault = failure(name, "its result failed", error, key, self.shard)
            self._reject(fault, source, key, sink)
            if self.stopped:
                break
        if self.stopped:
            left = sum(1 for _ in samples)
            self.counts.dropped["after-stop"] += left
            meter.samples += left

    def _add_results(self, results: list[Record], key: str, sink: TarSink) -> None:
        found = [(record, key_of(record, key, self.script.name)) for record in results]
        sink.add_all(found)
        if not found:
            self.counts.dropped["by-script"] += 1
        self.counts.added += max(0, len(found) - 1)

    def _map_stream(self, process: Callable[[Iterator[Record]], Any], samples: Iterator[Record], sink: TarSink) -> None:
        """Hand the whole shard to a generator; what it fails on cannot be told, so any exception fails the shard."""
        meter, name = self.meter, self.script.name
        keys: dict[int, str] = {}  # the keys that were handed out, by identity: tells which of two names was changed
        fault: Exception | None = None

        def stream() -> Iterator[Record]:
            nonlocal fault
            try:
                for record in samples:
                    key = meter.key = record["__key__"]
                    keys[id(key)] = key
                    meter.samples += 1
                    yield record
            except Exception as error:
                fault = error  # a script that catches everything must not hide it
                raise

        try:
            for result in batch_results(process(stream()), name):
                for record in results_of(result, name, meter.key, "process_samples"):
                    sink.add(record, batch_key_of(record, keys, name, meter.key))
        except ScriptError as error:
            raise fault or self._placed(error) from None
        except (Exception, SystemExit) as error:
            if fault is None and isinstance(error, TarmillError):
                raise
            raise fault or failure(name, "process_samples failed", error, meter.key, self.shard) from None
        if fault is not None:
            raise fault
        for _ in samples:
            meter.samples += 1  # a script that stops early has dropped the rest; it is read, to know that it is whole
        handed = meter.samples
        if sink.samples < handed:
            self.counts.dropped["by-script"] += handed - sink.samples
        self.counts.added += max(0, sink.samples - handed)

    def _reject(self, error: ScriptError, source: Record, key: str, sink: TarSink) -> None:
        """Treat a sample that the script failed on as the policy says."""
        policy = self.spec.on_error
        if policy == OnError.FAIL:
            raise self._placed(error)
        if policy == OnError.IGNORE:
            check_key(key)
            sink.add(source, key)
            self.counts.kept_damaged[error.reason] += 1
        else:
            self.counts.dropped[error.reason] += 1
            self.stopped = policy == OnError.STOP
        trace = error.facts.get("script_traceback", "")
        self.rejected.append(self._line(key, error.reason, error.message, policy == OnError.IGNORE, trace))

    def _placed(self, error: ScriptError) -> ScriptError:
        """Name the shard in an error of code that does not know it."""
        if error.facts.get("shard"):
            return error
        return ScriptError(f"{self.shard}: {error.message}", **{**error.facts, "shard": self.shard})

    def _note_rejection(self, rejection: Rejection) -> None:
        self.rejected.append(self._line(rejection.key, rejection.reason, rejection.message, rejection.kept, ""))

    def _line(self, key: str, reason: str, message: str, kept: bool, trace: str) -> dict[str, Any]:
        line = {"shard": self.shard, "key": key, "reason": reason, "message": message, "kept": kept}
        return line | {"traceback": trace} if trace else line


def _with_rest(process: Callable[[Record], Any], fields: frozenset[str], name: str) -> Callable[[Record], Any]:
    """Show a script only some fields, and join the others to what it returns."""
    shown = fields | {"__key__", "__url__"}

    def call(record: Record) -> Any:
        key = record["__key__"]
        rest = {field: value for field, value in record.items() if field not in shown and value is not key}
        seen = {field: value for field, value in record.items() if field in shown}
        result = process({**seen, "key": record["key"] if "key" in fields else key})
        joined = [_joined(rest, item, key, name) for item in results_of(result, name, key)]
        return joined[0] if isinstance(result, dict) else joined

    return call


def _joined(rest: Record, result: Record, key: str, name: str) -> Record:
    """Add the fields that the script did not see; one that is named "key" must not be taken for the key's alias."""
    if "key" in rest and isinstance(result.get("key"), str):
        result = {**result, "__key__": key_of(result, key, name)}
        del result["key"]
    return rest | result
