"""Meters: how a running task tells how far it is, at the price of an attribute store.

A task's code asks once for `current()` and then sets `samples`, `key`, `read_bytes`, `written_bytes` in its hot loop.
One reporter thread per process looks at all running meters twice a second. Nothing is locked: a number that is a moment
old does no harm in a progress bar, nor in a watch that waits for seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tarmill.engine.base import Progress
from tarmill.heap import keep_freed_memory

PERIOD_S = 0.5


class Meter:
    """How far one attempt of a task is. `key` is the sample in work now, so that a hang can be named."""

    __slots__ = ("index", "key", "read_bytes", "samples", "written_bytes")

    def __init__(self, index: int = -1) -> None:
        self.index = index
        self.samples = 0
        self.read_bytes = 0
        self.written_bytes = 0
        self.key = ""

    def progress(self, *, done: bool = False) -> Progress:
        """What the meter shows now."""
        return Progress(self.index, self.samples, self.read_bytes, self.written_bytes, self.key, done)


class TracedMeter(Meter):
    """A meter that hands each key to `trace` before the sample is worked on.

    Too dear for every task; made for one that has killed a worker and runs again, to know the very sample.
    """

    __slots__ = ("_key", "_trace")

    def __init__(self, index: int, trace: Callable[[str], None]) -> None:
        self._key = ""
        self._trace = trace
        super().__init__(index)

    @property
    def key(self) -> str:
        """The sample in work now."""
        return self._key

    @key.setter
    def key(self, key: str) -> None:
        self._key = key
        self._trace(key)


_here = threading.local()
_running: dict[int, Meter] = {}  # by thread; one key is written by one thread only


def current() -> Meter:
    """The meter of the task that runs in this thread; outside of a task one that nobody reads.

    A thread that a task starts for itself has no meter of its own: give it the task's.
    """
    meter: Meter | None = getattr(_here, "meter", None)
    if meter is None:
        meter = _here.meter = Meter()
    return meter


@contextmanager
def running(index: int, trace: Callable[[str], None] | None = None) -> Iterator[Meter]:
    """Give this thread a fresh meter for the task with that index, which reporters see as long as the block lasts.

    Args:
        index: of the task.
        trace: is called with every key that the task sets; slows the task down.
    """
    keep_freed_memory()
    thread = threading.get_ident()
    meter = _here.meter = _running[thread] = Meter(index) if trace is None else TracedMeter(index, trace)
    try:
        yield meter
    finally:
        _running.pop(thread, None)
        _here.meter = None


def snapshot() -> list[Progress]:
    """What all meters that run in this process show now."""
    return [meter.progress() for meter in list(_running.values())]


def progress_of(thread: int) -> Progress | None:
    """What the meter of the task in that thread shows, if one runs there."""
    meter = _running.get(thread)
    return meter.progress() if meter is not None else None


class Reporter:
    """A thread that hands every running meter's progress to `emit`, every `period_s` seconds, until `stop`."""

    def __init__(self, emit: Callable[[Progress], None], period_s: float = PERIOD_S) -> None:
        self._emit = emit
        self._period_s = period_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tarmill-meter", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while not self._stopped.wait(self._period_s):
            for progress in snapshot():
                self._emit(progress)

    def stop(self) -> None:
        """End the thread; no call of `emit` comes after this returns."""
        self._stopped.set()
        self._thread.join()
