"""Ctrl-C and SIGTERM: the driver stops, its workers too, and nothing stays half done."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.engineruns import start_driver
from support.enginetasks import started, starts
from support.waiting import wait_for

from tarmill.engine.interrupts import interruptible
from tarmill.engine.serial import serial_engine
from tarmill.errors import Interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("what", ["tidy", "sleep", "hold-lock"])
@pytest.mark.parametrize("forks", [False, True])
def test_a_signal_to_the_whole_group_stops_driver_and_workers(
    tmp_path: Path, number: signal.Signals, what: str, forks: bool
) -> None:
    driver = start_driver(f"[Job(index, {what!r}, {str(tmp_path)!r}) for index in range(4)]", forks=forks)
    wait_for(lambda: len(started(tmp_path)) == 2 and starts(tmp_path, 0) and starts(tmp_path, 1))
    os.killpg(driver.pid, number)
    output, _ = driver.communicate(timeout=30)
    assert output == f"stopped {number.value}\n"
    assert driver.returncode == 128 + number
    for index in (0, 1):
        (pid,) = starts(tmp_path, index)
        assert not Path(f"/proc/{pid}").exists(), "a worker outlived its driver"
    if what == "tidy":
        assert (tmp_path / "tidied-0").exists()
        assert (tmp_path / "tidied-1").exists()
    assert len(started(tmp_path)) == 2, "a task was started after the signal"


@pytest.mark.parametrize("forks", [False, True])
def test_a_second_signal_ends_the_driver_at_once_and_workers_follow(tmp_path: Path, forks: bool) -> None:
    driver = start_driver(f"[Job(index, 'stubborn', {str(tmp_path)!r}) for index in range(2)]", forks=forks)
    wait_for(lambda: starts(tmp_path, 0) and starts(tmp_path, 1))
    driver.send_signal(signal.SIGINT)
    wait_for(lambda: (tmp_path / "tidied-0").exists())  # so the first signal is being handled
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=30)
    assert driver.returncode == 130
    for index in (0, 1):
        (pid,) = starts(tmp_path, index)
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]


def test_the_first_signal_raises_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def be_stopped() -> None:
        with interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(lambda: False, what="the signal")

    with pytest.raises(Interrupted) as stop:
        be_stopped()
    assert stop.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def look() -> None:
        with interruptible():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


@dataclass(frozen=True)
class _Task:
    index: int
    label: str = "shard"


def _swallow(task: _Task) -> int:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    except BaseException:  # what a bare `except:` in a user's script does
        return task.index
    raise AssertionError("the signal did not come")


def test_a_stop_that_a_script_swallows_is_raised_between_tasks() -> None:
    with interruptible(), serial_engine() as engine, pytest.raises(Interrupted):
        list(engine.run(_swallow, [_Task(0), _Task(1)]))
