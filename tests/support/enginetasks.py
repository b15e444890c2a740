"""Tasks for the engine tests: worker processes import this module, so every function is of a module."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from support.waiting import wait_for
from tarmill.engine import meter
from tarmill.errors import FormatError, Interrupted


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


def _die_first_time(job: Job) -> None:
    if len(starts(Path(job.folder), job.index)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def _die_beside_another(job: Job) -> None:
    """Kill the worker each time, at first only when another job runs on it as well."""
    others = [index for index in started(Path(job.folder)) if index != job.index]
    if len(starts(Path(job.folder), job.index)) == 1:
        wait_for(
            lambda: any(
                os.getpid() in starts(Path(job.folder), index)
                for index in others or started(Path(job.folder)) - {job.index}
            )
        )
    os.kill(os.getpid(), signal.SIGKILL)


def _format_error(job: Job) -> None:
    raise FormatError("bad bytes", shard=job.label, offset=512, reason="bad-header")


def _value_error(job: Job) -> None:
    raise ValueError("no tarmill error")


def _spin(job: Job) -> None:
    while True:
        pass


def _hold_interpreter_lock(job: Job) -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")


def _wait_and_tidy(job: Job) -> None:
    """Run until someone stops the task, and leave a mark when the interruption reaches the code."""
    try:
        _spin(job)
    except Interrupted:
        (Path(job.folder) / f"tidied-{job.index}").touch()
        raise


ACTIONS = {
    "wait": _wait_for_go,
    "die": lambda job: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda job: os._exit(3),
    "sys-exit": lambda job: sys.exit("the script has enough"),
    "die-once": _die_first_time,
    "die-beside": _die_beside_another,
    "format-error": _format_error,
    "value-error": _value_error,
    "unpicklable": lambda job: None,
    "spin": _spin,
    "sleep": lambda job: time.sleep(1e6),
    "hold-lock": _hold_interpreter_lock,
    "tidy": _wait_and_tidy,
    "print": lambda job: print("noise of a script", flush=True),
}


def return_function(job: Job) -> object:
    """A result that cannot be pickled."""
    return lambda: job
