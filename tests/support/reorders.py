"""Shuffles and sorts as tests see them: run in this process and proven each time, or as commands that are killed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from support import tars
from support.maps import bytes_of, counts_balance, environment, leftovers, pairs_of, read_json, records_in
from tarmill import storage
from tarmill.formats.digest import MASK_128, sample_digest, to_hex
from tarmill.formats.shards import ShardPattern
from tarmill.jobs.listener import Listener
from tarmill.jobs.reorder import run
from tarmill.jobs.report import Report
from tarmill.spec import ReorderOptions, ReorderSpec, ShuffleSpec, SortSpec

PLANS = ("local", "memory", "external")
"""Ways to move samples; each gives the same bytes."""
FROM_ANYWHERE = tuple(plan for plan in PLANS if plan != "local")
"""Those that take inputs which are compressed or remote."""


Record = dict[str, Any]

every_plan = pytest.mark.parametrize("plan", PLANS)


# Data


def put_records(path: Path, records: Iterable[Record]) -> str:
    """Write one shard of such records, {"__key__": str, field: bytes}; long keys by webdataset's writer."""
    records = list(records)
    pairs = [(f"{one['__key__']}.{name}", body) for one in records for name, body in one.items() if name[:2] != "__"]
    path.parent.mkdir(parents=True, exist_ok=True)
    long = any(len(tars.encode(name)) > 100 for name, _ in pairs)
    path.write_bytes(tars.by_webdataset(records) if long else tars.ustar(pairs))
    return str(path)


def put_shards(folder: Path, shards: int = 3, samples: int = 5, size: int = 20) -> str:
    """Write the data set of `support.maps.put_shards`, and give its pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        (folder / f"in-{shard}.tar").write_bytes(tars.ustar(pairs_of(shard, samples, size)))
    return f"{folder}/in-@{shards}.tar"


# Running


def shuffle(source: str | Path, output: str | Path, **fields: Any) -> Report:
    """Shuffle in this process and prove the result; ReorderOptions in `options`, `plan` and `workers` among them."""
    return _proven(ShuffleSpec, source, output, fields)


def sort(source: str | Path, output: str | Path, **fields: Any) -> Report:
    """Likewise for a sort; `keys` may be one text."""
    for name in ("keys", "group_by"):
        if isinstance(fields.get(name), str):
            fields[name] = (fields[name],)
    return _proven(SortSpec, source, output, fields)


def _proven(kind: type[ReorderSpec], source: str | Path, output: str | Path, fields: dict[str, Any]) -> Report:
    options = {"workers": 1, **fields.pop("options", {})}
    options |= {name: fields.pop(name) for name in ("plan", "workers", "memory", "scratch_dir") if name in fields}
    listener: Listener | None = fields.pop("listener", None)
    spec = kind(input=str(source), output=str(output), **fields)
    with mock.patch("os.fsync"):  # what a test waits for most, and what none of these looks at
        report = run(spec, ReorderOptions(**options), listener)
    if not options.get("dry_run"):
        prove(report, spec.output)
    return report


def prove(report: Report, output: str) -> None:
    """What holds for every finished job: its books balance, its manifest tells what is there, and nothing else is."""
    assert report.succeeded
    assert report.counts.missing == 0
    assert counts_balance(report.to_dict())
    folder = ShardPattern.parse(output).folder
    shards = read_back(output)
    samples = [record for shard in shards for record in shard]
    manifest = manifest_of(output)
    assert manifest["samples"] == len(samples) == report.counts.written
    assert [found["samples"] for found in manifest["shards"]] == [len(shard) for shard in shards]
    assert manifest["members"] == sum(len(record) - 1 for record in samples)
    assert manifest["digest"] == report.digest == digest_of(samples)
    assert report.shards_total == len(shards)
    if storage.scheme_of(folder) == "file":
        assert leftovers(Path(folder)) == []
        assert scratch_in(Path(folder), report.job) == []


def manifest_of(output: str | Path) -> dict[str, Any]:
    """The manifest of the data set that a pattern for outputs names."""
    pattern = ShardPattern.parse(str(output))
    found: dict[str, Any] = read_json(f"{pattern.folder}{pattern.stem}.manifest.json")
    return found


def read_back(output: str | Path) -> list[list[Record]]:
    """The samples of each output shard, in the order of the manifest."""
    folder = ShardPattern.parse(str(output)).folder
    return [records_in(folder + shard["name"]) for shard in manifest_of(output)["shards"]]


def samples_in(output: str | Path) -> list[Record]:
    """All samples, in the order of the manifest."""
    return [record for shard in read_back(output) for record in shard]


def keys_in(output: str | Path) -> list[str]:
    """The keys of all samples, in the order of the manifest."""
    return [record["__key__"] for record in samples_in(output)]


def sizes_in(output: str | Path) -> list[int]:
    """How many samples each shard has."""
    return [shard["samples"] for shard in manifest_of(output)["shards"]]


def multiset(records: Iterable[Record], *, keys: bool = True) -> Counter[Any]:
    """Samples without their order; without their keys where those may change."""
    return Counter(
        tuple(
            sorted(
                (name, bytes(body) if name != "__key__" else body)
                for name, body in record.items()
                if keys or name != "__key__"
            )
        )
        for record in records
    )


def digest_of(records: Iterable[Record]) -> str:
    """The multiset hash of samples, added up here."""
    total = sum(
        sample_digest(record["__key__"], {name: body for name, body in record.items() if name != "__key__"})
        for record in records
    )
    return to_hex(total & MASK_128)


def scratch_in(folder: Path, job: str = "*") -> list[str]:
    """What a job has in its folder besides the small manifests that stay."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.glob(f"_tarmill/{job}/**/*")
        if path.name != "job.json" and not re.fullmatch(r"(shard|index)-\d+\.json", path.name)
    )


def state_files(folder: Path, pattern: str = "*") -> dict[str, tuple[int, int]]:
    """Inode and time of what jobs left for themselves below a folder, by name."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.glob(f"_tarmill/*/**/{pattern}"))
        if path.is_file()
    }


def one_shard_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each shard be a task of its own, so that small data is shared out among workers."""
    from tarmill.jobs import external, gather_tasks, reorder_local

    for module in (reorder_local, gather_tasks):
        monkeypatch.setattr(module, "task_bytes", lambda total: 1)
    monkeypatch.setattr(external, "_LEAST_BATCH", 1)
    monkeypatch.setattr(external, "_MOST_BATCH", 1)


class AtStage(Listener):
    """Does something once, when a pass begins: the second one unless said otherwise."""

    def __init__(self, action: Callable[[], object], number: int = 2) -> None:
        self.stages: list[str] = []
        self._action = action
        self._number = number

    def stage(self, name: str, tasks: int, total_bytes: int | None) -> None:
        self.stages.append(f"{name} {tasks}")
        if len(self.stages) == self._number:
            self._action()


# Commands that come to a bad end at a chosen moment

DOOMED = """
import os, sys
folder, when, action = sys.argv[1:4]
seen, driver = 0, os.getpid()

def perform():
    if action == "kill":
        os.kill(driver, 9)
    exec(action, {"os": os, "driver": driver})

def watch(event, arguments):
    global seen
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.link", "mmap.__new__"):
        names = [name for name in arguments[:2] if isinstance(name, (str, bytes))]
        if event == "mmap.__new__" or any(folder in os.path.abspath(os.fsdecode(name)) for name in names):
            seen += 1
            if str(seen) == when or any(when in os.fsdecode(name) for name in names if "/" in when or "." in when):
                perform()

sys.addaudithook(watch)
tool = sys.argv[4]
sys.argv = sys.argv[4:]
from importlib import import_module
try:
    import_module("tarmill.cli." + tool).main()
finally:
    print(seen, flush=True)
"""
"""A command in which something happens just before it touches the files of a folder for the n-th time, or a file with
such a name: the moments at which a kill makes a difference, however the job is built. A worker that began as a copy of
the driver counts on from what it had seen, and it is the driver that is killed at a worker's moment too."""


def doomed(
    tool: str, arguments: Sequence[str | Path], folder: Path, when: int | str, action: str = "kill"
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a folder and let `action` (code, or "kill") happen at a moment; 0 for never.

    Standard output tells how many moments there were.
    """
    return subprocess.run(
        [sys.executable, "-c", DOOMED, str(folder), str(when), action, tool, *map(str, arguments)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        env=environment(),
    )


def undisturbed(arguments: Callable[[str], list[str]], tool: str, folder: Path) -> dict[str, bytes]:
    """Bytes of the outputs that a command writes into another folder when nothing happens to it."""
    from support.maps import command

    done = command(arguments("undisturbed/"), folder, tool=tool)
    assert done.returncode == 0, done.stderr.decode()
    return bytes_of(folder / "undisturbed")
