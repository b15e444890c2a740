"""Tasks for the engine tests: worker processes import this module, so every function is of a module."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from support.waiting import wait_for
from tarmill.engine import meter
from tarmill.errors import FormatError, Interrupted

TIMEOUT_S = 4.0
"""Of a task without progress: a busy machine may keep a worker from telling of any for some seconds."""


@dataclass(frozen=True)
class Job:
    """A task: what to do, and a folder for marks that the test looks at."""

    index: int
    what: str = "square"
    folder: str = ""

    @property
    def label(self) -> str:
        return f"shard-{self.index}.tar"


def perform(job: Job) -> int:
    """Do what the job says and return the square of its index."""
    if job.folder:
        with open(Path(job.folder) / f"started-{job.index}", "a", encoding="ascii") as marks:
            marks.write(f"{os.getpid()}\n")
    gauge = meter.current()
    gauge.key = f"sample-{job.index}"
    gauge.samples = 7
    ACTIONS.get(job.what, lambda job: None)(job)
    gauge.samples = 10
    return job.index**2


def starts(folder: Path, index: int) -> list[int]:
    """The processes in which a job was started, in order."""
    path = folder / f"started-{index}"
    return [int(line) for line in path.read_text("ascii").split()] if path.exists() else []


def started(folder: Path) -> set[int]:
    """The jobs that were started."""
    return {int(path.name.partition("-")[2]) for path in folder.glob("started-*")}


def _wait_for_go(job: Job) -> None:
    wait_for(lambda: (Path(job.folder) / "go").exists())


def _tidy_until_go(job: Job) -> None:
    """As _wait_for_go, with a mark when the task is stopped before."""
    try:
        _wait_for_go(job)
    except Interrupted:
        (Path(job.folder) / f"tidied-{job.index}").touch()
        raise


def _die_first_time(job: Job) -> None:
    if len(starts(Path(job.folder), job.index)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def _die_beside_another(job: Job) -> None:
    """Kill the worker each time; at first not before another job runs in the same process."""
    folder = Path(job.folder)

    def is_beside_another() -> bool:
        others = [starts(folder, index) for index in started(folder) - {job.index}]
        return any(os.getpid() in pids for pids in others)

    if len(starts(folder, job.index)) == 1:
        wait_for(is_beside_another)
    os.kill(os.getpid(), signal.SIGKILL)


def _wait_for_second_start(job: Job) -> None:
    """At first run until the worker dies of something else; succeed when started again."""
    if len(starts(Path(job.folder), job.index)) == 1:
        _spin(job)


def _wait_for_both(job: Job) -> None:
    """Two tasks that run at the same time or not at all."""
    wait_for(lambda: len(started(Path(job.folder))) == 2)


def _count(job: Job) -> None:
    """Run for longer than a task without progress may, with progress all the time."""
    until_s = time.monotonic() + TIMEOUT_S + 3
    while time.monotonic() < until_s:
        meter.current().read_bytes += 512
        time.sleep(0.01)


def _stubborn(job: Job) -> None:
    """Go on after the interruption, as bad code does."""
    with contextlib.suppress(Interrupted):
        _spin(job)
    (Path(job.folder) / f"tidied-{job.index}").touch()
    _spin(job)


def _start_child_and_sleep(job: Job) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    (Path(job.folder) / "child").write_text(str(child.pid), "ascii")
    time.sleep(1e6)


def _format_error(job: Job) -> None:
    raise FormatError("bad bytes", shard=job.label, offset=512, reason="bad-header")


def _value_error(job: Job) -> None:
    raise ValueError("no tarmill error")


def _spin(job: Job) -> None:
    while True:
        time.sleep(0.001)


def _hold_interpreter_lock(job: Job) -> None:
    """Run in C for ever, without a look at signals."""
    collections.deque(itertools.repeat(None), maxlen=0)


def _wait_and_tidy(job: Job) -> None:
    """Run until someone stops the task, and leave a mark when the interruption reaches the code."""
    try:
        _spin(job)
    except Interrupted:
        (Path(job.folder) / f"tidied-{job.index}").touch()
        raise


ACTIONS = {
    "wait-tidily": _tidy_until_go,
    "wait": _wait_for_go,
    "die": lambda job: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda job: os._exit(3),
    "sys-exit": lambda job: sys.exit("the script has enough"),
    "die-once": _die_first_time,
    "die-beside": _die_beside_another,
    "second-time": _wait_for_second_start,
    "format-error": _format_error,
    "value-error": _value_error,
    "spin": _spin,
    "sleep": lambda job: time.sleep(1e6),
    "hold-lock": _hold_interpreter_lock,
    "wait-for-both": _wait_for_both,
    "count": _count,
    "stubborn": _stubborn,
    "start-child-and-sleep": _start_child_and_sleep,
    "tidy": _wait_and_tidy,
    "print": lambda job: print("noise of a script", flush=True),
}


def return_function(job: Job) -> object:
    """A result that cannot be pickled."""
    return lambda: job
