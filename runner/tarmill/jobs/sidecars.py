"""`tarmill index`: look at existing shards, and write beside them the small files that other readers begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

from tarmill import storage
from tarmill.errors import JobFailed, SpecError, TarmillError
from tarmill.formats import sidecars
from tarmill.formats.shards import ShardPattern
from tarmill.formats.sidecar_names import SIDECARS
from tarmill.formats.sidecars import ShardFacts
from tarmill.jobs.drive import choose_engine, from_anywhere, probe_workers, run_tasks, settings_of
from tarmill.jobs.inputs import find_shards, total_bytes
from tarmill.jobs.listener import Listener
from tarmill.jobs.report import Report
from tarmill.jobs.sidecar_places import Places, bytes_at, places_for
from tarmill.jobs.sidecar_shard import IndexTask, ShardSummary, look_at_shard
from tarmill.planning.tasks import Shard
from tarmill.spec import RunOptions
from tarmill.values import field, replace, valueclass

_OWNER = "index"


@valueclass(frozen=False)
class IndexReport:
    """What was found and written, shards in order."""

    names: list[str]
    """Relative to the data set's folder."""
    shards: list[ShardSummary]
    written: list[str] = field(default_factory=list)
    """URLs of the files that stand for the whole data set, and how many stand beside each shard."""


def run(
    pattern: str, write: Sequence[str] = (), options: RunOptions | None = None, listener: Listener | None = None
) -> IndexReport:
    """Summarise every shard of a pattern, and write the files that are asked for beside them.

    Files of one shard are written as it is done, those of the whole data set when every shard is.

    Args:
        pattern: the shards.
        write: names of `sidecar_names.SIDECARS`.
        options: where and how it runs.
        listener: is told how it goes.

    Raises:
        SpecError: what is asked for cannot be written for these shards.
        JobFailed: a shard failed; nothing is written for the data set.
    """
    options, listener = options or RunOptions(), listener or Listener()
    settings = settings_of(options)
    if unknown := sorted(set(write) - set(SIDECARS)):
        raise SpecError(
            f"--write has {unknown[0]!r}; expected some of {', '.join(SIDECARS)}", field="write", value=unknown
        )
    parsed = ShardPattern.parse(pattern)
    shards = find_shards(parsed)
    places = places_for([shard.url for shard in shards], parsed.stem, write)
    tasks = index_tasks(places, shards, settings, _OWNER)
    total = total_bytes(shards)
    what = f"{len(shards)} shards" + ("" if total is None else f", {total / 1e6:,.1f} MB")
    listener.plan(Report("ShardIndex", "", len(shards)), total, [what])
    found, failed = look_at_shards(tasks, places.folder, options, listener)
    if failed:
        raise JobFailed(
            f"{len(failed)} of {len(tasks)} shards failed, so nothing was written for the data set; the first: "
            f"{failed[0].message}"
        )
    summaries = [found[number] for number in range(len(shards))]
    report = IndexReport(list(places.names), summaries)
    if places.wanted:
        facts = [
            ShardFacts(name, one.samples, one.size_bytes, one.md5)
            for name, one in zip(places.names, summaries, strict=True)
        ]
        write_for_data_set(places, facts, _OWNER)
        report.written = list(places.told())
    return report


# ---- what the jobs that write shards do too --------------------------------------------------------------------------


def index_tasks(
    places: Places, shards: Sequence[Shard], settings: storage.StorageSettings, owner: str, state: str = ""
) -> list[IndexTask]:
    """Give the tasks that look at shards and write what lies beside each.

    Args:
        places: of the files.
        shards: in the order of `places`.
        settings: for the workers.
        owner: of temp files.
        state: folder of the job that wants to know later what is done; "" for none.
    """
    tasks = []
    for number, shard in enumerate(shards):
        beside = {kind: from_anywhere(url) for kind, url in places.beside(number).items()}
        there = replace(shard, url=from_anywhere(shard.url))
        energon, dali = beside.get("energon", ""), beside.get("dali", "")
        tasks.append(IndexTask(number, there, places.wanted, energon, dali, owner, from_anywhere(state), settings))
    return tasks


def look_at_shards(
    tasks: Sequence[IndexTask], folder: str, options: RunOptions, listener: Listener
) -> tuple[Mapping[int, ShardSummary], list[TarmillError]]:
    """Run tasks; give what was found by their numbers, and the errors of those that failed."""
    found: dict[int, ShardSummary] = {}
    failed: list[TarmillError] = []
    with (
        choose_engine(options, len(tasks), [tasks[0].shard.url, folder or "./"]) as engine,
        closing(run_tasks(engine, look_at_shard, tasks, listener)) as outcomes,  # type: ignore[type-var]
    ):
        if tasks[0].shard.url != "-":
            probe_workers(engine, tasks[0].shard, from_anywhere(folder or "./"))
        for outcome in outcomes:
            if outcome.result is not None:
                found[outcome.task.index] = outcome.result
                listener.finished(outcome.task.index, outcome.result.samples, outcome.result.size_bytes, 0)
            elif outcome.error is not None:
                failed.append(outcome.error)
                listener.failed(outcome.task.label, outcome.error)
    return found, failed


def write_for_data_set(places: Places, facts: Sequence[ShardFacts], owner: str) -> None:
    """Write the files that stand for the whole data set; those of a folder, which exist, are brought up to date.

    Args:
        places: of the files.
        facts: of every shard, in order.
        owner: of temp files.
    """
    for kind, url in places.of_data_set().items():
        known = bytes_at(url) if kind != "wids" else None
        storage.write_bytes(url, sidecars.data_set_file(kind, places.stem, facts, known), owner=owner)
