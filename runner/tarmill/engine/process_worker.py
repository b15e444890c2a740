"""What runs inside a local worker process: take a task, run it in the main thread, answer; nothing else.

Started as `python -c`, never through the driver's `__main__`; a fresh interpreter imports this module only, and what a
task needs is imported with the task. Where tasks run no code of users it may be a copy of the driver (`process_fork`).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from importlib import import_module
from types import FrameType

from tarmill.engine import meter
from tarmill.engine.attempt import run_packed
from tarmill.engine.base import Progress
from tarmill.engine.channel import Channel
from tarmill.errors import Interrupted

GRACE_S = 3.0
MAX_TRACE_BYTES = 4096


class _Worker:
    def __init__(self, channel: Channel, trace_fd: int) -> None:
        self.channel = channel
        self.trace_fd = trace_fd
        self.may_stop_here = False  # in a task or waiting for one: an exception does no harm
        self.stopping = False

    def on_terminate(self, number: int, _frame: FrameType | None) -> None:
        self.stopping = True
        if self.may_stop_here:
            self.may_stop_here = False
            raise Interrupted(number)

    def serve(self) -> None:
        reporting = False
        while not self.stopping:
            try:
                self.may_stop_here = not self.stopping
                index, payload, is_traced = self.channel.receive()
                if not reporting:
                    meter.Reporter(self.tell)
                    reporting = True
                reply = run_packed(payload, index, self.trace if is_traced else None)
            finally:
                self.may_stop_here = False
            self.channel.send(reply)

    def trace(self, key: str) -> None:
        write_trace(self.trace_fd, key)

    def tell(self, progress: Progress) -> None:
        try:
            self.channel.send(progress)
        except OSError:  # the driver is gone; the lifeline tells that too
            return


def main(channel_fd: int, lifeline_fd: int, trace_fd: int, module: str = "") -> None:
    """Serve the driver at the other end of the channel until it closes the channel, ends, or sends SIGTERM.

    Args:
        channel_fd, lifeline_fd, trace_fd: file descriptors; that of the trace is -1 where the system has no memory
            files.
        module: to be imported while there is nothing else to do.
    """
    # The terminal's Ctrl-C is the driver's to judge. Not SIG_IGN: programs that a script starts would inherit that.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    worker = _Worker(Channel(channel_fd), trace_fd)
    signal.signal(signal.SIGTERM, worker.on_terminate)
    for fd in (channel_fd, lifeline_fd, trace_fd):
        if fd >= 0:
            os.set_inheritable(fd, False)  # what a script starts must not keep them open
    threading.Thread(target=_end_with_driver, args=(lifeline_fd,), name="tarmill-lifeline", daemon=True).start()
    try:
        worker.channel.send("ready")
        if module:
            import_module(module)
        worker.serve()
    except Interrupted as stop:
        sys.exit(stop.exit_code)
    except (EOFError, ConnectionError):
        return  # the driver needs this worker no more
    finally:
        gc.freeze()  # all memory goes with the process: a last search for garbage finds nothing


def write_trace(fd: int, key: str) -> None:
    """Leave the key where the driver finds it even if this process dies the next moment."""
    if fd >= 0:
        text = key.encode("utf-8", "surrogateescape")[:MAX_TRACE_BYTES]
        os.pwrite(fd, len(text).to_bytes(4, "big") + text, 0)


def read_trace(fd: int) -> str:
    """The key that was left there last; "" if none was."""
    if fd < 0:
        return ""
    found = os.pread(fd, 4 + MAX_TRACE_BYTES, 0)
    return found[4 : 4 + int.from_bytes(found[:4], "big")].decode("utf-8", "surrogateescape")


def _end_with_driver(lifeline_fd: int) -> None:
    """Wait for the end of the driver, even by SIGKILL; then stop the task, and after a grace everything it started."""
    os.read(lifeline_fd, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(os.getpgid(0), signal.SIGKILL)
