"""What runs inside a Dask worker: a task in one of its threads, and one monitor thread that watches all of them.

The monitor tells the driver how far the tasks are, stops tasks that were cancelled (the driver was interrupted, or is
gone), and ends tasks that make no progress. A thread cannot be killed. So a hung task first gets an exception, which
reaches any Python code; where that does not help (a call that sleeps or blocks in C), the monitor tells the driver and
ends the whole worker process, whose other tasks run again elsewhere. Code that holds the interpreter lock stops the
monitor too: then a timer in C, of faulthandler, ends the process and writes where it hung to the worker's log.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import os
import pickle
import platform
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import tarmill
from tarmill.engine import cluster_farewell, meter
from tarmill.engine.attempt import Ended, run_packed
from tarmill.engine.watch import Watch, timeout_error
from tarmill.errors import Interrupted, TarmillError, TaskTimeout

TICK_S = 0.25
HUNG_GRACE_S = 3.0  # for the exception to end a hung task, before the process ends
TELL_GRACE_S = 0.5  # for the last words to leave the process
EXIT_HUNG = 75


@dataclass(frozen=True, slots=True)
class Order:
    """A task on its way to one Dask worker.

    Attributes:
        worker_id: of the process that it is meant for; a new one may have taken over the address.
        topic: where the monitor tells about it.
    """

    index: int
    attempt: int
    label: str
    payload: bytes
    key: str
    worker_id: str
    topic: str
    task_timeout_s: float | None
    period_s: float


class WrongWorkerError(Exception):
    """The process at this address is not the one that the task was meant for: that one is gone."""


def execute(order: Order) -> bytes:
    """Run the order in this thread; the pickled `Ended` comes back."""
    from distributed import get_worker

    worker = get_worker()
    if worker.id != order.worker_id:
        raise WrongWorkerError(f"{worker.address} is a new process")
    entry = _Entry(order, worker)
    try:
        try:
            monitor.add(entry)
            return run_packed(order.payload, order.index)
        finally:
            monitor.remove(entry)
    except Interrupted:  # set from the monitor, so it may come as late as in `remove` itself
        monitor.remove(entry)
        error = entry.timeout or TarmillError(f"{order.label}: stopped, since the driver wants it no more")
        return pickle.dumps(Ended(None, error, entry.watch.last))


class _Entry:
    """One task in one thread, as the monitor sees it."""

    def __init__(self, order: Order, worker: Any) -> None:
        self.order = order
        self.worker = worker
        self.thread = threading.get_ident()
        self.lock = threading.Lock()
        self.watch = Watch.begin(order.index, time.monotonic())
        self.told_s = 0.0
        self.interrupted_s: float | None = None
        self.timeout: TaskTimeout | None = None
        self.is_over = False

    @property
    def index(self) -> int:
        return self.order.index

    @property
    def label(self) -> str:
        return self.order.label

    def interrupt(self, now_s: float) -> None:
        """Raise Interrupted in the task's thread, once, and only while it is in the task."""
        with self.lock:
            if not self.is_over and self.interrupted_s is None:
                self.interrupted_s = now_s
                _set_exception(self.thread, Interrupted)

    def end(self) -> None:
        with self.lock:
            self.is_over = True
            _set_exception(self.thread, None)  # one that was set but not yet raised would hit Dask's own code

    def is_cancelled(self) -> bool:
        """Whether Dask has released the task: its future was cancelled, or the client is gone."""
        tasks = getattr(getattr(self.worker, "state", None), "tasks", {})
        state = getattr(tasks.get(self.order.key), "state", "executing")
        return state in ("cancelled", "resumed")

    def tell(self, **message: Any) -> None:
        # Pickled here: keys may hold surrogates, which Dask's own message format refuses.
        self.worker.log_event(self.order.topic, {"tarmill": pickle.dumps((self.index, self.order.attempt, message))})


class _Monitor:
    """One thread per process; it lives while tasks of tarmill run."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, entry: _Entry) -> None:
        with self._lock:
            self._entries.append(entry)
            _arm_last_resort(self._entries)  # before the task can take the interpreter lock for good
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="tarmill-monitor", daemon=True)
                self._thread.start()

    def remove(self, entry: _Entry) -> None:
        entry.end()
        with self._lock:
            if entry in self._entries:
                self._entries.remove(entry)
                entry.tell(left=True)

    def interrupt_all(self) -> None:
        with self._lock:
            entries = list(self._entries)
        for entry in entries:
            entry.interrupt(time.monotonic())

    def _loop(self) -> None:
        while True:
            with self._lock:
                entries = list(self._entries)
                if not entries:
                    self._thread = None
                    faulthandler.cancel_dump_traceback_later()
                    return
            now_s = time.monotonic()
            _arm_last_resort(entries)
            for entry in entries:
                shown = meter.progress_of(entry.thread)
                if shown is not None:
                    entry.watch.hear(shown, now_s)
                self._look_at(entry, now_s)
            time.sleep(TICK_S)

    def _look_at(self, entry: _Entry, now_s: float) -> None:
        order, timeout_s = entry.order, entry.order.task_timeout_s
        if now_s - entry.told_s >= order.period_s:
            entry.told_s = now_s
            entry.tell(progress=entry.watch.last)
        if entry.is_cancelled():
            entry.interrupt(now_s)
        elif timeout_s is not None and entry.watch.stuck_s(now_s) >= timeout_s:
            if entry.timeout is None:
                entry.timeout = timeout_error(entry, entry.watch, timeout_s, now_s)
            entry.interrupt(now_s)
            if now_s - (entry.interrupted_s or now_s) >= HUNG_GRACE_S and not entry.is_over:
                self._end_process(entry)

    def _end_process(self, hung: _Entry) -> None:
        hung.tell(hung=hung.timeout)
        print(f"tarmill: {hung.timeout} (with the whole worker, since it did not listen)", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=2)
        time.sleep(TELL_GRACE_S)
        os._exit(EXIT_HUNG)


monitor = _Monitor()


def _arm_last_resort(entries: list[_Entry]) -> None:
    timeouts = [entry.order.task_timeout_s for entry in entries if entry.order.task_timeout_s is not None]
    if timeouts:
        rest_s = max(timeouts) + HUNG_GRACE_S + 2 * TELL_GRACE_S
        faulthandler.dump_traceback_later(rest_s, exit=True, file=2)


def _set_exception(thread: int, kind: type[BaseException] | None) -> None:
    kind_or_null = ctypes.py_object(kind) if kind is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), kind_or_null)


def installed() -> dict[str, str]:
    """Versions of this process that have to fit together across driver and workers."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "tarmill": tarmill.__version__,
        "format": str(getattr(tarmill, "FORMAT_VERSION", "")),
    }


def introduce(dask_worker: Any) -> tuple[str, dict[str, str]]:
    """Id and versions of the worker in which this runs; from now on it says good-bye when it is told to go."""
    cluster_farewell.install(dask_worker, monitor.interrupt_all)
    return dask_worker.id, installed()


async def probe_here(payload: bytes) -> bytes:
    """Run a packed function on this worker, in a thread of its own so that a slow file system stops nobody."""
    return await asyncio.to_thread(run_packed, payload, -1)
