"""`tarmill verify`: a data set read again, and held against its manifest or against the data set it was made of.

What is compared with the manifest: that each shard is there and is a whole tar, its size, the hash of its bytes, its
counts, and the digests of its samples. What is compared with another data set: count and multiset hash of the samples,
so that order and cuts do not matter; where they differ, `verify_compare` finds the samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from tarmill import storage
from tarmill.engine.base import Engine
from tarmill.engine.serial import serial_engine
from tarmill.errors import NotFoundError, StorageError, TarmillError, UsageError
from tarmill.formats.keys import key_function as check_key_function
from tarmill.jobs.drive import choose_engine, from_anywhere, probe_workers, run_tasks, settings_of
from tarmill.jobs.inputs import total_bytes
from tarmill.jobs.listener import Listener
from tarmill.jobs.manifests import in_parallel
from tarmill.jobs.report import Report
from tarmill.jobs.verify_compare import Difference, find_differences
from tarmill.jobs.verify_data import DataSet, Entry, Fault, Totals, as_source, find_data_set
from tarmill.jobs.verify_shard import ShardFound, VerifyTask, read_shard
from tarmill.planning.tasks import Shard
from tarmill.spec import RunOptions
from tarmill.values import field, fields, valueclass


@valueclass(frozen=False)
class VerifyReport:
    """What was found."""

    output: DataSet
    source: DataSet | None
    faults: list[Fault] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """How many samples differ, by kind of `verify_compare.KINDS`."""
    differences: list[Difference] = field(default_factory=list)
    """Some of them."""
    notes: list[str] = field(default_factory=list)
    is_permutation: bool | None = None
    """Whether OUT holds just the samples of IN; None where that was not asked or a shard could not be read."""

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return not self.faults and (self.source is None or self.is_permutation is True)

    def to_dict(self) -> dict[str, Any]:
        """Give JSON-able values."""

        def told(data: DataSet) -> dict[str, Any]:
            totals = data.totals()
            sums = {one.name: getattr(totals, one.name) for one in fields(totals)} if totals else {}
            return {"name": data.text, "manifest": data.manifest_url if data.manifest else "", **sums}

        found: dict[str, Any] = {
            "ok": self.ok,
            "output": told(self.output),
            "faults": [{"shard": f.shard, "kind": f.kind, "message": f.message} for f in self.faults],
            "notes": self.notes,
        }
        if self.source is not None:
            found["input"] = told(self.source)
            found["permutation"] = self.is_permutation
            found["differences"] = dict(sorted(self.counts.items()))
            found["examples"] = [
                {"kind": d.kind, "key": d.key, "input_shard": d.source_shard, "output_shard": d.output_shard}
                for d in self.differences
            ]
        return found


def run(
    output: str,
    source: str = "",
    *,
    key_function: str = "base_plus_ext",
    options: RunOptions | None = None,
    listener: Listener | None = None,
) -> VerifyReport:
    """Read a data set again and compare it with its manifest, and with the data set it was made of where that is named.

    Args:
        output: shard pattern, folder, or URL of a manifest.
        source: the same; then the output's manifest is compared only if there is one.
        key_function: as in `ReadOptions`; that of the job that made the output.
        options: where and how it runs.
        listener: is told how it goes.

    Raises:
        UsageError: there is nothing to compare with, or a pattern stands for nothing.
    """
    options, listener = options or RunOptions(), listener or Listener()
    settings = settings_of(options)
    check_key_function(key_function)
    report = VerifyReport(find_data_set(output), as_source(find_data_set(source)) if source else None)
    if report.source is None:
        _need_manifest(report.output)
    sides = [report.source, report.output] if report.source else [report.output]
    for side in sides:
        report.faults += side.faults
        report.notes += side.notes
        report.faults += _look_at(side)
    entries = [
        entry
        for side in sides
        for entry in side.entries
        if entry.stat and (entry.expected or report.source is not None)
    ]
    tasks = _tasks(entries, key_function, settings)
    total = total_bytes(task.shard for task in tasks)
    what = f"{len(tasks)} shards" + ("" if total is None else f", {total / 1e6:,.1f} MB")
    listener.plan(Report("ShardVerify", "", len(tasks)), total, [what])
    engine: Engine = serial_engine()
    if tasks:
        engine = choose_engine(options, len(tasks), sorted({tasks[0].shard.url, tasks[-1].shard.url}))
    with engine:
        if tasks:
            probe_workers(engine, tasks[0].shard, "-")  # nothing is written, so that no folder needs a look
        report.faults += _read_all(engine, tasks, entries, listener)
        _compare_sums(report.output, report.faults)
        if report.source:
            _compare_sides(report, report.source, engine, listener, key_function, settings)
    return report


def _look_at(data: DataSet) -> Iterator[Fault]:
    """Look at all shards, and tell of those that are not there, or should not be."""

    def look(entry: Entry) -> storage.Stat | StorageError:
        try:
            return storage.stat(entry.url)
        except StorageError as error:
            return error

    for entry, seen in zip(data.entries, in_parallel(look, data.entries), strict=True):
        if not isinstance(seen, StorageError):
            entry.stat = seen
            if data.manifest is not None and entry.expected is None:
                yield data.extra(entry.url)
        elif isinstance(seen, NotFoundError):
            yield Fault(entry.label, "missing", f"{entry.label} is not there")
        else:
            yield Fault(entry.label, "unreadable", f"{entry.label} cannot be read: {seen.message}")


def _tasks(entries: Sequence[Entry], key_function: str, settings: Any) -> list[VerifyTask]:
    tasks = []
    for number, entry in enumerate(entries):
        assert entry.stat is not None
        known = entry.expected.content_hash if entry.expected else ""
        shard = Shard(from_anywhere(entry.url), entry.label, entry.stat.size_bytes, entry.stat.version, known)
        tasks.append(VerifyTask(number, shard, key_function, settings))
    return tasks


def _read_all(
    engine: Engine, tasks: Sequence[VerifyTask], entries: Sequence[Entry], listener: Listener
) -> Iterator[Fault]:
    """Read every shard, and then tell what is wrong with them, in order."""
    unread: dict[int, Fault] = {}
    with closing(run_tasks(engine, read_shard, tasks, listener)) as outcomes:  # type: ignore[type-var]
        for outcome in outcomes:
            number, found = outcome.task.index, outcome.result
            if found is not None:
                entries[number].found = found
                listener.finished(number, found.samples, found.size_bytes, 0)
            elif outcome.error is not None:
                told = f"{outcome.task.label} cannot be read: {outcome.error.message}"
                unread[number] = Fault(outcome.task.label, "unreadable", told)
    for number, entry in enumerate(entries):
        if number in unread:
            yield unread[number]
        elif entry.found is not None:
            yield from _faults_of(entry, entry.found)


# ---- held against the manifest ----------------------------------------------------------------------------------


def _faults_of(entry: Entry, found: ShardFound) -> Iterator[Fault]:
    """Tell how a shard that was read differs from what the manifest says of it (pure)."""
    label, expected = entry.label, entry.expected
    if expected is not None:
        if found.size_bytes != expected.size_bytes:
            told = f"{label} has {found.size_bytes:,} bytes; the manifest says {expected.size_bytes:,}"
            yield Fault(label, "size", told)
        elif expected.content_hash not in ("", found.content_hash):
            told = f"{label}: its bytes have the hash {found.content_hash}; the manifest says {expected.content_hash}"
            yield Fault(label, "hash", told)
    if found.error:
        yield Fault(label, found.reason, found.error)
    elif expected is not None:
        # a job that copies samples as they lie does not look into them: 0 members, and no digest of a shard
        for kind in ("samples", "members") if expected.members else ("samples",):
            if getattr(found, kind) != getattr(expected, kind):
                told = f"{label} has {getattr(found, kind):,} {kind}; the manifest says {getattr(expected, kind):,}"
                yield Fault(label, kind, told)
        if expected.digest not in ("", found.digest):
            told = f"{label}: its samples have the digest {found.digest}; the manifest says {expected.digest}"
            yield Fault(label, "digest", told)


def _compare_sums(data: DataSet, faults: list[Fault]) -> None:
    """Hold the sums against the manifest, where every shard that it lists could be read."""
    if data.manifest is None:
        return
    totals = Totals.of(entry for entry in data.entries if entry.expected)
    if totals is None:
        return
    as_written = not faults and all(entry.expected.content_hash for entry in data.entries if entry.expected)
    told_already = {fault.kind for fault in faults}
    for kind in ("samples", "members", "digest"):
        value, known = getattr(totals, kind), data.manifest[kind]
        if value == known or kind in told_already:
            continue
        if kind != "digest":
            told = f"all shards together have {value:,} {kind}; {data.manifest_url} says {known}"
        else:
            told = f"all samples together have the digest {value}; {data.manifest_url} says {known}"
            if as_written:
                told += (
                    "; every byte is as it was written, so that names were split into key and field in another way "
                    "then: give the --key-function of that job"
                )
        faults.append(Fault("", kind, told))


def _need_manifest(data: DataSet) -> None:
    if data.manifest is not None:
        return
    if data.ambiguous:
        raise UsageError(
            f"{data.text} could be checked against {', '.join(data.ambiguous)}; name one of these instead",
            url=data.ambiguous[0],
        )
    raise UsageError(
        f"{data.text} has no manifest to be checked against: {data.manifest_url} is not there. Without one, "
        "`tarmill verify IN OUT` compares with the data set it was made of, and `tarmill index` reads it and gives "
        "counts and digests",
        url=data.manifest_url,
    )


# ---- held against another data set ------------------------------------------------------------------------------


def _compare_sides(
    report: VerifyReport, source: DataSet, engine: Engine, listener: Listener, key_function: str, settings: Any
) -> None:
    """Find out whether both sides hold the same samples; if not, how they differ."""
    ours, theirs = source.totals(), report.output.totals()
    if ours is None or theirs is None:
        report.notes.append("samples were not compared, since not every shard could be read")
        return
    report.is_permutation = (ours.samples, ours.digest) == (theirs.samples, theirs.digest)
    if report.is_permutation:
        return
    entries = [entry for side in (source, report.output) for entry in side.entries if entry.named]
    tasks = _tasks(entries, key_function, settings)
    samples = ours.samples + theirs.samples
    try:
        report.differences += find_differences(engine, listener, tasks, ours.shards, samples, report.counts)
    except TarmillError as error:
        report.notes.append(f"which samples differ could not be found: {error.message}")


def told_by_manifest(data: DataSet) -> str:
    """Tell what a data set's manifest counts that explains other samples than its input's; "" for nothing."""
    counts = (data.manifest or {}).get("counts")
    if not isinstance(counts, dict):
        return ""
    words = {"dropped": "dropped samples", "added": "added samples", "renamed": "renamed keys"}
    told = [f"{number:,} {word}" for name, word in words.items() if (number := _number(counts.get(name)))]
    return f"the manifest of OUT tells of {', '.join(told)}" if told else ""


def _number(value: Any) -> int:
    """Read a count, or counts by reason."""
    if isinstance(value, dict):
        return sum(map(_number, value.values()))
    return value if isinstance(value, int) else 0
