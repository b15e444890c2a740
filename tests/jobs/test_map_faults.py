"""What goes wrong around a job: signals, killed processes, full disks, scripts that hang or kill; and that no byte
differs once the same command has run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.maps import (
    Held,
    Running,
    bytes_of,
    command,
    finished_shards,
    is_alive,
    leftovers,
    put_shards,
    read_json,
    records_in,
)
from support.waiting import wait_for


def workers_of(running: Running) -> list[int]:
    """Process ids of the worker processes of a command."""
    return [pid for pid in running.children() if b"process_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def has_ended(pid: int) -> bool:
    """Whether a process is a zombie, which nobody has reaped yet."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


# Asked to stop


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_stops_the_job_cleanly_and_a_rerun_completes_it(
    tmp_path: Path, number: int, code: int, workers: int
) -> None:
    job = Held(tmp_path)
    with Running([*job.arguments, "-j", str(workers), "--report", "stopped.json"], tmp_path) as running:
        running.wait_until(lambda: job.is_held(workers), "the shards were held")
        children = workers_of(running)
        assert len(children) == (0 if workers == 1 else 2)
        running.send(number)
        assert running.wait() == code
        wait_for(lambda: not any(map(is_alive, children)), what="the end of the workers")
        assert "run the same command again" in running.errors
        assert "2 of 5 done" in running.errors
    assert leftovers(tmp_path) == []
    job.assert_unfinished_is_clean()
    stopped = read_json(tmp_path / "stopped.json")
    assert stopped["interrupted"]
    assert not stopped["succeeded"]
    assert job.assert_completes("-j", str(workers))["shards"]["resumed"] == 2


# Killed


def kill_driver_and_rerun(folder: Path, first: int, workers: int) -> None:
    job = Held(folder, first=first)
    with Running([*job.arguments, "-j", str(workers)], folder) as running:
        running.wait_until(lambda: job.is_held(min(workers, job.shards - first)), "the shards were held")
        children = workers_of(running)
        running.send(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        wait_for(lambda: not any(map(is_alive, children)), what="the end of the orphans")
    job.assert_unfinished_is_clean()
    assert job.assert_completes("-j", str(workers))["shards"]["resumed"] == first


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_driver_loses_nothing_that_was_finished(tmp_path: Path, workers: int) -> None:
    kill_driver_and_rerun(tmp_path, 2, workers)


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_a_driver_may_be_killed_at_any_moment(tmp_path: Path, first: int, workers: int) -> None:
    kill_driver_and_rerun(tmp_path, first, workers)


def kill_worker(folder: Path, first: int, kills: int) -> None:
    job = Held(folder, first=first)
    with Running([*job.arguments, "-j", "2"], folder) as running:
        running.wait_until(lambda: job.is_held(min(2, job.shards - first)), "the shards were held")
        os.kill(running.process.pid, signal.SIGSTOP)  # else it may give the shard to the one that is killed next
        killed = workers_of(running)[:kills]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: all(map(has_ended, killed)), what="the end of the workers")
        os.kill(running.process.pid, signal.SIGCONT)
        job.release()
        assert running.wait() == 0, running.errors
    job.assert_complete()


def test_a_killed_worker_costs_nothing_but_its_shard_again(tmp_path: Path) -> None:
    kill_worker(tmp_path, 2, 1)


@pytest.mark.long
@pytest.mark.parametrize("kills", [1, 2])
@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_workers_may_be_killed_at_any_moment(tmp_path: Path, first: int, kills: int) -> None:
    kill_worker(tmp_path, first, kills)


POINTS = {
    "before the first sample": "tarmill.jobs.map_shard.prepared",
    "before the shard is published": "tarmill.storage.file.FileWriteStream._commit",
    "after the shard was published": "tarmill.jobs.map_shard.save_shard",
    "before the data set's manifest": "tarmill.jobs.map.publish",
    "before the job is begun": "tarmill.jobs.manifests.JobFolder.begin",
}


@pytest.mark.long
@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_each_step_of_a_shard_leaves_what_a_rerun_completes(tmp_path: Path, point: str, after: int) -> None:
    """One process, killed by itself when it comes to a step for the `after`-th time."""
    job = Held(tmp_path)
    job.release()
    module, _, name = POINTS[point].rpartition(".")
    code = f"""
import os, sys
import tarmill.jobs.map, tarmill.jobs.map_shard, tarmill.jobs.manifests, tarmill.storage.file
owner = eval({module!r}, {{"tarmill": tarmill}})
there, calls = getattr(owner, {name!r}), []
def dying(*arguments, **named):
    calls.append(1)
    if len(calls) > {after}:
        os.kill(os.getpid(), 9)
    return there(*arguments, **named)
setattr(owner, {name!r}, dying)
from tarmill.cli.htmapper import main
main()
"""

    subprocess.run(
        [sys.executable, "-c", code, *job.arguments, "-j", "1"], cwd=tmp_path, timeout=100, capture_output=True
    )
    job.assert_completes("-j", "1")


# Scripts that hang or kill


def put_job(folder: Path, body: str) -> list[str]:
    put_shards(folder, 3)
    (folder / "s.py").write_text(f"import os\ndef process_sample(record):\n    {body}\n    return record\n")
    return ["-p", "s.py", "in-@3.tar", "out-@.tar", "--report", "report.json"]


def test_a_script_that_kills_its_worker_fails_that_shard_after_two_deaths(tmp_path: Path) -> None:
    arguments = put_job(tmp_path, "record['key'] == 's1-002' and os.kill(os.getpid(), 9)")
    done = command([*arguments, "-j", "2"], tmp_path)
    assert done.returncode == 1
    report = read_json(tmp_path / "report.json")
    assert report["shards"] == {"total": 3, "done": 2, "resumed": 0}
    (failure,) = report["failures"]
    assert failure["shard"] == "in-1.tar"
    for words in ("died 2 times", "SIGKILL"):
        assert words in failure["message"]
    assert sorted(bytes_of(tmp_path)) == ["out-000000.tar", "out-000002.tar"]
    assert leftovers(tmp_path) == []


def test_a_script_that_hangs_is_ended_and_its_shard_and_sample_named(tmp_path: Path) -> None:
    hang = "\n    while record['key'] == 's1-002': pass"
    done = command([*put_job(tmp_path, hang), "-j", "2", "--task-timeout", "5s"], tmp_path)
    assert done.returncode == 1
    (failure,) = read_json(tmp_path / "report.json")["failures"]
    for words in ("in-1.tar", "'s1-002'", "--task-timeout"):
        assert words in failure["message"]
    assert sorted(bytes_of(tmp_path)) == ["out-000000.tar", "out-000002.tar"]
    assert leftovers(tmp_path) == []


def test_a_script_that_hangs_on_the_very_first_sample_is_ended_too(tmp_path: Path) -> None:
    hang = "\n    while record['key'] == 's0-000': pass"
    done = command([*put_job(tmp_path, hang), "-j", "1", "--task-timeout", "5s"], tmp_path)
    assert done.returncode == 1
    (failure,) = read_json(tmp_path / "report.json")["failures"]
    assert "'s0-000'" in failure["message"]


def test_a_script_that_exits_its_worker_fails_that_shard_only(tmp_path: Path) -> None:
    done = command([*put_job(tmp_path, "record['key'] == 's1-002' and os._exit(3)"), "-j", "2"], tmp_path)
    assert done.returncode == 1
    (failure,) = read_json(tmp_path / "report.json")["failures"]
    assert "exit code 3" in failure["message"]
    assert len(finished_shards(tmp_path)) == 2


# No room


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_is_told_leaves_nothing_half_written_and_a_rerun_completes(
    tmp_path: Path, small_disk: Path, workers: str
) -> None:
    put_shards(tmp_path, 4, samples=5, size=40_000)
    (tmp_path / "s.py").write_text("def process_sample(record):\n    return record\n")
    arguments = ["-p", "s.py", "in-@4.tar", "small/out-@.tar", "-j", workers]
    done = command(arguments, tmp_path)
    assert done.returncode == 1
    assert b"no space left while writing" in done.stderr
    assert b"free some" in done.stderr
    assert leftovers(small_disk) == []
    assert not (small_disk / "out.manifest.json").exists()
    assert len(bytes_of(small_disk)) < 4
    for name in bytes_of(small_disk):
        assert len(records_in(small_disk / name)) == 5
    subprocess.run(["mount", "-o", "remount,size=16M", str(small_disk)], check=True)
    done = command(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    command(["-p", "s.py", "in-@4.tar", "big/out-@.tar", "-j", "1"], tmp_path)
    assert bytes_of(small_disk) == bytes_of(tmp_path / "big")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, small_disk: Path) -> None:
    put_shards(tmp_path, 2)
    (tmp_path / "s.py").write_text("def process_sample(record):\n    return record\n")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = command(["-p", "s.py", "in-@2.tar", "small/out-@.tar"], tmp_path)
    assert done.returncode == 1
    assert b"not allowed" in done.stderr
    assert b"small/" in done.stderr
    assert list(small_disk.iterdir()) == []
