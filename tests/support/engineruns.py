"""Running engines in tests: outcomes by task, and drivers in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support.enginetasks import Job
from tarmill.engine.base import Outcome

TESTS = Path(__file__).parents[1]

DRIVER = """
import sys
from support.enginetasks import Job, perform
from tarmill.engine.interrupts import interruptible
from tarmill.engine.{module} import {engine}
from tarmill.errors import Interrupted
try:
    with interruptible(), {engine}({argument!r}{more}) as engine:
        print([outcome.result for outcome in engine.run(perform, {jobs})])
except Interrupted as stop:
    print("stopped", stop.signal_number)
    sys.exit(stop.exit_code)
"""


def start_driver(
    jobs: str, module: str = "processes", engine: str = "process_engine", argument: object = 2, *, forks: bool = False
) -> subprocess.Popen[str]:
    more = ", forks=True" if forks else ""
    code = DRIVER.format(jobs=jobs, module=module, engine=engine, argument=argument, more=more)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=driver_environment(),
        process_group=0,
    )


def run_driver(command: list[str], text: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, input=text, capture_output=True, text=True, check=True, env=driver_environment(), cwd=cwd, timeout=60
    )


def driver_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(TESTS)}


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def by_index(outcomes: Iterable[Outcome[Job, Any]]) -> dict[int, Outcome[Job, Any]]:
    """The outcomes by task; fails if a task ended twice."""
    found: dict[int, Outcome[Job, Any]] = {}
    for outcome in outcomes:
        assert outcome.task.index not in found, "a task ended twice"
        found[outcome.task.index] = outcome
    return found
