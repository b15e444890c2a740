"""The serial engine, the meter, and how errors cross."""

from __future__ import annotations

import pickle
import threading

import pytest
from support.enginetasks import Job, perform
from support.waiting import wait_for

from tarmill.engine import meter
from tarmill.engine.base import Progress, as_tarmill_error, checked_tasks
from tarmill.engine.serial import serial_engine
from tarmill.errors import FormatError, Interrupted, TarmillError


def test_tasks_run_in_order_with_their_results() -> None:
    with serial_engine() as engine:
        outcomes = list(engine.run(perform, [Job(2), Job(1), Job(3)]))
    assert [(outcome.task.index, outcome.result, outcome.attempts) for outcome in outcomes] == [
        (2, 4, 1),
        (1, 1, 1),
        (3, 9, 1),
    ]


def test_an_error_ends_its_task_only() -> None:
    first, second, third = serial_engine().run(perform, [Job(0, "format-error"), Job(1), Job(2, "sys-exit")])
    assert isinstance(first.error, FormatError)
    assert first.error.offset == 512
    assert second.result == 1
    assert third.error is not None
    assert "the script has enough" in str(third.error)


def test_an_interruption_goes_through() -> None:
    def interrupted(job: Job) -> None:
        raise Interrupted(15)

    with pytest.raises(Interrupted):
        list(serial_engine().run(interrupted, [Job(0)]))


def test_progress_is_told_while_a_task_runs_and_when_it_is_done() -> None:
    heard: list[Progress] = []

    def slow(job: Job) -> None:
        meter.current().samples = 3
        wait_for(lambda: heard)
        meter.current().samples = 4

    list(serial_engine().run(slow, [Job(5)], on_progress=heard.append))
    assert heard[0] == Progress(5, samples=3)
    assert heard[-1] == Progress(5, samples=4, done=True)


def test_outside_of_a_task_a_meter_that_nobody_reads_takes_the_counts() -> None:
    meter.current().samples += 1
    assert meter.current() is meter.current()
    assert meter.snapshot() == []


def test_two_threads_have_their_own_meters() -> None:
    barrier = threading.Barrier(2)
    seen: dict[int, list[Progress]] = {}

    def count(index: int) -> None:
        with meter.running(index) as gauge:
            meter.current().samples = index
            barrier.wait(30)
            seen[index] = [gauge.progress()]
            barrier.wait(30)

    threads = [threading.Thread(target=count, args=(index,)) for index in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {1: [Progress(1, samples=1)], 2: [Progress(2, samples=2)]}
    assert meter.snapshot() == []


def test_an_error_that_is_none_of_ours_crosses_with_its_traceback() -> None:
    try:
        raise ValueError("no tarmill error")
    except ValueError as error:
        crossed = pickle.loads(pickle.dumps(as_tarmill_error(error)))
    assert type(crossed) is TarmillError
    assert crossed.kind == "ValueError"
    assert "test_serial.py" in crossed.worker_traceback


def test_a_fact_that_cannot_be_pickled_is_left_out_and_the_error_keeps_its_kind() -> None:
    error = FormatError("bad bytes", shard="a.tar", where=lambda: None)
    crossed = pickle.loads(pickle.dumps(as_tarmill_error(error)))
    assert type(crossed) is FormatError
    assert crossed.shard == "a.tar"
    assert "where" not in crossed.facts


def test_two_tasks_of_one_index_are_refused() -> None:
    with pytest.raises(ValueError, match="2 tasks have 1 different indexes"):
        checked_tasks(perform, [Job(1), Job(1)])
