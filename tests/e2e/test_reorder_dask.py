"""htshuffle and htsort on a real Dask scheduler with two real workers: the bytes of one machine, whatever dies."""

from __future__ import annotations

import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.maps import Running, bytes_of, command, finished_shards, leftovers, read_json
from support.reorder_runs import (
    JOBS,
    MARK,
    Clusters,
    HoldingCluster,
    cut_small,
    put_data,
    record_traffic,
    runs_of,
    small_command,
    source_of,
)
from support.reorders import AtStage, put_records, scratch_in, shuffle, sort, state_files
from support.waiting import wait_for

from tarmill.errors import JobFailed
from tarmill.jobs.report import Report

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("dask")]

# distributed itself warns of this and that
QUIET = {"PYTHONWARNINGS": "default"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    put_data(tmp_path)
    return tmp_path


def run(data: Path, name: str, output: str, **more: Any) -> Report:
    tool, _, fields = JOBS[name]
    return {"shuffle": shuffle, "sort": sort}[tool](source_of(name, data), data / output, **fields, **more)


@pytest.mark.parametrize("plan", ["local", "external"])
@pytest.mark.parametrize("name", JOBS)
def test_dask_gives_the_bytes_of_one_process_and_moves_no_sample_itself(
    cluster: HoldingCluster, data: Path, monkeypatch: pytest.MonkeyPatch, plan: str, name: str
) -> None:
    alone = run(data, name, "alone/out-@.tar", plan="local")
    cut_small(monkeypatch.setattr)
    traffic = record_traffic(monkeypatch)
    report = run(data, name, "dask/out-@.tar", plan=plan, options={"scheduler": cluster.host_and_port})
    assert bytes_of(data / "dask") == bytes_of(data / "alone")
    assert report.digest == alone.digest
    if plan == "external":
        assert traffic.runs == runs_of(name)
        assert traffic.buckets >= 4
        assert set(cluster.begun("run-*").values()) == {1}
    else:
        assert len(traffic.tasks["gather"]) > 1
    assert not [message for message in (*traffic.orders, *traffic.results) if MARK in message]
    assert max(map(len, traffic.orders)) < 40_000
    assert max(map(len, traffic.results)) < 10_000


@pytest.mark.parametrize("shards", [3, 20])
def test_shards_may_span_buckets_and_buckets_shards(
    cluster: HoldingCluster, data: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    run(data, "shuffle", "alone/out-@.tar.gz", plan="local", num_shards=shards)
    cut_small(monkeypatch.setattr)
    traffic = record_traffic(monkeypatch)
    options = {"scheduler": str(cluster.scheduler_file)}
    run(data, "shuffle", "dask/out-@.tar.gz", plan="external", num_shards=shards, options=options)
    assert bytes_of(data / "dask") == bytes_of(data / "alone")
    assert traffic.buckets >= 6
    sizes = [len(task.outputs) for task in traffic.tasks["write_bucket"]]
    assert sizes == [1, 1, 1] if shards == 3 else max(sizes) > 1


# Workers, drivers and schedulers that die


class Killed:
    """A job on the cluster as a command of its own, in small batches and buckets."""

    def __init__(self, data: Path, name: str, plan: str, cluster: HoldingCluster) -> None:
        tool, _, fields = JOBS[name]
        self.data = data
        self.tool = small_command(data, f"ht{tool}")
        self.arguments = [source_of(name), "made/out-@.tar", "--plan", plan]
        for option, value in fields.items():
            flag = "--key" if option == "keys" else f"--{option.replace('_', '-')}"
            self.arguments += [flag] if value is True else [flag, value[0] if option == "keys" else str(value)]
        self.name = name
        self.where = ["-c", cluster.host_and_port]

    @property
    def made(self) -> Path:
        return self.data / "made"

    def running(self) -> Running:
        return Running([*self.arguments, *self.where], self.data, tool=self.tool, **QUIET)

    def again(self, *where: str) -> dict[str, Any]:
        """Run the same command to its end, and give its report."""
        done = command(
            [*self.arguments, *(where or self.where), "--report", "report.json"], self.data, tool=self.tool, **QUIET
        )
        assert done.returncode == 0, done.stderr.decode()
        found: dict[str, Any] = read_json(self.data / "report.json")
        return found

    def assert_complete(self) -> None:
        """The bytes of one process are there, and no scratch nor temp file."""
        run(self.data, self.name, "alone/out-@.tar", plan="local")
        assert bytes_of(self.made) == bytes_of(self.data / "alone")
        assert (self.made / "out.manifest.json").exists()
        assert leftovers(self.data) == []
        assert scratch_in(self.made) == []
        assert list(Path(tempfile.gettempdir()).glob(f"tarmill-{job_in(self.made)}*")) == []


def job_in(folder: Path) -> str:
    (found,) = [path.parent.name for path in folder.glob("_tarmill/*/job.json")]
    return found


KILLS = {
    "a batch, between its runs": ("shuffle", "external", "run-0000001-0001", "run-0000000-0001", "run-0000001-000[01]"),
    "a batch of a sort": ("merge", "external", "run-0000001-0000", "run-0000000-0001", "run-0000001-0000"),
    "a bucket": ("shuffle", "external", "out-000002.tar", "out-000000.tar", "out-000002.tar"),
    "a bucket of groups": ("merge", "external", "out-000002.tar", "out-000000.tar", "out-000002.tar"),
    "a scan": ("sort", "local", "scan-0000001.bin", "scan-0000000.bin", "scan-0000001.bin"),
    "writing": ("shuffle", "local", "out-000001.tar", "out-000000.tar", "out-000001.tar"),
    "a reduce": ("merge", "local", "out-000001.tar", "out-000000.tar", "out-000001.tar"),
}
LONG = {"a batch of a sort", "a bucket", "a scan"}


@pytest.mark.parametrize("where", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in KILLS])
def test_killing_one_of_two_workers_costs_its_task_alone(cluster: HoldingCluster, data: Path, where: str) -> None:
    name, plan, victims, others, twice = KILLS[where]
    job = Killed(data, name, plan, cluster)
    doomed, other = cluster.hold(victims), cluster.hold(others)
    with job.running() as running:
        running.wait_until(lambda: doomed.holders() and other.holders(), "both workers were held")
        cluster.kill(doomed.wait_for_holder())
        doomed.release()
        other.release()
        assert running.wait() == 0, running.errors
    job.assert_complete()
    begun = cluster.begun()
    del begun["shard-0000000.json"]
    again = {file for file, count in begun.items() if count > 1}
    assert again == set(cluster.begun(twice))
    assert set(cluster.published(victims).values()) == {1}


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGKILL])
def test_a_driver_that_stops_or_dies_leaves_what_a_rerun_completes(
    cluster: HoldingCluster, data: Path, number: int
) -> None:
    job = Killed(data, "shuffle", "external", cluster)
    first, second = cluster.hold("run-0000003-0000"), cluster.hold("run-0000002-0001")
    with job.running() as running:
        running.wait_until(lambda: first.holders() and second.holders(), "both workers were held")
        running.send(number)
        assert running.wait() == (130 if number == signal.SIGINT else -9)
    wait_for(lambda: not leftovers(data), what="the end of what the workers did")
    kept = state_files(job.made, "batch-*") | state_files(job.made, "run-*")
    assert {Path(file).name for file in kept} >= {"batch-0000000.json", "run-0000000-0000", "run-0000000-0001"}
    assert bytes_of(job.made) == {}

    cluster.restock()
    gate, held = cluster.hold("out-000003.tar"), cluster.hold("out-000002.tar")
    with job.running() as running:  # the batches that were finished are not done again; and once more in this pass
        running.wait_until(lambda: gate.holders() and held.holders(), "both workers were held")
        finished = [file for file in kept if "batch-" in file]
        found = state_files(job.made, "batch-*") | state_files(job.made, "run-*")
        for file in finished:
            runs = [name for name in kept if f"run-{file[-12:-5]}" in name]
            assert {name: found[name] for name in (file, *runs)} == {name: kept[name] for name in (file, *runs)}
        assert not [name for name in cluster.begun("run-*") if f"batch-{name[4:11]}.json" in " ".join(finished)]
        running.send(number)
        assert running.wait() == (130 if number == signal.SIGINT else -9)
    wait_for(lambda: not leftovers(data), what="the end of what the workers did")
    outputs = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in job.made.glob("out-*.tar")}
    assert {"out-000002.tar", "out-000003.tar"}.isdisjoint(outputs)
    assert len(finished_shards(job.made)) == len(outputs)

    cluster.restock()
    report = job.again()
    assert report["shards"]["resumed"] == len(outputs) > 0
    assert cluster.begun("run-*") == Counter()
    assert {name: (file.stat().st_ino, file.stat().st_mtime_ns) for name in outputs for file in [job.made / name]} == (
        outputs
    )
    job.assert_complete()


@pytest.mark.parametrize(
    ("name", "plan", "held"),
    [
        pytest.param("shuffle", "external", ("run-0000002-0000", "run-0000001-0001"), id="in the first pass"),
        pytest.param("merge", "external", ("out-000003.tar", "out-000002.tar"), id="in the second pass"),
        pytest.param("sort", "local", ("out-000003.tar", "out-000002.tar"), id="in local", marks=pytest.mark.long),
    ],
)
def test_after_the_schedulers_death_a_new_one_goes_on_and_late_workers_do_no_harm(
    clusters: Clusters, data: Path, name: str, plan: str, held: tuple[str, str]
) -> None:
    old = clusters.ready()
    job = Killed(data, name, plan, old)
    holds = [old.hold(file) for file in held]
    with job.running() as running:
        running.wait_until(lambda: all(hold.holders() for hold in holds), "both workers were held")
        old.scheduler.kill()
        assert running.wait() == 1
    assert "is gone" in running.errors
    for hold in holds:  # workers that have not heard of the end yet go on, and find their files gone
        hold.release()
    wait_for(lambda: not any(worker.is_alive() for worker in old.workers), what="the workers' end")
    assert leftovers(data) == []
    kept = state_files(job.made)
    outputs = {path.name: path.stat().st_ino for path in job.made.glob("out-*.tar")}
    assert set(held).isdisjoint({*outputs, *(Path(file).name for file in kept)})
    assert not (job.made / "out.manifest.json").exists()

    done = {file[-12:-5] for file in kept if "batch-" in file}
    scans = {Path(file).name for file in kept if "scan-" in file}
    assert done or scans
    new = clusters.ready()
    job.where = ["-c", new.host_and_port]
    report = job.again()
    assert report["shards"]["resumed"] == len(outputs)
    assert not [name for name in new.begun("run-*") if name[4:11] in done]
    assert set(new.begun()).isdisjoint({*outputs, *scans})
    assert {name: (job.made / name).stat().st_ino for name in outputs} == outputs
    job.assert_complete()


def test_an_abandoned_job_is_cleaned_up_and_can_be_done_anew(cluster: HoldingCluster, data: Path) -> None:
    job = Killed(data, "count exactly", "external", cluster)
    held = cluster.hold("out-000001.tar")
    with job.running() as running:
        running.wait_until(held.holders, "a worker was held")
        running.send(signal.SIGKILL)
        running.wait()
    wait_for(lambda: not leftovers(data), what="the end of what the workers did")
    state = f"made/_tarmill/{job_in(job.made)}"
    assert {name.partition("-")[0] for name in map(str, scratch_in(job.made))} >= {f"{state[5:]}/spill/run"}
    done = command(["clean", "--force", state], data, tool="tarmill")
    assert done.returncode == 0, done.stderr.decode()
    assert [path for path in job.made.rglob("*") if not path.name.startswith("out-")] == []
    for path in job.made.glob("out-*"):
        path.unlink()
    cluster.restock()
    job.again()
    job.assert_complete()


@pytest.mark.parametrize("plan", ["local", "external"])
def test_an_input_that_is_replaced_before_it_is_copied_fails_the_job_and_nothing_of_it_is_published(
    cluster: HoldingCluster, data: Path, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    cut_small(monkeypatch.setattr)

    def replace() -> None:
        put_records(data / "new.tar", [{"__key__": "k000", "jpg": b"another"}])
        (data / "new.tar").rename(data / "images-1.tar")

    fields = {"plan": plan, "options": {"scheduler": cluster.host_and_port}}
    with pytest.raises(JobFailed, match=r"images-1\.tar (has changed|is no longer the file)"):
        run(data, "shuffle", "made/out-@.tar", listener=AtStage(replace, 2 if plan == "local" else 1), **fields)
    assert not (data / "made" / "out.manifest.json").exists()
    assert leftovers(data) == []


def test_an_input_that_is_replaced_after_it_was_copied_changes_nothing(
    cluster: HoldingCluster, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(data, "shuffle", "alone/out-@.tar", plan="local")
    cut_small(monkeypatch.setattr)
    replace = AtStage((data / "images-1.tar").unlink, 3)
    run(data, "shuffle", "made/out-@.tar", plan="external", listener=replace, options={"scheduler": cluster.address})
    assert replace.stages[-1].startswith("second pass")
    assert bytes_of(data / "made") == bytes_of(data / "alone")


def test_dask_writes_the_index_files_of_one_process(cluster: HoldingCluster, data: Path) -> None:
    wanted = ("wids", "energon", "dali", "sizes", "timm")
    source = source_of("shuffle", data)
    shuffle(source, data / "alone/out-@.tar", seed="1", index=wanted)
    shuffle(source, data / "dask/out-@.tar", seed="1", index=wanted, options={"scheduler": cluster.host_and_port})
    names = {path.relative_to(data / "alone") for path in (data / "alone").rglob("*") if path.is_file()}
    names = {name for name in names if "_tarmill" not in name.parts and name.name != "out.manifest.json"}
    assert {name.suffix for name in names} == {".tar", ".idx", ".json"}
    assert {name: (data / "dask" / name).read_bytes() for name in names} == {
        name: (data / "alone" / name).read_bytes() for name in names
    }
