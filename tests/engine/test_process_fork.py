"""Worker processes that begin as copies of the driver: they do what fresh ones do, and share nothing with it."""

from __future__ import annotations

import sys

import pytest
from support.engineruns import run_driver

HEAD = """
import os, sys, threading
from support.engineruns import by_index
from support.enginetasks import TIMEOUT_S, Job, perform
from support.waiting import wait_for
from tarmill.engine.processes import process_engine

def command_line(pid):
    return open(f"/proc/{pid}/cmdline", "rb").read()

def are_copies(engine):
    return {command_line(worker.pid) == command_line(os.getpid()) for worker in engine._pool.values()}
"""


def said_by(program: str) -> list[str]:
    return run_driver([sys.executable, "-c", HEAD + program]).stdout.splitlines()


def test_copies_do_all_tasks_and_serve_the_next_run() -> None:
    program = """
with process_engine(2, forks=True) as engine:
    for _ in range(2):
        print(sorted(found.result for found in engine.run(perform, [Job(index) for index in range(50)])))
    print(are_copies(engine), len(engine._pool))
"""
    squares = str([index**2 for index in range(50)])
    assert said_by(program) == [squares, squares, "{True} 2"]


def test_no_copy_is_taken_of_a_driver_with_another_thread() -> None:
    program = """
done = threading.Event()
threading.Thread(target=done.wait).start()
with process_engine(1, forks=True) as engine:
    print([found.result for found in engine.run(perform, [Job(3)])], are_copies(engine))
done.set()
"""
    assert said_by(program) == ["[9] {False}"]


@pytest.mark.parametrize(("what", "words"), [("die", "2 SIGKILL sample-0"), ("exit", "2 exit code 3 sample-0")])
def test_a_task_that_kills_its_copy_is_named_and_the_others_are_done(what: str, words: str) -> None:
    program = f"""
with process_engine(2, forks=True) as engine:
    found = by_index(engine.run(perform, [Job(0, {what!r}), *(Job(index) for index in range(1, 6))]))
    error = found.pop(0).error
    print(error.deaths, *[cause for cause in ("SIGKILL", "exit code 3") if cause in str(error)], error.key)
    print([one.result for _, one in sorted(found.items())], False in are_copies(engine))
"""
    assert said_by(program) == [words, "[1, 4, 9, 16, 25] False"]


@pytest.mark.parametrize("what", ["spin", "hold-lock"])
def test_a_copy_that_hangs_is_ended(what: str) -> None:
    program = f"""
with process_engine(2, TIMEOUT_S, forks=True) as engine:
    found = by_index(engine.run(perform, [Job(0, {what!r}), Job(1), Job(2)]))
    print(type(found[0].error).__name__, found[1].result, found[2].result)
"""
    assert said_by(program) == ["TaskTimeout 1 4"]


def test_what_the_driver_has_printed_comes_once_and_what_a_copy_prints_goes_to_standard_error() -> None:
    program = """
print("before")
with process_engine(1, forks=True) as engine:
    print([found.result for found in engine.run(perform, [Job(3, "print")])])
"""
    done = run_driver([sys.executable, "-c", HEAD + program])
    assert done.stdout == "before\n[9]\n"
    assert "noise of a script" in done.stderr


def test_a_copy_holds_no_file_of_the_driver() -> None:
    program = """
ours, theirs = os.pipe()
with process_engine(1, forks=True) as engine:
    engine.prepare(perform)
    wait_for(engine.is_ready)
    os.close(theirs)
    print(os.read(ours, 1), are_copies(engine))
"""
    assert said_by(program) == ["b'' {True}"]
