"""Local worker processes: results, deaths, hangs, and what is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.engineruns import by_index, driver_environment, is_alive, run_driver
from support.enginetasks import TIMEOUT_S, Job, perform, return_function, started, starts
from support.waiting import wait_for

from tarmill.engine.base import Progress
from tarmill.engine.dispatch import MAX_DEATHS_ALONE
from tarmill.engine.process_handle import WorkerProcess
from tarmill.engine.processes import ProcessEngine, process_engine
from tarmill.errors import FormatError, TarmillError, TaskTimeout, WorkerDied


def test_every_task_ends_once_with_its_result() -> None:
    with process_engine(2) as engine:
        outcomes = by_index(engine.run(perform, [Job(index) for index in range(50)]))
    assert {index: outcome.result for index, outcome in outcomes.items()} == {index: index**2 for index in range(50)}


def test_no_more_processes_start_than_there_are_tasks_and_they_serve_the_next_run(tmp_path: Path) -> None:
    with process_engine(8) as engine:
        first = by_index(
            engine.run(perform, [Job(0, "wait-for-both", str(tmp_path)), Job(1, "wait-for-both", str(tmp_path))])
        )
        second = by_index(engine.run(perform, [Job(index) for index in range(2)]))
    workers = {outcome.worker for outcome in first.values()}
    assert len(workers) == 2
    assert {outcome.worker for outcome in second.values()} <= workers


def test_workers_that_were_prepared_run_what_comes_then() -> None:
    with process_engine(2) as engine:
        engine.prepare(perform)
        prepared = set(engine._pool)
        wait_for(engine.is_ready)
        outcomes = by_index(engine.run(perform, [Job(index) for index in range(20)]))
    assert {index: outcome.result for index, outcome in outcomes.items()} == {index: index**2 for index in range(20)}
    assert len(prepared) == 2
    assert {outcome.worker for outcome in outcomes.values()} <= prepared


def test_prepared_workers_that_die_before_they_have_a_task_are_replaced_and_no_task_is_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with process_engine(2) as engine:
        with monkeypatch.context() as patch:
            patch.setattr("tarmill.engine.process_handle._MAIN", "import sys; sys.exit(7)")
            engine.prepare(perform)
            engine.prepare(perform)
        assert len(engine._pool) == 2
        outcomes = by_index(engine.run(perform, [Job(index) for index in range(4)]))
    assert [outcome.attempts for outcome in outcomes.values()] == [1] * 4


def test_a_task_is_not_blamed_for_workers_that_were_dead_before_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    victims: list[int] = []
    send = WorkerProcess.send_task

    def send_late(worker: WorkerProcess, index: int, payload: bytes, *, is_traced: bool) -> None:
        if len(victims) < MAX_DEATHS_ALONE + 1:
            victims.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
            wait_for(worker.has_ended, what="the end of a worker")
        send(worker, index, payload, is_traced=is_traced)

    monkeypatch.setattr(WorkerProcess, "send_task", send_late)
    with process_engine(1) as engine:
        [outcome] = engine.run(perform, [Job(3)])
    assert outcome.result == 9
    assert len(set(victims)) == MAX_DEATHS_ALONE + 1


def test_no_task_needs_no_process() -> None:
    with process_engine(2) as engine:
        assert list(engine.run(perform, [])) == []
        assert engine._pool == {}


def test_errors_cross_as_they_are() -> None:
    with process_engine(1) as engine:
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


def test_a_result_that_cannot_be_pickled_is_an_error_of_its_task() -> None:
    with process_engine(1) as engine:
        (outcome,) = engine.run(return_function, [Job(0)])
    assert outcome.error is not None
    assert "pickle" in str(outcome.error)


def test_a_worker_killed_in_mid_run_costs_nothing(tmp_path: Path) -> None:
    tasks = [Job(index, "wait", str(tmp_path)) for index in range(4)]
    with process_engine(2) as engine:
        run = engine.run(perform, tasks)

        def kill_one_and_go(progress: Progress) -> None:
            if not (tmp_path / "go").exists():
                victim = starts(tmp_path, progress.index)[0]
                os.kill(victim, signal.SIGKILL)
                wait_for(lambda: not is_alive(victim))
                (tmp_path / "go").touch()

        run.close()
        outcomes = by_index(engine.run(perform, tasks, on_progress=kill_one_and_go))
    assert {index: outcome.result for index, outcome in outcomes.items()} == {index: index**2 for index in range(4)}
    assert sorted(outcome.attempts for outcome in outcomes.values()) == [1, 1, 1, 2]


@pytest.mark.parametrize(("what", "exit_code", "cause"), [("die", -9, "SIGKILL"), ("exit", 3, "exit code 3")])
def test_a_task_that_always_kills_its_worker_fails_and_the_others_do_not(what: str, exit_code: int, cause: str) -> None:
    with process_engine(2) as engine:
        outcomes = by_index(engine.run(perform, [Job(0, what), *(Job(index) for index in range(1, 6))]))
    error = outcomes.pop(0).error
    assert isinstance(error, WorkerDied)
    assert (error.shard, error.deaths, error.exit_code) == ("shard-0.tar", 2, exit_code)
    assert cause in str(error)
    assert all(outcome.error is None for outcome in outcomes.values())


def test_a_task_that_killed_its_worker_names_the_sample_it_was_in() -> None:
    with process_engine(1) as engine:
        (outcome,) = engine.run(perform, [Job(0, "die")])
    assert outcome.error is not None
    assert outcome.error.key == "sample-0"


def test_a_task_that_kills_its_worker_once_succeeds(tmp_path: Path) -> None:
    with process_engine(2) as engine:
        outcomes = by_index(engine.run(perform, [Job(3, "die-once", str(tmp_path)), Job(1)]))
    assert (outcomes[3].result, outcomes[3].attempts) == (9, 2)


@pytest.mark.parametrize("what", ["spin", "sleep", "hold-lock"])
def test_a_task_without_progress_is_ended_and_named(what: str) -> None:
    with process_engine(2, task_timeout_s=TIMEOUT_S) as engine:
        outcomes = by_index(engine.run(perform, [Job(0, what), Job(1), Job(2)]))
    error = outcomes[0].error
    assert isinstance(error, TaskTimeout)
    assert (error.shard, error.timeout_s) == ("shard-0.tar", TIMEOUT_S)
    if what != "hold-lock":  # that one never comes to tell where it is
        assert error.key == "sample-0"
        assert "'sample-0'" in str(error)
    assert outcomes[0].attempts == 1
    assert [outcomes[index].result for index in (1, 2)] == [1, 4]


def test_a_task_with_progress_is_left_alone_by_the_timeout() -> None:
    with process_engine(1, task_timeout_s=TIMEOUT_S) as engine:
        (outcome,) = engine.run(perform, [Job(2, "count")])
    assert outcome.result == 4


def test_what_a_script_prints_stays_out_of_standard_output() -> None:
    code = (
        "from support.enginetasks import *; from tarmill.engine.processes import *\n"
        "with process_engine(1) as engine: print([o.result for o in engine.run(perform, [Job(3, 'print')])])"
    )
    done = run_driver([sys.executable, "-c", code])
    assert done.stdout == "[9]\n"
    assert "noise of a script" in done.stderr


def test_a_driver_from_standard_input_or_a_script_is_not_imported_again(tmp_path: Path) -> None:
    code = (
        "print('top of the script')\n"
        "from support.enginetasks import TIMEOUT_S, Job, perform\n"
        "from tarmill.engine.processes import process_engine\n"
        "with process_engine(2) as engine:\n"
        "    print(sorted(o.result for o in engine.run(perform, [Job(1), Job(2)])))\n"
    )
    script = tmp_path / "driver.py"
    script.write_text(code, "utf-8")
    for command, text in (([sys.executable, "-"], code), ([sys.executable, str(script)], "")):
        assert run_driver(command, text).stdout == "top of the script\n[1, 4]\n"


def test_a_file_in_the_current_folder_does_not_shadow_a_module(tmp_path: Path) -> None:
    (tmp_path / "struct.py").write_text("raise SystemExit('the wrong struct')", "utf-8")
    code = (
        "import sys; from support.enginetasks import *; from tarmill.engine.processes import *\n"
        "with process_engine(1) as engine: print([o.result for o in engine.run(perform, [Job(3)])])"
    )
    assert run_driver([sys.executable, "-P", "-c", code], cwd=tmp_path).stdout == "[9]\n"


def test_closing_the_run_stops_its_tasks_and_lets_them_tidy_up(tmp_path: Path) -> None:
    with (
        process_engine(2) as engine,
        contextlib.closing(
            engine.run(perform, [Job(0, "wait-for-both", str(tmp_path)), Job(1, "tidy", str(tmp_path))])
        ) as run,
    ):
        assert next(run).task.index == 0
        (pid,) = wait_for(lambda: starts(tmp_path, 1))
        run.close()
        assert (tmp_path / "tidied-1").exists()
        assert not is_alive(pid)


def test_closing_the_engine_in_mid_run_does_the_same(tmp_path: Path) -> None:
    engine = process_engine(2)
    run = engine.run(perform, [Job(0, "wait-for-both", str(tmp_path)), Job(1, "tidy", str(tmp_path))])
    next(run)
    (pid,) = wait_for(lambda: starts(tmp_path, 1))
    engine.close()
    assert (tmp_path / "tidied-1").exists()
    assert not is_alive(pid)


def test_what_a_killed_task_had_started_is_killed_too(tmp_path: Path) -> None:
    with process_engine(1, task_timeout_s=TIMEOUT_S) as engine:
        (outcome,) = engine.run(perform, [Job(0, "start-child-and-sleep", str(tmp_path))])
    assert isinstance(outcome.error, TaskTimeout)
    child = int((tmp_path / "child").read_text("ascii"))
    wait_for(lambda: not is_alive(child))


def test_workers_that_cannot_start_end_the_run_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tarmill.engine.process_handle._MAIN", "import sys; sys.exit(7) #{path}{fds}")
    with process_engine(1) as engine, pytest.raises(TarmillError, match="exit code 7"):
        list(engine.run(perform, [Job(0)]))


def test_an_engine_wants_at_least_one_worker() -> None:
    with pytest.raises(ValueError, match="0 workers"):
        ProcessEngine(0)


@pytest.mark.parametrize("forks", [False, True])
def test_workers_end_when_their_driver_is_killed(tmp_path: Path, forks: bool) -> None:
    code = (
        "from support.enginetasks import *; from tarmill.engine.processes import *\n"
        f"list(process_engine(2, forks={forks}).run(perform, [Job(i, 'tidy', {str(tmp_path)!r}) for i in range(2)]))"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], env=driver_environment())
    try:
        wait_for(lambda: len(started(tmp_path)) == 2 and starts(tmp_path, 0) and starts(tmp_path, 1))
    finally:
        driver.kill()
        driver.wait()
    for index in (0, 1):
        (pid,) = starts(tmp_path, index)
        wait_for(lambda pid=pid: not is_alive(pid))  # type: ignore[misc]
        assert (tmp_path / f"tidied-{index}").exists()
