"""Shuffles and sorts on a real cluster: small data in many runs and buckets, and workers that wait where a test says.

    with HoldingCluster(folder) as cluster:
        hold = cluster.hold("run-0000002-0000")     # whoever is about to publish a file of that name waits
        ...
        os.kill(hold.wait_for_holder(), signal.SIGKILL)
        hold.release()
    cluster.begun("run-*")                          # how often each file was begun, whoever did it

Workers watch themselves by an audit hook, so that what runs in them is the code that everybody runs.
"""

from __future__ import annotations

import fnmatch
import gzip
import inspect
import os
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest import mock

import pytest
import zstandard

from support.daskcluster import DaskCluster, DaskWorker
from support.reorders import put_records
from support.waiting import wait_for

SHARDS = 4
"""Of images, and as many of captions."""
SAMPLES = 12
MARK = b"these are bytes of a sample "

JOBS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "shuffle": ("shuffle", ("images", "captions"), {"seed": "5"}),
    "sort": ("sort", ("images", "captions"), {}),
    "count": ("sort", ("images",), {"keys": ("cls:int",), "reduce": "count", "samples_per_shard": 2}),
    "count exactly": (
        "sort",
        ("images",),
        {"keys": ("cls:int",), "reduce": "count", "samples_per_shard": 2, "exact": True},
    ),
    "merge": ("sort", ("images", "captions"), {"reduce": "merge"}),
    "combined": ("sort", ("images", "captions"), {"reduce": "merge", "combine": True}),
}
"""Tool, what it reads, and fields of its spec."""


def put_data(folder: Path, extension: str = "tar") -> None:
    """Write images and captions of the same keys, in other shards and order, about 400 KB together."""
    for shard in range(SHARDS):
        keys = [f"k{shard + number * SHARDS:03d}" for number in range(SAMPLES)]
        images = [{"__key__": key, "jpg": key.encode() + MARK * 150, "cls": b"%d" % (int(key[1:]) % 5)} for key in keys]
        captions = [{"__key__": key, "txt": b"a caption of " + key.encode() + MARK * 70} for key in reversed(keys)]
        for name, records in (("images", images), ("captions", captions)):
            path = folder / f"{name}-{shard}.tar"
            put_records(path, records)
            if extension != "tar":
                pack = gzip.compress if extension == "tar.gz" else zstandard.compress
                (folder / f"{name}-{shard}.{extension}").write_bytes(pack(path.read_bytes()))
                path.unlink()


def runs_of(name: str) -> int:
    """Count the runs that a job writes after `cut_small`: each half a shard of images, or one of captions."""
    return sum({"images": 8, "captions": 4}[part] for part in JOBS[name][1])


def source_of(name: str, where: str | Path = "", extension: str = "tar") -> str:
    """Name the inputs of a job, which lie in a folder."""
    folder = f"{where}/" if where else ""
    return "::".join(f"{folder}{part}-@{SHARDS}.{extension}" for part in JOBS[name][1])


HOOK = '''
"""Loaded by workers: notes which files they begin and publish, and waits before publishing one that is held."""

import os, re, sys, threading, time

FOLDER = {folder!r}
TEMP = re.compile(r"\\.(.*)\\.[0-9a-f]{{16}}\\.[0-9a-f]{{16}}\\.tmp")
here = threading.local()


def note(line):
    fd = os.open(FOLDER + "/log-%d" % os.getpid(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(fd, (line + "\\n").encode())
    os.close(fd)


def watch(event, arguments):
    if event not in ("open", "os.rename") or getattr(here, "busy", False):
        return
    name = arguments[1] if event == "os.rename" else arguments[0]
    if not isinstance(name, str) or (event == "open" and not arguments[2] & os.O_CREAT):
        return
    name = os.path.basename(name)
    if event == "open":
        found = TEMP.fullmatch(name)
        if not found:
            return
        name = found[1]
    here.busy = True
    try:
        if event == "open":
            note("begun " + name)
        elif os.path.exists(FOLDER + "/hold-" + name):
            with open(FOLDER + "/held-%s-%d" % (name, os.getpid()), "w"):
                pass
            while os.path.exists(FOLDER + "/hold-" + name):
                time.sleep(0.005)
        if event != "open":
            note("published " + name)
    finally:
        here.busy = False


if not hasattr(sys, "watched_by_tests"):  # Dask may load this twice
    sys.watched_by_tests = True
    sys.addaudithook(watch)
'''


def cut_small(put: Callable[[Any, str, Any], None]) -> None:
    """Let a job of this process make many tasks, runs and buckets of a few hundred KB.

    Workers learn all of it from their tasks: two shards of images are a batch of four runs, two of captions a batch
    of two runs, and there are about seven buckets. Stands for itself: its source is also the beginning of commands.
    """
    from tarmill.jobs import external, gather_tasks, reorder_local, reorder_prepare
    from tarmill.planning.cuts import grouped
    from tarmill.planning.reorder_plan import Facts, Plan, choose_plan
    from tarmill.values import replace

    def plan_of(asked: str, facts: Facts) -> Plan:
        return replace(choose_plan(asked, facts), batch_bytes=30_000, bucket_bytes=max(1, facts.plain_bytes // 7))

    def pairs(sizes: Any, least_bytes: int) -> list[tuple[int, int]]:
        return [(at, min(at + 2, len(sizes))) for at in range(0, len(sizes), 2)]

    put(reorder_prepare, "choose_plan", plan_of)
    put(external, "grouped", pairs)
    put(reorder_local, "grouped", pairs)
    put(gather_tasks, "grouped", grouped)
    put(gather_tasks, "task_bytes", lambda total: max(1, total // 12))


def small_command(folder: Path, tool: str) -> str:
    """Make a command that is `htshuffle` or `htsort` with small batches and buckets, and give its path."""
    path = folder / f"small-{tool}"
    text = (
        f"#!{sys.executable}\nfrom __future__ import annotations\n{inspect.getsource(cut_small)}\ncut_small(setattr)\n"
    )
    path.write_text(f"{text}from tarmill.cli.{tool} import main\nmain()\n")
    path.chmod(0o755)
    return str(path)


@dataclass(frozen=True)
class Hold:
    """A file that no worker publishes until the hold is released."""

    folder: Path
    name: str

    def holders(self) -> list[int]:
        """Give the process ids of the workers that came so far."""
        return [int(path.name.rpartition("-")[2]) for path in self.folder.glob(f"held-{self.name}-*")]

    def wait_for_holder(self) -> int:
        """Give the first of them."""
        return wait_for(self.holders, what=f"a worker about to publish {self.name}")[0]

    def release(self) -> None:
        """Let it be published."""
        (self.folder / f"hold-{self.name}").unlink(missing_ok=True)


class HoldingCluster(DaskCluster):
    """Two workers that can be held before they publish a file, and that write down what they begin and publish."""

    def __init__(self, folder: Path, workers: int = 2) -> None:
        self.holds = folder / "holds"
        self.holds.mkdir(parents=True)
        (folder / "hook.py").write_text(HOOK.format(folder=str(self.holds)))
        super().__init__(folder, workers)

    def start_worker(self, threads: int | None = None) -> DaskWorker:
        added = {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(self.folder / "hook.py"), "NETRC": os.devnull}
        with mock.patch.dict(os.environ, added):
            for name in [name for name in os.environ if name.upper().endswith("_PROXY")]:
                del os.environ[name]
            return super().start_worker(threads)

    def restock(self) -> None:
        """Have two workers again, nothing held, and nothing noted."""
        for path in self.holds.iterdir():
            path.unlink()
        missing = 2 - sum(worker.is_alive() for worker in self.workers)
        started = [self.start_worker() for _ in range(missing)]
        for worker in started:
            worker.wait_until_registered()

    def hold(self, name: str) -> Hold:
        """Hold a file from now on."""
        (self.holds / f"hold-{name}").touch()
        return Hold(self.holds, name)

    def kill(self, pid: int) -> None:
        """Kill a worker by its process id, and see it end."""
        next(worker for worker in self.workers if worker.pid == pid).kill()

    def begun(self, pattern: str = "*") -> Counter[str]:
        """Count how often each file was begun."""
        return self._noted("begun", pattern)

    def published(self, pattern: str = "*") -> Counter[str]:
        """Count how often each file was published."""
        return self._noted("published", pattern)

    def _noted(self, what: str, pattern: str) -> Counter[str]:
        lines = [line for path in self.holds.glob("log-*") for line in path.read_text().splitlines()]
        found = [line.partition(" ")[2] for line in lines if line.startswith(f"{what} ")]
        return Counter(name for name in found if fnmatch.fnmatchcase(name, pattern))


class Clusters:
    """One cluster for many tests: what a test has killed is started again for the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[HoldingCluster] = []

    def ready(self) -> HoldingCluster:
        """Give a cluster with a scheduler and two workers, nothing held and nothing noted."""
        if not self._made or not self._made[-1].scheduler.is_alive():
            self.close()
            self._made.append(HoldingCluster(self._folder / str(len(self._made))))
        self._made[-1].restock()
        return self._made[-1]

    def close(self) -> None:
        for cluster in self._made:
            cluster.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class Traffic:
    """What a driver and its cluster sent each other: orders and results, as they are packed."""

    orders: list[bytes] = field(default_factory=list)
    results: list[bytes] = field(default_factory=list)
    tasks: dict[str, list[Any]] = field(default_factory=dict)
    """By the name of the function."""

    @property
    def runs(self) -> int:
        """How many runs there were, in the external plan."""
        return len(self.tasks["write_bucket"][0].runs)

    @property
    def buckets(self) -> int:
        return int(self.tasks["write_bucket"][0].buckets)


def record_traffic(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    """Note what the Dask engine of this process sends and gets from now on."""
    from tarmill.engine.cluster import DaskEngine

    found = Traffic()
    run = DaskEngine.run

    def noting(self: Any, function: Any, tasks: Sequence[Any], **more: Any) -> Generator[Any, None, None]:
        found.tasks.setdefault(function.__name__, []).extend(tasks)
        found.orders += [pickle.dumps((function, task)) for task in tasks]
        for outcome in run(self, function, tasks, **more):
            found.results.append(pickle.dumps(outcome.result))
            yield outcome

    monkeypatch.setattr(DaskEngine, "run", noting)
    return found
