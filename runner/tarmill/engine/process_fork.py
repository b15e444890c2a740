"""A worker process as a copy of the driver: what the driver has imported is there, and costs no CPU a second time.

Only for tasks without code of users, who may rely on a fresh interpreter. And only while the driver has one thread: a
lock that another thread holds at that moment would never be released in the copy.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import NoReturn


def has_one_thread() -> bool:
    """Whether this process has no other thread, not even one that a library has started; False where nobody knows."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:  # not Linux
        return False


class ForkedProcess:
    """A copy of this process, in a process group of its own, that makes one call and ends; to be waited for as a Popen.

    Args:
        call: what it does; SystemExit sets its exit code. Its standard input is empty, its standard output is standard
            error.
        keep: the file descriptors that it needs besides those, all above 2; it has no others.
    """

    def __init__(self, call: Callable[[], None], keep: Collection[int]) -> None:
        self.returncode: int | None = None
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # what is left in a buffer would be written by both
        # a signal that comes before the copy has its own handlers must not be handled there as the driver's
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _live(call, keep, mask)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with suppress(OSError):  # the copy does it too; whoever comes first
            os.setpgid(self.pid, self.pid)

    def poll(self) -> int | None:
        """Give the exit code once the process has ended."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        """Wait for the end, and give the exit code: negative for a signal."""
        code = self._reap(0)
        assert code is not None
        return code

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _live(call: Callable[[], None], keep: Collection[int], mask: Collection[int]) -> NoReturn:
    """Be the copy, from its first moment to its last; nothing of the driver's own code goes on in it."""
    code = 1
    try:
        gc.freeze()  # what the driver holds is never finalized here: its descriptors are other files now
        os.setpgid(0, 0)
        _let_go_of_files(keep)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        call()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)


def _let_go_of_files(keep: Collection[int]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            with suppress(OSError):  # that of the listing itself
                os.close(int(name))
