"""How far a job is, as it tells others: over passes, retries and HTTP."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support.maps import UPPER, put_shards

from tarmill.engine.base import Progress
from tarmill.errors import ScriptError, TarmillError
from tarmill.jobs.api import run
from tarmill.jobs.listener import Listener, Several
from tarmill.jobs.report import Report
from tarmill.planning.counts import Counts
from tarmill.serve.status import Bytes, Status
from tarmill.serve.status_server import StatusServer, answer
from tarmill.spec import MapSpec, ReadSpec, ReorderOptions, ShuffleSpec, SortSpec


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_job_that_is_not_planned_says_so() -> None:
    found = Status().to_dict()
    assert (found["phase"], found["job"], found["bytes"]["total"], found["etaSeconds"]) == ("planning", "", None, None)


def test_numbers_of_running_tasks_count_and_those_of_earlier_runs_too() -> None:
    clock = Clock()
    status = Status(clock, lambda: 1.5e9)
    report = Report(
        "ShardMap", "ab", 4, shards_done=1, shards_resumed=1, counts=Counts(read=5, written=5, read_bytes=50)
    )
    status.plan(report, 150, ())
    clock.now += 10
    status.progress(Progress(1, samples=3, read_bytes=30, written_bytes=20))
    report.shards_done, report.counts.read = 2, 10
    status.finished(2, 5, 45, 40)
    found = status.to_dict()
    assert found["shards"] == {"total": 4, "done": 2, "failed": 0, "resumed": 1, "running": 1}
    assert found["samples"]["read"] == 13
    assert found["bytes"] == {"read": 125, "written": 20, "total": 200}
    assert found["etaSeconds"] == 10
    assert found["lastProgressTime"] == "2017-07-14T02:40:00Z"


def test_a_task_that_says_the_same_again_is_no_progress() -> None:
    clock = Clock()
    status = Status(clock)
    status.plan(Report("ShardMap", "ab", 4), 150, ())
    status.progress(Progress(1, samples=3))
    clock.now += 60
    status.progress(Progress(1, samples=3))
    assert status.seconds_since_progress == 60
    status.progress(Progress(1, samples=4))
    assert status.seconds_since_progress == 0


def test_counters_never_fall_when_a_task_runs_again() -> None:
    status = Status()
    status.plan(Report("ShardMap", "ab", 4), 150, ())
    status.progress(Progress(1, samples=3, read_bytes=30))
    assert status.peaks()["bytes_read"] == 30
    status.progress(Progress(1))
    assert status.counts()["bytes"]["read"] == 0
    assert status.peaks()["bytes_read"] == 30


def test_failures_are_kept_up_to_five_and_counted_beyond() -> None:
    status = Status()
    status.plan(Report("ShardMap", "ab", 9), 150, ())
    for index in range(8):
        status.failed(f"in-{index}.tar", ScriptError(f"no {index}"))
    found = status.to_dict()
    assert found["shards"]["failed"] == 8
    assert len(found["failures"]) == 5
    assert found["failures"][0] == {"shard": "in-0.tar", "reason": "ScriptError", "message": "no 0"}


def test_two_passes_count_as_one_whole() -> None:
    moved = Bytes(0, None, twice=True)
    moved.begin_pass(100)
    moved.add(60)
    assert (moved.read(10), moved.total) == (70, 200)
    moved.begin_pass(None)  # of which nobody knows yet; what was left of the first pass needed no reading
    moved.add(50)
    assert (moved.read(0), moved.total) == (150, 200)
    moved.begin_pass(300)
    assert moved.total == 450
    moved.add(400)
    assert moved.read(0) == 450, "headers that were read twice are no more than all"


def test_a_pass_behind_the_only_one_adds_to_it() -> None:
    status = Status()
    report = Report("ShardMap", "ab", 1, shards_done=1, counts=Counts(read=5, written=5))
    status.plan(report, 100, ())
    status.finished(0, 5, 100, 90)
    status.stage("indexing", 1, 90)
    status.progress(Progress(0, samples=3, read_bytes=60))
    found = status.to_dict()
    assert (found["phase"], found["stage"], found["samples"]) == ("publishing", "indexing", {"read": 5, "written": 5})
    assert found["bytes"] == {"read": 160, "written": 0, "total": 190}


class Watching(Listener):
    """Keeps what the status said after each event."""

    def __init__(self, status: Status) -> None:
        self.status = status
        self.seen: list[tuple[str, float]] = []

    def stage(self, name: str, tasks: int, total_bytes: int | None) -> None:
        self._look()

    def finished(self, index: int, samples: int, read_bytes: int, written_bytes: int) -> None:
        self._look()

    def _look(self) -> None:
        found = self.status.to_dict()
        if found["bytes"]["total"]:
            self.seen.append((found["stage"], found["bytes"]["read"] / found["bytes"]["total"]))


@pytest.mark.parametrize("plan", ["local", "external"])
@pytest.mark.parametrize("kind", [ShuffleSpec, SortSpec])
def test_a_reorder_grows_from_nothing_to_all(tmp_path: Path, kind: type[ReadSpec], plan: str) -> None:
    spec = kind(input=put_shards(tmp_path, 6, 20, 5000), output=f"{tmp_path}/out-@.tar")  # type: ignore[call-arg]
    status = Status()
    watching = Watching(status)
    run(spec, ReorderOptions(workers=1, plan=plan), Several([status, watching]))
    shares = [share for _, share in watching.seen]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] > 0.95
    assert max(share for stage, share in watching.seen if stage in ("reading", "first pass")) <= 0.5
    assert status.to_dict()["phase"] == "publishing"
    status.end(True, "")
    assert status.to_dict()["phase"] == "done"


# -- over HTTP ---------------------------------------------------------------------------------------------------------


def get(port: int, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as found:
            return found.status, found.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_the_server_tells_how_it_goes_from_the_first_moment_and_frees_its_port(tmp_path: Path) -> None:
    status = Status()
    with StatusServer("127.0.0.1", 0, status) as server:
        assert get(server.port, "/healthz") == (200, b"ok\n")
        assert json.loads(get(server.port, "/progress?x=1")[1])["phase"] == "planning"
        assert b"tarmill_shards 0.0" in get(server.port, "/metrics")[1]
        run(MapSpec(input=put_shards(tmp_path), output=f"{tmp_path}/out-@.tar", script=UPPER), listener=status)
        text = get(server.port, "/metrics")[1].decode()
        for line in (
            "tarmill_shards_done_total 3.0",
            "tarmill_samples_written_total 15.0",
            "tarmill_shards_failed_total 0.0",
        ):
            assert line in text
        assert 'kind="ShardMap"' in text
        assert get(server.port, "/etc/passwd")[0] == 404
        with pytest.raises(TarmillError, match=f"127.0.0.1:{server.port} cannot be had"):
            StatusServer("127.0.0.1", server.port, status)
    with pytest.raises(urllib.error.URLError):
        get(server.port, "/healthz")


def test_without_the_library_metrics_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tarmill.serve.metrics", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    code, _, body = answer("/metrics", Status())
    assert code == 501
    assert b"pip install 'tarmill[serve]'" in body
