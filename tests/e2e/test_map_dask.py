"""htmapper on a real Dask scheduler with two real workers: the bytes of one machine, whatever dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daskcluster import DaskCluster
from support.maps import UPPER, Held, Running, bytes_of, command, put_shards, read_json
from support.waiting import wait_for

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("dask")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """One scheduler and two workers for the tests that kill nobody."""
    pytest.importorskip("distributed")
    with DaskCluster(tmp_path_factory.mktemp("dask"), workers=2) as found:
        yield found


# distributed itself warns of this and that
QUIET = {"PYTHONWARNINGS": "default"}


@pytest.mark.parametrize("way", ["address", "scheduler file"])
def test_dask_gives_the_bytes_and_the_job_id_of_one_machine(cluster: DaskCluster, tmp_path: Path, way: str) -> None:
    put_shards(tmp_path, 5)
    (tmp_path / "up.py").write_text(UPPER)
    address = cluster.host_and_port if way == "address" else str(cluster.scheduler_file)
    reports = []
    for name, where in (("serial", ["-j", "1"]), ("dask", ["-c", address])):
        # relative names: the workers have another current folder
        arguments = ["-p", "up.py", "in-@5.tar", f"{name}/out-@.tar.gz", *where, "--report", f"{name}.json"]
        done = command(arguments, tmp_path, **QUIET)
        assert done.returncode == 0, done.stderr.decode()
        reports.append(read_json(tmp_path / f"{name}.json"))
    assert bytes_of(tmp_path / "dask") == bytes_of(tmp_path / "serial")
    assert reports[0]["digest"] == reports[1]["digest"]

    done = command(["-p", "up.py", "in-@5.tar", "serial/out-@.tar.gz", "-c", address], tmp_path, **QUIET)
    assert b"5 finished before, 0 to do" in done.stderr


def test_a_script_that_fails_is_told_as_on_one_machine(cluster: DaskCluster, tmp_path: Path) -> None:
    put_shards(tmp_path, 3)
    (tmp_path / "bad.py").write_text(
        "def process_sample(record):\n    return record if record['key'] != 's1-002' else 1 / 0\n"
    )
    done = command(["-p", "bad.py", "in-@3.tar", "out-@.tar", "-c", cluster.host_and_port], tmp_path, **QUIET)
    assert done.returncode == 1
    assert b"bad.py, line 2: ZeroDivisionError" in done.stderr
    assert b"'s1-002' of in-1.tar" in done.stderr
    assert sorted(bytes_of(tmp_path)) == ["out-000000.tar", "out-000002.tar"]


def kill_one_of_two(folder: Path, first: int, victim: int) -> None:
    with DaskCluster(folder / "dask", workers=2) as cluster:
        job = Held(folder / "job", first=first)
        with Running([*job.arguments, "-c", cluster.host_and_port], folder / "job", **QUIET) as running:
            running.wait_until(lambda: job.is_held(min(2, job.shards - first)), "the shards were held")
            os.kill(cluster.workers[victim].pid, signal.SIGKILL)
            wait_for(lambda: not cluster.workers[victim].is_alive(), what="the worker's end")
            job.release()
            assert running.wait() == 0, running.errors
    job.assert_complete()


def test_killing_one_of_two_workers_gives_the_bytes_of_the_serial_run(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    kill_one_of_two(tmp_path, 2, 0)


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_a_worker_may_be_killed_at_any_moment(tmp_path: Path, first: int, victim: int) -> None:
    pytest.importorskip("distributed")
    kill_one_of_two(tmp_path, first, victim)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_driver_that_stops_or_dies_leaves_what_a_rerun_completes(
    cluster: DaskCluster, tmp_path: Path, number: int, code: int
) -> None:
    job = Held(tmp_path)
    with Running([*job.arguments, "-c", cluster.host_and_port], tmp_path, **QUIET) as running:
        running.wait_until(lambda: job.is_held(2), "the shards were held")
        running.send(number)
        assert running.wait() == code
    wait_for(lambda: not list(job.data.glob(".out-*.tmp")), what="the end of what the workers did")
    job.assert_unfinished_is_clean()
    assert job.assert_completes("-j", "1")["shards"]["resumed"] == 2
