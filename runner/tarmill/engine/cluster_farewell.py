"""A Dask worker that is told to go says so first, so that no task is blamed for its end.

`dask worker --no-nanny` just drops its connection at SIGTERM, which looks like a crash. On preemptible nodes that would
make killers of innocent tasks. So the first visit of tarmill puts a handler in front of Dask's: it tells the driver,
stops the tasks so that they undo what is half done, and then lets Dask end the worker as before.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

TOPIC = "tarmill-farewell"
GRACE_S = 0.3  # for the message to leave and the tasks to unwind; Kubernetes gives 30 s, spot nodes often 2 minutes

_installed = False


def install(worker: Any, stop_tasks: Callable[[], None]) -> None:
    """Once per process, and only where Python may take signals and Dask does: in the main thread of `dask worker`."""
    global _installed
    dasks = signal.getsignal(signal.SIGTERM)
    if _installed or not callable(dasks) or threading.current_thread() is not threading.main_thread():
        return
    _installed = True
    loop = worker.loop.asyncio_loop
    asked = False

    def leave() -> None:
        worker.log_event(TOPIC, {"worker": worker.address})
        stop_tasks()
        loop.call_later(GRACE_S, dasks, signal.SIGTERM, None)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            dasks(number, frame)
        asked = True
        loop.call_soon_threadsafe(leave)

    signal.signal(signal.SIGTERM, on_sigterm)
