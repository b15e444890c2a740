"""htshuffle and htsort from nginx to nginx, alone and on a cluster that spills to it: the bytes of files."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support import nginx
from support.faultproxy import Answer, Cut, CutUpload, Fault, FaultProxy, Flip, LoseAnswer, Reset, Stall, random_faults
from support.maps import Running, bytes_of, command, counts_balance, read_json
from support.reorder_runs import (
    JOBS,
    SHARDS,
    HoldingCluster,
    cut_small,
    put_data,
    record_traffic,
    runs_of,
    small_command,
    source_of,
)
from support.reorders import AtStage, put_records, scratch_in

from tarmill import storage
from tarmill.errors import ChangedError, Interrupted, JobFailed
from tarmill.jobs import reorder, reorder_prepare
from tarmill.jobs.report import Report
from tarmill.spec import ReorderOptions, ShuffleSpec, SortSpec

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("dask")]

QUIET = {"PYTHONWARNINGS": "default"}
QUICK = storage.StorageSettings(
    retry_budget_s=60, backoff_first_s=0.001, backoff_most_s=0.01, connect_timeout_s=10, read_timeout_s=1
)
PLANS = ["memory", "external"]


@pytest.fixture
def root(web: nginx.Nginx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The test's own folder on the server; what is copied to this machine goes to a folder of the test, too."""
    for name in [name for name in os.environ if name.upper().endswith("_PROXY")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", os.devnull)
    local = tmp_path / "local-scratch"
    local.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(local))
    monkeypatch.setenv("TMPDIR", str(local))
    before = storage.current_settings()
    monkeypatch.setattr(reorder_prepare, "settings_of", lambda options: storage.configure(QUICK) or QUICK)
    folder = web.root / tmp_path.name
    folder.mkdir()
    yield folder
    storage.configure(before)


def run(name: str, source: str, output: str, listener: Any = None, **options: Any) -> Report:
    exists = options.pop("exists", "resume")
    tool, _, fields = JOBS[name]
    kind: type[Any] = ShuffleSpec if tool == "shuffle" else SortSpec
    spec = kind(input=source, output=output, exists=exists, **fields)
    report = reorder.run(spec, ReorderOptions(**{"workers": 1, **options}), listener)
    assert report.succeeded
    assert counts_balance(report.to_dict())
    return report


def expected(name: str, root: Path, tmp_path: Path, extension: str = "tar") -> dict[str, bytes]:
    """What the same job on files writes."""
    plan = "local" if extension == "tar" else "memory"
    run(name, source_of(name, root, extension), f"{tmp_path}/files/out-@.tar.gz", plan=plan)
    return bytes_of(tmp_path / "files")


def requests(web: nginx.Nginx, root: Path, method: str, pattern: str) -> list[str]:
    """Request lines for the test's own files, with their status."""
    found = re.compile(rf'"{method} /{re.escape(root.name)}/{pattern} HTTP')
    return [line for line in web.requests() if found.search(line)]


def assert_only_results(root: Path) -> None:
    """The data set is complete; neither the server nor this machine has anything else of the job."""
    assert [name for name in scratch_in(root) if (root / name).is_file()] == []  # servers keep empty folders
    local = [path for path in Path(tempfile.gettempdir()).rglob("*") if path.is_file()]
    assert [path for path in local if "dask-scratch-space" not in path.parts] == []
    assert (root / "out.manifest.json").exists()


# In one place


@pytest.mark.parametrize(
    ("name", "extension"), [("shuffle", "tar"), ("shuffle", "tar.zst"), ("merge", "tar"), ("merge", "tar.gz")]
)
@pytest.mark.parametrize("plan", PLANS)
def test_nginx_to_nginx_gives_the_bytes_of_files(
    web: nginx.Nginx, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, plan: str, extension: str
) -> None:
    put_data(root, extension)
    wanted = expected(name, root, tmp_path, extension)
    cut_small(monkeypatch.setattr)
    there = f"{web.base}/{root.name}"
    workers = 2 if name == "merge" else 1
    report = run(name, source_of(name, there, extension), f"{there}/out-@.tar.gz", plan=plan, workers=workers)
    assert bytes_of(root) == wanted
    assert_only_results(root)
    assert read_json(root / "out.manifest.json")["digest"] == report.digest
    assert not requests(web, root, "PUT", "_tarmill/.*/(run|scan|copy)-.*")  # scratch is on this machine
    # and once more: nothing is left to do
    report = run(name, source_of(name, there, extension), f"{there}/out-@.tar.gz", plan=plan)
    assert report.shards_resumed == report.shards_total == len(wanted)


READING: dict[str, list[Fault | None]] = {
    "cuts": [Cut(0), Cut(1), Cut(700), Cut(30_000)],
    "resets": [Reset(0), Reset(5000), Reset(40_000)],
    "refusals": [Answer(503, retry_after="0"), Answer(500), Answer(429, retry_after="0"), Answer(502)],
    "stalls": [None, None, Stall(30_000)],
    "all kinds": [*random_faults(1, 12, 60_000), None],
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("faults", READING)
def test_reading_through_faults_gives_the_same_bytes(
    web: nginx.Nginx, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: str, plan: str
) -> None:
    put_data(root)
    wanted = expected("shuffle", root, tmp_path)
    cut_small(monkeypatch.setattr)
    with FaultProxy(web.port, READING[faults], only=("GET",)) as proxy:
        source = source_of("shuffle", f"{proxy.base}/{root.name}")
        run("shuffle", source, f"{tmp_path}/out/out-@.tar.gz", plan=plan)
        assert proxy.hurt == len([fault for fault in READING[faults] if fault])
    assert bytes_of(tmp_path / "out") == wanted


WRITING: dict[str, list[Fault | None]] = {
    "cut uploads": [CutUpload(0), CutUpload(50), None, CutUpload(900)],
    "lost answers": [LoseAnswer(), LoseAnswer(), None, LoseAnswer()],
    "all kinds": [CutUpload(10), LoseAnswer(), Answer(503), CutUpload(700), None, LoseAnswer(), Answer(500)],
}


@pytest.mark.parametrize("name", ["shuffle", "count exactly"])
@pytest.mark.parametrize("faults", WRITING)
def test_writing_through_faults_gives_the_same_bytes(
    web: nginx.Nginx, root: Path, tmp_path: Path, faults: str, name: str
) -> None:
    put_data(root)
    wanted = expected(name, root, tmp_path)
    with FaultProxy(web.port, WRITING[faults], only=("PUT",)) as proxy:
        there = f"{proxy.base}/{root.name}"
        run(name, source_of(name, there), f"{there}/out-@.tar.gz", plan="external")
        assert proxy.hurt >= 3
    assert bytes_of(root) == wanted
    assert_only_results(root)


@pytest.mark.parametrize("at", [100, 515, 9000], ids=["header", "body", "later"])
@pytest.mark.parametrize("plan", PLANS)
def test_a_bit_flipped_on_the_way_is_caught_by_the_manifest_and_read_again(
    web: nginx.Nginx, root: Path, tmp_path: Path, at: int, plan: str
) -> None:
    put_data(root)
    made = ShuffleSpec(input=source_of("shuffle", root), output=f"{root}/mid-@{2 * SHARDS}.tar", seed="1")
    reorder.run(made, ReorderOptions(workers=1, plan="local"))

    def sort(where: str, folder: Path, plan: str) -> dict[str, bytes]:
        spec = SortSpec(input=f"{where}/mid-@{2 * SHARDS}.tar", output=f"{folder}/out-@.tar.gz")
        assert reorder.run(spec, ReorderOptions(workers=1, plan=plan)).succeeded
        return bytes_of(folder)

    # of the GETs the first is the manifest's
    with FaultProxy(web.port, [None, Flip(at)], only=("GET",)) as proxy:
        found = sort(f"{proxy.base}/{root.name}", tmp_path / "out", plan)
        seen = [line.split()[1].rpartition("/")[2] for line in proxy.seen if line.startswith("GET")]
        assert seen[:2] == ["mid.manifest.json", "mid-0.tar"]
        assert seen.count("mid-0.tar") > 1
        assert proxy.hurt == 1
    assert found == sort(str(root), tmp_path / "files", "local")


# Inputs that change


def replace_on(root: Path) -> Callable[[], object]:
    """Put another shard of the same name there, with another time."""

    def replace() -> None:
        put_records(root / "new.tar", [{"__key__": "k000", "jpg": b"another"}])
        os.utime(root / "new.tar", (1e9, 1e9))
        (root / "new.tar").rename(root / "images-1.tar")

    return replace


@pytest.mark.parametrize("plan", PLANS)
def test_an_input_that_is_replaced_before_it_is_read_fails_the_job_and_nothing_is_published(
    web: nginx.Nginx, root: Path, plan: str
) -> None:
    put_data(root)
    there = f"{web.base}/{root.name}"
    with pytest.raises(JobFailed, match=r"images-1\.tar"):
        run("shuffle", source_of("shuffle", there), f"{there}/out-@.tar", AtStage(replace_on(root), 1), plan=plan)
    assert bytes_of(root) == {}
    assert not (root / "out.manifest.json").exists()


@pytest.mark.parametrize("plan", PLANS)
def test_an_input_that_is_replaced_after_it_was_read_changes_nothing(
    web: nginx.Nginx, root: Path, tmp_path: Path, plan: str
) -> None:
    put_data(root)
    wanted = expected("merge", root, tmp_path)
    there = f"{web.base}/{root.name}"
    run("merge", source_of("merge", there), f"{there}/out-@.tar.gz", AtStage(replace_on(root)), plan=plan)
    assert bytes_of(root) == wanted


def stop() -> None:
    raise Interrupted("stopped by the test")


def test_a_job_that_was_stopped_is_not_resumed_with_an_input_that_was_replaced_since(
    web: nginx.Nginx, root: Path, cluster: HoldingCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_data(root)
    cut_small(monkeypatch.setattr)
    there, fields = f"{web.base}/{root.name}", {"plan": "external", "scheduler": cluster.host_and_port}
    with pytest.raises(Interrupted):
        run("shuffle", source_of("shuffle", there), f"{there}/out-@.tar", AtStage(stop, 3), **fields)
    replace_on(root)()
    with pytest.raises(ChangedError, match="inputs have changed since job"):
        run("shuffle", source_of("shuffle", there), f"{there}/out-@.tar", **fields)
    assert bytes_of(root) == {}


# On a cluster, over the store


@pytest.mark.parametrize(
    ("name", "extension"),
    [
        ("shuffle", "tar"),
        ("shuffle", "tar.gz"),
        ("merge", "tar"),
        ("merge", "tar.zst"),
        ("count exactly", "tar.gz"),
        ("combined", "tar"),
    ],
)
def test_a_cluster_spills_to_the_web_server_and_fetches_parts_by_ranges(
    web: nginx.Nginx,
    root: Path,
    tmp_path: Path,
    cluster: HoldingCluster,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    extension: str,
) -> None:
    put_data(root, extension)
    wanted = expected(name, root, tmp_path, extension)
    cut_small(monkeypatch.setattr)
    traffic = record_traffic(monkeypatch)
    there = f"{web.base}/{root.name}"
    run(name, source_of(name, there, extension), f"{there}/out-@.tar.gz", scheduler=cluster.host_and_port)
    assert bytes_of(root) == wanted
    assert_only_results(root)
    runs = runs_of(name)
    assert traffic.runs == runs
    assert traffic.buckets >= 4
    assert len(requests(web, root, "PUT", "_tarmill/.*/spill/run-[^ ]*")) == runs
    read = requests(web, root, "GET", "_tarmill/.*/spill/run-[^ ]*")
    assert len(read) > runs
    assert {re.search(r'HTTP/1\.1" (\d+)', line)[1] for line in read} == {"206"}  # type: ignore[index]
    if JOBS[name][2].get("exact") or JOBS[name][2].get("combine"):
        assert requests(web, root, "PUT", "_tarmill/.*/spill/piece-[^ ]*")


@pytest.mark.parametrize("seed", [3, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(4, 14))])
@pytest.mark.parametrize("name", ["shuffle", "count exactly"])
def test_faults_on_all_ways_of_a_cluster_give_the_same_bytes(
    web: nginx.Nginx,
    root: Path,
    tmp_path: Path,
    cluster: HoldingCluster,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    seed: int,
) -> None:
    put_data(root)
    wanted = expected(name, root, tmp_path)
    cut_small(monkeypatch.setattr)
    harm: list[Fault | None] = [
        CutUpload(100),
        LoseAnswer(),
        Stall(seed * 1000),
        Answer(503, retry_after="0"),
        Reset(9),
    ]
    every: list[Fault | None] = [fault for one in harm for fault in (one, None, None, None)]
    with FaultProxy(web.port, [*every, *random_faults(seed, 6, 60_000), *every, *every]) as proxy:
        there = f"{proxy.base}/{root.name}"
        run(name, source_of(name, there), f"{there}/out-@.tar.gz", scheduler=cluster.host_and_port)
        assert proxy.hurt >= 15
    assert bytes_of(root) == wanted
    assert_only_results(root)


@pytest.mark.parametrize(
    ("victims", "others"),
    [("copy-0000002.tar", "copy-0000000.tar"), ("bucket-1-1.dat", "bucket-0-0.dat")],
    ids=["in the first pass", "in the second pass"],
)
def test_killing_one_of_two_workers_costs_its_task_alone(
    web: nginx.Nginx, root: Path, tmp_path: Path, cluster: HoldingCluster, victims: str, others: str
) -> None:
    put_data(root)
    wanted = expected("shuffle", root, tmp_path)
    there = f"{web.base}/{root.name}"
    arguments = [source_of("shuffle", there), f"{there}/out-@.tar.gz", "--seed", "5", "-c", cluster.host_and_port]
    doomed, other = cluster.hold(victims), cluster.hold(others)
    with Running(arguments, tmp_path, tool=small_command(tmp_path, "htshuffle"), **QUIET) as running:
        running.wait_until(lambda: doomed.holders() and other.holders(), "both workers were held")
        cluster.kill(doomed.wait_for_holder())
        doomed.release()
        other.release()
        assert running.wait() == 0, running.errors
    assert bytes_of(root) == wanted
    assert_only_results(root)
    puts = Counter(line.split('"')[1] for line in requests(web, root, "PUT", "(_tarmill/.*/(run|batch)|out)-[^ ]*"))
    assert set(puts.values()) == {1}
    assert {name for name, count in cluster.begun().items() if count > 1} == {victims}


@pytest.mark.parametrize("name", ["shuffle", "count exactly"])
def test_a_job_that_was_stopped_between_its_passes_goes_on_from_what_the_server_has(
    web: nginx.Nginx,
    root: Path,
    tmp_path: Path,
    cluster: HoldingCluster,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    put_data(root)
    wanted = expected(name, root, tmp_path)
    cut_small(monkeypatch.setattr)
    there, fields = f"{web.base}/{root.name}", {"scheduler": cluster.host_and_port}
    with pytest.raises(Interrupted):
        run(name, source_of(name, there), f"{there}/out-@.tar.gz", AtStage(stop, 3), **fields)
    before = len(requests(web, root, "PUT", "_tarmill/.*/spill/run-[^ ]*"))
    assert before
    stages = AtStage(lambda: None)
    run(name, source_of(name, there), f"{there}/out-@.tar.gz", stages, **fields)
    assert stages.stages[0] == "first pass 0"
    assert len(requests(web, root, "PUT", "_tarmill/.*/spill/run-[^ ]*")) == before
    assert bytes_of(root) == wanted
    assert_only_results(root)


def test_an_abandoned_job_is_cleaned_up_on_the_server(
    web: nginx.Nginx, root: Path, tmp_path: Path, cluster: HoldingCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_data(root)
    cut_small(monkeypatch.setattr)
    there = f"{web.base}/{root.name}"
    with pytest.raises(Interrupted):
        run("shuffle", source_of("shuffle", there), f"{there}/out-@.tar", AtStage(stop, 3), scheduler=cluster.address)
    assert scratch_in(root)
    (job,) = [path.parent.name for path in root.glob("_tarmill/*/job.json")]
    done = command(["clean", "--force", f"{there}/_tarmill/{job}"], tmp_path, tool="tarmill")
    assert done.returncode == 0, done.stderr
    assert [path for path in (root / "_tarmill").rglob("*") if path.is_file()] == []


DAMAGE = [
    pytest.param(lambda data_bytes: 700, id="a byte of a sample"),
    pytest.param(lambda data_bytes: 2, id="the name of a member", marks=pytest.mark.long),
    pytest.param(lambda data_bytes: data_bytes + 9, id="where a sample lies"),
    pytest.param(
        lambda data_bytes: data_bytes + 7,
        id="the key of a sample",
    ),
]


@pytest.mark.parametrize("place", DAMAGE)
def test_a_run_file_that_was_damaged_unseen_gives_no_wrong_data_set(
    web: nginx.Nginx,
    root: Path,
    tmp_path: Path,
    cluster: HoldingCluster,
    monkeypatch: pytest.MonkeyPatch,
    place: Callable[[int], int],
) -> None:
    put_data(root)
    wanted = expected("shuffle", root, tmp_path)
    cut_small(monkeypatch.setattr)
    there, fields = f"{web.base}/{root.name}", {"scheduler": cluster.host_and_port}

    def damage() -> None:
        path = sorted(root.glob("_tarmill/*/spill/run-*"))[2]
        (batch,) = [file for file in root.glob("_tarmill/*/batch-*") if path.name[4:11] in file.name]
        size = next(run["data_bytes"] for run in read_json(batch)["runs"] if run["url"].endswith(path.name))
        content, times = bytearray(path.read_bytes()), path.stat()
        content[place(size)] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    source, output = source_of("shuffle", there), f"{there}/out-@.tar.gz"
    with pytest.raises(JobFailed):
        run("shuffle", source, output, AtStage(damage, 3), **fields)
    assert not (root / "out.manifest.json").exists()
    run("shuffle", source, output, exists="overwrite", **fields)
    assert bytes_of(root) == wanted


def test_a_run_file_that_was_written_again_is_told_and_its_batch_alone_done_again(
    web: nginx.Nginx, root: Path, tmp_path: Path, cluster: HoldingCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_data(root)
    wanted = expected("merge", root, tmp_path)
    cut_small(monkeypatch.setattr)
    there, fields = f"{web.base}/{root.name}", {"scheduler": cluster.host_and_port}

    def write_again() -> None:
        """As a worker does that was cut off and comes late."""
        (path,) = root.glob("_tarmill/*/spill/run-0000001-0000")
        os.utime(path, (1e9, 1e9))

    source, output = source_of("merge", there), f"{there}/out-@.tar.gz"
    with pytest.raises((JobFailed, ChangedError), match="run-0000001-0000"):
        run("merge", source, output, AtStage(write_again, 3), **fields)
    assert not (root / "out.manifest.json").exists()
    before = len(requests(web, root, "PUT", "_tarmill/.*/spill/run-[^ ]*"))
    run("merge", source, output, **fields)
    again = requests(web, root, "PUT", "_tarmill/.*/spill/run-[^ ]*")[before:]
    assert {line.split()[6].rpartition("/")[2] for line in again} == {f"run-0000001-000{run}" for run in range(4)}
    assert bytes_of(root) == wanted
    assert_only_results(root)


def test_passwords_in_urls_work_and_are_found_nowhere(
    web: nginx.Nginx, root: Path, tmp_path: Path, cluster: HoldingCluster
) -> None:
    put_data(root)
    wanted = expected("count exactly", root, tmp_path)
    secret = quote(nginx.PASSWORD, safe="")
    there = f"http://{nginx.USER}:{secret}@127.0.0.1:{web.port}/secret/{root.name}"
    small = small_command(tmp_path, "htsort")
    arguments = [source_of("count exactly", there), f"{there}/out-@.tar.gz", "--key", "cls:int", "--reduce", "count"]
    arguments += ["--samples-per-shard", "2", "--exact", "-c", cluster.host_and_port]
    held = cluster.hold("bucket-0-0.dat")
    texts: list[bytes] = []
    with Running([*arguments, "--report", "report.json"], tmp_path, tool=small, **QUIET) as running:
        running.wait_until(held.holders, "a worker was held")
        texts += [path.read_bytes() for path in root.rglob("*") if path.is_file()]  # what lies there between the passes
        held.release()
        assert running.wait() == 0, running.errors
    assert bytes_of(root) == wanted
    again = command([*arguments, "--exists", "fail", "--log-format", "json"], tmp_path, tool=small, **QUIET)
    assert again.returncode == 2
    texts += [again.stdout, again.stderr]
    texts += [path.read_bytes() for folder in (root, tmp_path) for path in folder.rglob("*") if path.is_file()]
    assert any(f"http://{nginx.USER}:***@127.0.0.1".encode() in text for text in texts)
    for spelling in (secret, nginx.PASSWORD, secret.partition("%")[0]):
        assert not [text for text in texts if spelling.encode() in text]
