"""The Dask engine on real scheduler and worker processes: results, deaths, hangs, interruptions."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from support.daskcluster import DaskCluster
from support.engineruns import by_index, start_driver
from support.enginetasks import TIMEOUT_S, Job, perform, started, starts
from support.waiting import wait_for

from tarmill.engine.base import Progress
from tarmill.engine.cluster import DaskEngine, dask_engine
from tarmill.errors import FormatError, TarmillError, TaskTimeout, UsageError, WorkerDied

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """Two workers of two threads, for tests that do them no harm."""
    with DaskCluster(tmp_path_factory.mktemp("dask"), workers=2, threads=2) as cluster:
        yield cluster


@pytest.fixture
def engine(cluster: DaskCluster) -> Iterator[DaskEngine]:
    with dask_engine(cluster.host_and_port) as engine:
        yield engine


def wait_for_starts(folder: Path, *indexes: int) -> list[int]:
    """The processes that run these tasks first, once they run."""
    wait_for(lambda: all(starts(folder, index) for index in indexes), what=f"tasks {indexes} to start")
    return [starts(folder, index)[0] for index in indexes]


def test_every_task_ends_once_with_its_result(engine: DaskEngine) -> None:
    done: list[Progress] = []
    outcomes = by_index(
        engine.run(
            perform,
            [Job(index) for index in range(40)],
            on_progress=lambda progress: done.append(progress) if progress.done else None,
        )
    )
    assert {index: outcome.result for index, outcome in outcomes.items()} == {index: index**2 for index in range(40)}
    assert {outcome.attempts for outcome in outcomes.values()} == {1}
    assert sorted(progress.index for progress in done) == list(range(40))
    assert {progress.samples for progress in done} == {10}


def test_no_worker_gets_more_tasks_than_it_has_threads(engine: DaskEngine, tmp_path: Path) -> None:
    tasks = [Job(index, "wait", str(tmp_path)) for index in range(10)]

    def go_when_full(progress: Progress) -> None:
        if len(started(tmp_path)) >= 4 and not (tmp_path / "go").exists():
            assert len(started(tmp_path)) == 4
            (tmp_path / "go").touch()

    assert len(by_index(engine.run(perform, tasks, on_progress=go_when_full))) == 10
    assert engine.workers == 4


def test_errors_cross_as_they_are(engine: DaskEngine) -> None:
    outcomes = by_index(
        engine.run(perform, [Job(0, "format-error"), Job(1, "value-error"), Job(2, "sys-exit"), Job(3)])
    )
    first = outcomes[0].error
    assert isinstance(first, FormatError)
    assert (first.shard, first.reason) == ("shard-0.tar", "bad-header")
    second = outcomes[1].error
    assert isinstance(second, TarmillError)
    assert "_value_error" in second.worker_traceback
    assert "the script has enough" in str(outcomes[2].error)
    assert outcomes[3].result == 9


def test_a_hung_task_that_listens_is_ended_and_its_worker_goes_on(cluster: DaskCluster, tmp_path: Path) -> None:
    with dask_engine(cluster.address, task_timeout_s=TIMEOUT_S) as engine:
        outcomes = by_index(
            engine.run(perform, [Job(0, "tidy", str(tmp_path)), *(Job(index) for index in range(1, 6))])
        )
    error = outcomes.pop(0).error
    assert isinstance(error, TaskTimeout)
    assert (error.shard, error.key, error.timeout_s) == ("shard-0.tar", "sample-0", TIMEOUT_S)
    assert (tmp_path / "tidied-0").exists()
    assert all(outcome.error is None for outcome in outcomes.values())
    assert all(worker.is_alive() for worker in cluster.workers)


def test_a_function_is_probed_on_every_worker(engine: DaskEngine, cluster: DaskCluster) -> None:
    assert engine.probe(perform, Job(3)) == {worker.address: 9 for worker in cluster.workers}
    answers = engine.probe(perform, Job(3, "format-error"))
    assert {type(answer) for answer in answers.values()} == {FormatError}


def test_a_requirement_that_fails_names_the_worker(engine: DaskEngine, cluster: DaskCluster) -> None:
    engine.require(perform, Job(3))
    with pytest.raises(FormatError, match=r"on worker tcp://127\.0\.0\.1:") as caught:
        engine.require(perform, Job(3, "format-error"))
    assert caught.value.worker in {worker.address for worker in cluster.workers}


def test_equal_versions_pass_and_differing_ones_are_named(engine: DaskEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.check_versions()
    monkeypatch.setattr("tarmill.__version__", "99.0")
    with pytest.raises(UsageError, match=r"worker tcp://\S+ has tarmill \S+ where the driver has 99\.0"):
        engine.check_versions()


def test_an_interrupted_driver_stops_its_tasks_on_the_workers(cluster: DaskCluster, tmp_path: Path) -> None:
    driver = start_driver(
        f"[Job(index, 'tidy', {str(tmp_path)!r}) for index in range(9)]", "cluster", "dask_engine", cluster.address
    )
    wait_for_starts(tmp_path, 0, 1, 2, 3)
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=30)
    assert output == "stopped 2\n"
    assert driver.returncode == 130
    assert all((tmp_path / f"tidied-{index}").exists() for index in range(4)), "the driver left before its tasks"
    assert len(started(tmp_path)) == 4
    assert all(worker.is_alive() for worker in cluster.workers)


def test_tasks_stop_when_their_driver_is_killed(cluster: DaskCluster, tmp_path: Path) -> None:
    driver = start_driver(f"[Job(0, 'tidy', {str(tmp_path)!r})]", "cluster", "dask_engine", cluster.address)
    wait_for_starts(tmp_path, 0)
    driver.kill()
    driver.communicate(timeout=30)
    wait_for(lambda: (tmp_path / "tidied-0").exists(), what="the task to stop")
    assert all(worker.is_alive() for worker in cluster.workers)


def test_a_scheduler_file_leads_to_the_scheduler(cluster: DaskCluster) -> None:
    with dask_engine(str(cluster.scheduler_file)) as engine:
        assert engine.address == cluster.address


def test_a_worker_killed_in_mid_run_costs_nothing(tmp_path: Path) -> None:
    tasks = [Job(index, "wait", str(tmp_path)) for index in range(8)]
    with DaskCluster(tmp_path / "dask", workers=2) as cluster, dask_engine(cluster.address) as engine:

        def kill_one_and_go(progress: Progress) -> None:
            if not (tmp_path / "go").exists() and started(tmp_path) >= {0, 1}:
                cluster.workers[0].kill()
                (tmp_path / "go").touch()

        outcomes = by_index(engine.run(perform, tasks, on_progress=kill_one_and_go))
    assert {index: outcome.result for index, outcome in outcomes.items()} == {index: index**2 for index in range(8)}
    assert sorted(outcome.attempts for outcome in outcomes.values()) == [1] * 7 + [2]


def test_a_task_that_always_kills_its_worker_fails_and_the_others_do_not(tmp_path: Path) -> None:
    tasks = [Job(0, "die"), *(Job(index) for index in range(1, 12))]
    with DaskCluster(tmp_path / "dask", workers=3) as cluster, dask_engine(cluster.address) as engine:
        outcomes = by_index(engine.run(perform, tasks))
    error = outcomes.pop(0).error
    assert isinstance(error, WorkerDied)
    assert (error.shard, error.deaths) == ("shard-0.tar", 2)
    assert {index: outcome.result for index, outcome in outcomes.items()} == {index: index**2 for index in range(1, 12)}


def test_the_innocent_neighbour_of_a_killer_succeeds(tmp_path: Path) -> None:
    tasks = [Job(0, "die-beside", str(tmp_path)), Job(1, "second-time", str(tmp_path))]
    with DaskCluster(tmp_path / "dask", workers=1, threads=2) as cluster, dask_engine(cluster.address) as engine:

        def more_workers() -> None:
            wait_for_starts(tmp_path, 0, 1)
            for _ in range(3):
                cluster.start_worker()

        helper = threading.Thread(target=more_workers)
        helper.start()
        outcomes = by_index(engine.run(perform, tasks))
        helper.join()
    assert starts(tmp_path, 0)[0] == starts(tmp_path, 1)[0], "both began on one worker"
    assert isinstance(outcomes[0].error, WorkerDied)
    assert outcomes[0].attempts == 3
    assert (outcomes[1].result, outcomes[1].attempts) == (1, 2)


@pytest.mark.parametrize("how", ["sigterm", "retired"])
def test_workers_that_are_told_to_go_blame_nobody(tmp_path: Path, how: str) -> None:
    with DaskCluster(tmp_path / "dask", workers=3) as cluster, dask_engine(cluster.address) as engine:
        told: list[int] = []

        def take_two_workers_away(progress: Progress) -> None:
            pids = starts(tmp_path, 5)
            if len(pids) <= len(told):
                return
            told.append(pids[-1])
            if len(pids) == 3:
                (tmp_path / "go").touch()
                return
            worker = next(worker for worker in cluster.workers if worker.pid == pids[-1])
            if how == "sigterm":
                worker.terminate()
            else:
                engine.client.retire_workers([worker.address])

        (outcome,) = engine.run(perform, [Job(5, "wait-tidily", str(tmp_path))], on_progress=take_two_workers_away)
    assert (outcome.result, outcome.attempts) == (25, 3)
    if how == "sigterm":
        assert (tmp_path / "tidied-5").exists(), "the task was not stopped before its worker ended"


@pytest.mark.parametrize("what", ["sleep", "hold-lock"])
def test_a_hung_task_that_does_not_listen_costs_its_worker_but_no_other_task(tmp_path: Path, what: str) -> None:
    tasks = [Job(0, what, str(tmp_path)), *(Job(index, "", str(tmp_path)) for index in range(1, 8))]
    with (
        DaskCluster(tmp_path / "dask", workers=2) as cluster,
        dask_engine(cluster.address, task_timeout_s=TIMEOUT_S) as engine,
    ):
        outcomes = by_index(engine.run(perform, tasks))
        wait_for(lambda: not all(worker.is_alive() for worker in cluster.workers))
        log = next(worker.log for worker in cluster.workers if not worker.is_alive())
    error = outcomes.pop(0).error
    assert isinstance(error, TaskTimeout)
    assert error.shard == "shard-0.tar"
    assert all(outcome.error is None for outcome in outcomes.values())
    assert "enginetasks.py" in log, "the worker's log tells where it hung"


def test_a_worker_that_joins_later_gets_the_work(tmp_path: Path) -> None:
    with DaskCluster(tmp_path / "dask", workers=0) as cluster, dask_engine(cluster.address) as engine:
        cluster.start_worker()
        outcomes = by_index(engine.run(perform, [Job(index) for index in range(4)]))
        assert len(outcomes) == 4


def test_without_any_worker_the_run_ends_and_says_so(tmp_path: Path) -> None:
    with (
        DaskCluster(tmp_path / "dask", workers=0) as cluster,
        dask_engine(cluster.address, no_worker_timeout_s=1) as engine,
        pytest.raises(
            TarmillError, match=r"no worker that could take a task for 1 s, and 2 tasks wait.*dask worker tcp"
        ),
    ):
        list(engine.run(perform, [Job(0), Job(1)]))


def test_a_scheduler_that_dies_ends_the_run_and_says_so(tmp_path: Path) -> None:
    with DaskCluster(tmp_path / "dask", workers=1) as cluster, dask_engine(cluster.address) as engine:
        run = engine.run(perform, [Job(0, "wait", str(tmp_path))], on_progress=lambda _: cluster.scheduler.kill())
        with pytest.raises(TarmillError, match="is gone"):
            list(run)


def test_tls_is_spoken_when_asked_for(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    ca, cert, key = (str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem"))
    tls = ["--tls-ca-file", ca, "--tls-cert", cert, "--tls-key", key]
    with DaskCluster(tmp_path / "dask", workers=1, tls=tls) as cluster:
        assert cluster.address.startswith("tls://")
        with dask_engine(cluster.host_and_port, tls_ca_file=ca, tls_cert=cert, tls_key=key) as engine:
            (outcome,) = engine.run(perform, [Job(4)])
        assert outcome.result == 16
        with pytest.raises(TarmillError, match=f"no Dask scheduler answered at tcp://{cluster.host_and_port}"):
            dask_engine(cluster.host_and_port, connect_timeout_s=2)
