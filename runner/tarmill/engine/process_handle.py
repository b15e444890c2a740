"""The driver's side of one local worker process: start it, talk to it, end it with everything that it started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tarmill.engine.channel import Channel
from tarmill.engine.process_fork import ForkedProcess, has_one_thread
from tarmill.engine.process_worker import GRACE_S, main, read_trace

if TYPE_CHECKING:
    import subprocess

_MAIN = "import sys; sys.path[:] = {path!r}; from tarmill.engine.process_worker import main; main({fds}, {module!r})"


class WorkerProcess:
    """A worker process in a process group of its own, so that what a script started can be ended with it.

    The group also keeps the terminal's Ctrl-C from it: the driver decides who stops.

    Args:
        lifeline_fd: read end of a pipe whose write end only the driver holds.
        module: what its first task is likely to need, for it to import while it waits for that; "" for nothing.
        forks: it may begin as a copy of this process, where that is safe.
    """

    def __init__(self, lifeline_fd: int, module: str = "", forks: bool = False) -> None:
        self._trace_fd = os.memfd_create("tarmill-trace") if hasattr(os, "memfd_create") else -1
        ours, theirs = socket.socketpair()
        with theirs:
            fds = (theirs.fileno(), lifeline_fd, self._trace_fd)
            self._process: subprocess.Popen[bytes] | ForkedProcess
            if forks and has_one_thread():
                self._process = ForkedProcess(lambda: main(*fds), fds)
            else:
                self._process = _fresh_interpreter(fds, module)
        self.channel = Channel(ours.detach())
        self.pid = self._process.pid
        self.name = f"process {self.pid}"
        self._pidfd = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else -1

    @property
    def sentinel(self) -> int:
        """A file descriptor that can be read once the process has ended; its channel where the system has no better."""
        return self._pidfd if self._pidfd >= 0 else self.channel.fd

    def has_ended(self) -> bool:
        """Whether the process has ended; it is not reaped, so that its group's number stays its own."""
        if self._pidfd < 0:
            return self._process.poll() is not None
        return bool(readable([self._pidfd], 0))

    def receive_waiting(self) -> list[Any]:
        """The messages that can be read without waiting for a new one."""
        messages = []
        with contextlib.suppress(EOFError):
            while readable([self.channel.fd], 0):
                messages.append(self.channel.receive())
        return messages

    def send_task(self, index: int, payload: bytes, *, is_traced: bool) -> None:
        """Give the worker a task; with `is_traced` the very sample is known if it dies, which costs time.

        Raises:
            OSError: the worker is gone.
        """
        if self._trace_fd >= 0:
            os.ftruncate(self._trace_fd, 0)
        self.channel.send((index, payload, is_traced))

    def last_traced_key(self) -> str:
        """The sample in which a traced task was last, as it left it before it died; "" if there is none."""
        return read_trace(self._trace_fd)

    def terminate(self) -> None:
        """Ask the worker to stop what it runs, clean up and end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def destroy(self) -> int:
        """End the process group at once, if it still lives, and reap the process.

        Returns:
            the exit code as `subprocess` has it: negative for a signal.
        """
        if self._process.returncode is None:
            self.kill()
        code = self._process.wait()
        self.channel.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._trace_fd >= 0:
            os.close(self._trace_fd)
            self._trace_fd = -1
        return code


def _fresh_interpreter(fds: tuple[int, int, int], module: str) -> subprocess.Popen[bytes]:
    import subprocess  # which a driver whose workers are its copies does without

    path = [entry or os.getcwd() for entry in sys.path]
    code = _MAIN.format(path=path, fds=", ".join(map(str, fds)), module=module)
    return subprocess.Popen(
        # -P: a file in the current folder must not stand in for a module before the path is set
        [sys.executable, *subprocess._args_from_interpreter_flags(), "-P", "-c", code],  # type: ignore[attr-defined]
        stdin=subprocess.DEVNULL,
        # what a script prints must not mix with data on the driver's standard output
        stdout=2 if _has_standard_error() else subprocess.DEVNULL,
        pass_fds=[fd for fd in fds if fd >= 0],
        process_group=0,
    )


def stop(idle: Iterable[WorkerProcess], busy: Iterable[WorkerProcess], grace_s: float = GRACE_S) -> None:
    """End workers: those with a task get SIGTERM, so that they undo what is half done, and SIGKILL after the grace."""
    idle, busy = list(idle), list(busy)
    deadline_s = time.monotonic() + grace_s
    try:
        for worker in idle:
            worker.channel.close()
        for worker in busy:
            worker.terminate()
        left = [*busy, *idle]
        while left and (rest_s := deadline_s - time.monotonic()) > 0:
            readable([worker.sentinel for worker in left if worker.sentinel >= 0], min(rest_s, 0.1))
            left = [worker for worker in left if not worker.has_ended()]
    finally:
        for worker in (*busy, *idle):
            worker.destroy()


def readable(fds: Iterable[int], timeout_s: float | None) -> set[int]:
    """Which of the descriptors can be read, or have reached their end; waits for the first, at most the timeout."""
    poll = select.poll()
    for fd in set(fds):
        poll.register(fd, select.POLLIN)
    return {fd for fd, _event in poll.poll(None if timeout_s is None else max(0, timeout_s) * 1000)}


def _has_standard_error() -> bool:
    try:
        os.fstat(2)
    except OSError:
        return False
    return True
