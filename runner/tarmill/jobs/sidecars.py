"""`tarmill index`: look at existing shards, and write beside them the small files that other readers begin with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from tarmill import storage
from tarmill.engine.meter import Meter, current
from tarmill.errors import JobFailed, NotFoundError, SpecError
from tarmill.formats import sidecars
from tarmill.formats.compression import decompress
from tarmill.formats.digest import to_hex
from tarmill.formats.index import index_shard
from tarmill.formats.samples import ReadOptions, Tally
from tarmill.formats.shard_grammar import find_regions
from tarmill.formats.shard_tokens import common_start
from tarmill.formats.shards import ShardPattern
from tarmill.formats.sidecars import ShardFacts
from tarmill.jobs.drive import choose_engine, probe_workers, run_tasks, settings_of
from tarmill.jobs.inputs import find_shards, total_bytes
from tarmill.jobs.listener import Listener
from tarmill.jobs.report import Report
from tarmill.jobs.shard_io import open_samples, sample_digests
from tarmill.planning.tasks import Shard
from tarmill.spec import RunOptions

_OWNER = "index"


# ---- one shard, in a worker -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IndexTask:
    """Look at one shard, and write what lies beside it alone."""

    index: int
    shard: Shard
    write: tuple[str, ...]
    """Names of `sidecars.SIDECARS`; () to read everything and give the digest."""
    energon: str
    """URL of energon's index of the shard; "" for none."""
    dali: str
    settings: Any
    """`storage.StorageSettings`, to be put in force in the worker."""

    @property
    def label(self) -> str:
        """What messages call the task."""
        return self.shard.label


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What was found in one shard."""

    samples: int
    members: int
    size_bytes: int
    """Of the file, as it is stored."""
    digest: str = ""
    """Multiset hash of the samples, 32 hex digits, where contents were read."""
    md5: str = ""
    """md5sum of the file, where that was asked for."""


def look_at_shard(task: IndexTask) -> ShardSummary:
    """Summarise one shard and write its own files, each whole or not at all; the function that engines run.

    Raises:
        FormatError: something is wrong with the shard.
        SpecError: what was asked for cannot be written for this shard.
        StorageError: reading or writing failed for good.
    """
    storage.configure(task.settings)
    return _index(task, current()) if task.write else _digest(task.shard, current())


def _digest(shard: Shard, meter: Meter) -> ShardSummary:
    """Read every sample, and compare the whole with the data set's manifest where there is one."""
    tally = Tally()
    with open_samples(shard, ReadOptions(), tally, meter) as samples:
        total = sum(digest for _, digest in sample_digests(samples, meter))
    return ShardSummary(tally.samples, tally.members, shard.size_bytes or meter.read_bytes, to_hex(total))


def _index(task: IndexTask, meter: Meter) -> ShardSummary:
    """Pass over the contents, or through all bytes where their md5 is wanted."""
    label, tally = task.label, Tally()
    dali = sidecars.DaliIndex(label) if task.dali else None
    with storage.open_read(task.shard.url, version=task.shard.version) as stream:
        raw = _Input(stream, meter, "wids" in task.write)
        contents, codec = decompress(raw, label)
        sidecars.refuse_compressed(label, codec, task.write)
        index = index_shard(contents, label, tally=tally, visit=dali.add if dali else None)
        md5 = raw.md5()
        stream.verify()
    meter.samples = len(index)
    if task.energon:
        _write(task.energon, sidecars.energon_index(index, label))
    if dali:
        _write(task.dali, dali.to_bytes())
    return ShardSummary(len(index), index.members, task.shard.size_bytes or meter.read_bytes, md5=md5)


class _Input:
    """A raw input that tells the meter what passed, and sums it up where that is wanted (then it cannot seek)."""

    def __init__(self, stream: storage.ReadStream, meter: Meter, md5: bool) -> None:
        self._stream = stream
        self._meter = meter
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self.seek = stream.seek
        self.tell = stream.tell

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._stream.readinto(buffer) or 0
        self._meter.read_bytes += count
        if self._md5 is not None:
            self._md5.update(buffer[:count])
        return count

    def seekable(self) -> bool:
        return self._md5 is None and self._stream.seekable()

    def md5(self) -> str:
        """Give the md5sum, 32 hex digits, of all that was read: of the whole, since a shard is read to its end."""
        return self._md5.hexdigest() if self._md5 is not None else ""


def _write(url: str, data: bytes) -> None:
    storage.write_bytes(url, data, owner=_OWNER)


# ---- the whole data set, in the driver --------------------------------------------------------------------------


@dataclass
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
        write: names of `sidecars.SIDECARS`.
        options: where and how it runs.
        listener: is told how it goes.

    Raises:
        SpecError: what is asked for cannot be written for these shards.
        JobFailed: a shard failed; nothing is written for the data set.
    """
    options, listener = options or RunOptions(), listener or Listener()
    settings = settings_of(options)
    wanted = tuple(name for name in sidecars.SIDECARS if name in write)
    if unknown := sorted(set(write) - set(wanted)):
        raise SpecError(
            f"--write has {unknown[0]!r}; expected some of {', '.join(sidecars.SIDECARS)}", field="write", value=unknown
        )
    shards = find_shards(ShardPattern.parse(pattern))
    folder, names = place_of([shard.url for shard in shards])
    tasks = [_task(number, shard, wanted, settings) for number, shard in enumerate(shards)]
    if wanted:
        _check(tasks, names, wanted)
    total = total_bytes(shards)
    what = f"{len(shards)} shards" + ("" if total is None else f", {total / 1e6:,.1f} MB")
    listener.plan(Report("ShardIndex", "", len(shards)), total, [what])
    report = IndexReport(names, _run_tasks(tasks, folder, options, listener))
    if wanted:
        facts = [
            ShardFacts(name, found.samples, found.size_bytes, found.md5)
            for name, found in zip(names, report.shards, strict=True)
        ]
        first = shards[0].url[: find_regions(shards[0].url).last]
        for url, data in _data_set_files(facts, ShardPattern.parse(pattern).stem, wanted, folder, first):
            _write(url, data)
            report.written.append(storage.mask(url))
        for name in ("energon", "dali"):
            if name in wanted:
                report.written.append(f"{len(tasks)} files such as {storage.mask(getattr(tasks[0], name))}")
    return report


def place_of(urls: Sequence[str]) -> tuple[str, list[str]]:
    """Find the folder that shards have in common ('/' at its end, or ''), and their names below it (pure).

    Raises:
        SpecError: they have none, being on several hosts or under several roots.
    """
    if list(urls) == ["-"]:
        return "", ["-"]
    zones = [find_regions(url) for url in urls]
    common = common_start([url[: zone.last] for url, zone in zip(urls, zones, strict=True)])
    common = common[: common.rfind("/") + 1]
    names = [url[len(common) : zone.query] for url, zone in zip(urls, zones, strict=True)]
    if len(common) < zones[0].path or any(name.startswith("/") or "://" in name for name in names):
        raise SpecError(
            f"{storage.mask(urls[0])} and {storage.mask(urls[-1])} have no folder in common, relative to which they "
            "could be named; index them one by one",
            field="input",
            value=storage.mask(urls[0]),
        )
    return common, names


def _task(number: int, shard: Shard, wanted: tuple[str, ...], settings: Any) -> IndexTask:
    zone = find_regions(shard.url)
    before, name, query = shard.url[: zone.last], shard.url[zone.last : zone.query], shard.url[zone.query :]
    energon = f"{before}{sidecars.energon_index_name(name)}{query}" if "energon" in wanted else ""
    dali = f"{before}{sidecars.dali_index_name(name)}{query}" if "dali" in wanted else ""
    return IndexTask(number, shard, wanted, energon, dali, settings)


def _check(tasks: Sequence[IndexTask], names: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse what cannot come out right, before anything is read."""
    if names == ["-"]:
        raise SpecError("nothing can be written beside standard input; name a file or URL", field="write", value="-")
    files = [url for task in tasks for url in (task.energon, task.dali) if url]
    if "sizes" in wanted:
        files += [name.rpartition("/")[2] for name in names]
    for url, times in _counted(files).items():
        if times > 1:
            raise SpecError(
                f"{times} shards would share {storage.mask(url)!r} in what is to be written; rename the shards so that "
                "they differ before the first dot and, for sizes, whatever their folder",
                field="write",
                value=storage.mask(url),
            )


def _counted(items: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in items:
        found[item] = found.get(item, 0) + 1
    return found


def _run_tasks(tasks: Sequence[IndexTask], folder: str, options: RunOptions, listener: Listener) -> list[ShardSummary]:
    found: dict[int, ShardSummary] = {}
    failed: list[str] = []
    with (
        choose_engine(options, len(tasks), [tasks[0].shard.url, folder or "./"]) as engine,
        closing(run_tasks(engine, look_at_shard, tasks, listener)) as outcomes,  # type: ignore[type-var]
    ):
        if tasks[0].shard.url != "-":
            probe_workers(engine, tasks[0].shard, folder)
        for outcome in outcomes:
            if outcome.result is not None:
                found[outcome.task.index] = outcome.result
                summary = outcome.result
                listener.finished(outcome.task.index, summary.samples, summary.size_bytes, 0)
            elif outcome.error is not None:
                failed.append(outcome.error.message)
                listener.failed(outcome.task.label, outcome.error)
    if failed:
        raise JobFailed(
            f"{len(failed)} of {len(tasks)} shards failed, so nothing was written for the data set; the first: "
            f"{failed[0]}"
        )
    return [found[task.index] for task in tasks]


def _data_set_files(
    facts: Sequence[ShardFacts], stem: str, wanted: Sequence[str], folder: str, first_folder: str
) -> list[tuple[str, bytes]]:
    """Give the files for the whole data set: URL and contents; those that exist are brought up to date."""
    files: list[tuple[str, bytes]] = []
    if "wids" in wanted:
        files.append((folder + sidecars.wids_name(stem), sidecars.wids_json(facts, stem)))
    if "energon" in wanted:
        url = folder + sidecars.ENERGON_INFO
        files.append((url, sidecars.energon_info(facts, _known(url))))
    if "sizes" in wanted:
        url = first_folder + sidecars.SIZES
        files.append((url, sidecars.sizes_json(facts, _known(url))))
    if "timm" in wanted:
        url = folder + sidecars.TIMM_INFO
        files.append((url, sidecars.timm_info(facts, stem, _known(url))))
    return files


def _known(url: str) -> bytes | None:
    try:
        return storage.read_bytes(url)
    except NotFoundError:
        return None
