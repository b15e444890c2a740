"""The tools from gs:// to gs://, also through a proxy that breaks things: the bytes of files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fakegcs import BUCKET, FakeGcs
from support.faultproxy import Answer, Cut, CutUpload, Fault, FaultProxy, Reset, Stall, random_faults
from support.maps import UPPER, bytes_of, command, put_shards, run_map
from support.reorder_runs import JOBS, put_data, source_of

from tarmill import storage
from tarmill.jobs import map as map_job
from tarmill.jobs import reorder, reorder_prepare
from tarmill.spec import ReorderOptions, ShuffleSpec, SortSpec

pytestmark = pytest.mark.real

QUICK = storage.StorageSettings(
    retry_budget_s=60, backoff_first_s=0.001, backoff_most_s=0.01, connect_timeout_s=10, read_timeout_s=1
)
SHARDS = 3


@pytest.fixture
def there(gcs: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of the test's own folder in the bucket; this process and its children use the emulator, without pauses."""
    for name in [name for name in os.environ if name.upper().endswith("_PROXY")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.base)
    before = storage.current_settings()
    for module in (map_job, reorder_prepare):
        monkeypatch.setattr(module, "settings_of", lambda options: storage.configure(QUICK) or QUICK)
    yield f"gs://{BUCKET}/{tmp_path.name}"
    storage.configure(before)


def outputs(folder: str) -> dict[str, bytes]:
    """Contents of the outputs in a folder of the bucket, by name."""
    found = {stat.url[len(folder) + 1 :]: stat.url for stat in storage.list_urls(f"{folder}/out")}
    return {name: storage.read_bytes(url) for name, url in found.items() if not name.endswith(".json")}


def upload(folder: Path, there: str) -> None:
    for path in folder.iterdir():
        storage.write_bytes(f"{there}/{path.name}", path.read_bytes())


def run(arguments: list[str], cwd: Path, tool: str, workers: str = "1") -> subprocess.CompletedProcess[bytes]:
    done = command([*arguments, *(["-j", workers] if workers else [])], cwd, tool=tool)
    assert done.returncode == 0, done.stderr.decode()
    return done


def test_every_tool_gives_the_bytes_of_files(there: str, tmp_path: Path) -> None:
    (tmp_path / "up.py").write_text(UPPER)
    put_shards(tmp_path / "in", SHARDS, samples=20, size=5000)
    upload(tmp_path / "in", there)
    source = f"{there}/in-@{SHARDS}.tar"
    run_map(f"{tmp_path}/in/in-@{SHARDS}.tar", tmp_path / "mapped" / f"out-@{SHARDS}.tar.gz", UPPER)

    arguments = ["-p", "up.py", source, f"{there}/mapped/out-@{SHARDS}.tar.gz"]
    run(arguments, tmp_path, "htmapper", "2")
    assert outputs(f"{there}/mapped") == bytes_of(tmp_path / "mapped")
    assert b"3 finished before, 0 to do" in run(arguments, tmp_path, "htmapper").stderr

    for tool, more in (("htshuffle", ["--seed", "5"]), ("htsort", ["-k", "cls"])):
        for where in (there, str(tmp_path)):
            run([*more, f"{where}/mapped/out-@{SHARDS}.tar.gz", f"{where}/{tool}/out-@2.tar"], tmp_path, tool)
        assert outputs(f"{there}/{tool}") == bytes_of(tmp_path / tool)
        assert len(outputs(f"{there}/{tool}")) == 2

    rows = [
        run([f"{where}/htsort/out-@2.tar", "-f", "__key__,cls"], tmp_path, "htextract").stdout for where in (there, ".")
    ]
    assert rows[0] == rows[1]
    assert rows[0].count(b"\n") >= 20 * SHARDS

    run(["verify", f"{there}/mapped/out-@{SHARDS}.tar.gz", f"{there}/htsort/out-@2.tar"], tmp_path, "tarmill")
    state = [stat.url for stat in storage.list_urls(f"{there}/mapped/_tarmill/")]
    assert state
    run(["clean", "--all", "--force", f"{there}/mapped/out-@{SHARDS}.tar.gz"], tmp_path, "tarmill", "")
    assert list(storage.list_urls(f"{there}/mapped/_tarmill/")) == []
    assert outputs(f"{there}/mapped") == bytes_of(tmp_path / "mapped")


def test_a_shard_that_is_missing_and_one_that_is_damaged_are_named(there: str, tmp_path: Path) -> None:
    put_shards(tmp_path / "in", SHARDS)
    upload(tmp_path / "in", there)
    (tmp_path / "up.py").write_text(UPPER)
    done = command(["-p", "up.py", f"{there}/in-@9.tar", f"{there}/out-@.tar"], tmp_path)
    assert done.returncode == 1
    assert b"in-3.tar (number 4 of 9) is not there" in done.stderr
    body = storage.read_bytes(f"{there}/in-1.tar")
    storage.write_bytes(f"{there}/in-1.tar", body[: len(body) // 2])
    done = command(["-p", "up.py", f"{there}/in-@{SHARDS}.tar", f"{there}/out-@.tar"], tmp_path)
    assert done.returncode == 1
    assert f"{there}/in-1.tar".encode() in done.stderr
    assert b"Traceback" not in done.stderr


Through = Callable[..., FaultProxy]


@pytest.fixture
def through(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> Through:
    def make(script: list[Fault | None], *only: str) -> FaultProxy:
        proxy = FaultProxy(gcs.port, script, only=only)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.base)
        return proxy

    return make


FAULTS: dict[str, tuple[list[Fault | None], tuple[str, ...]]] = {
    "reading": ([Cut(0), Reset(0), None, Cut(30_000), Answer(503, "0"), Answer(429), None, Reset(9000)], ("GET",)),
    "writing": ([CutUpload(0), None, CutUpload(900), Answer(503), Answer(500), None, CutUpload(50)], ("POST", "PUT")),
    "both": ([*random_faults(3, 10, 60_000), CutUpload(100), None, Stall(0)], ("GET", "POST", "PUT")),
}


@pytest.mark.parametrize("faults", FAULTS)
def test_map_through_faults_gives_the_same_bytes(
    gcs: FakeGcs, there: str, through: Through, tmp_path: Path, faults: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_shards(tmp_path / "in", SHARDS, samples=20, size=5000)
    upload(tmp_path / "in", there)
    run_map(f"{tmp_path}/in/in-@{SHARDS}.tar", tmp_path / "out" / "out-@.tar.gz", UPPER)
    script, only = FAULTS[faults]
    with through(script, *only) as proxy:
        report = run_map(f"{there}/in-@{SHARDS}.tar", f"{there}/out-@.tar.gz", UPPER)
        assert proxy.hurt >= 5
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.base)
    assert report.succeeded
    assert outputs(there) == bytes_of(tmp_path / "out")


@pytest.mark.parametrize(("name", "plan"), [("shuffle", "memory"), ("merge", "external")])
def test_shuffle_and_sort_through_faults_give_the_same_bytes(
    gcs: FakeGcs, there: str, through: Through, tmp_path: Path, name: str, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    put_data(tmp_path / "in")
    upload(tmp_path / "in", there)

    def job(where: str, output: str, plan: str) -> None:
        tool, _, fields = JOBS[name]
        kind: type[Any] = ShuffleSpec if tool == "shuffle" else SortSpec
        spec = kind(input=source_of(name, where), output=output, **fields)
        assert reorder.run(spec, ReorderOptions(workers=1, plan=plan)).succeeded

    job(f"{tmp_path}/in", f"{tmp_path}/out/out-@.tar.gz", plan)
    with through(FAULTS["both"][0], *FAULTS["both"][1]) as proxy:
        job(there, f"{there}/out-@.tar.gz", plan)
        assert proxy.hurt >= 10
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.base)
    assert outputs(there) == bytes_of(tmp_path / "out")
