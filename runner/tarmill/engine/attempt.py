"""One attempt at a task inside a worker, the same for local processes and Dask: bytes in, bytes out."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from tarmill.engine import meter
from tarmill.engine.base import Progress, R, T, as_tarmill_error
from tarmill.errors import Interrupted, TarmillError
from tarmill.values import valueclass


@valueclass
class Ended:
    """What a worker says of an attempt that came to its end: a result or an error, and the last state of its meter."""

    result: Any
    error: TarmillError | None
    progress: Progress


def pack(function: Callable[[T], R], task: T) -> bytes:
    """Function (by reference) and task, as they travel to a worker."""
    return pickle.dumps((function, task), protocol=5)


def run_packed(payload: bytes, index: int, trace: Callable[[str], None] | None = None) -> bytes:
    """Run what `pack` made; returns the pickled `Ended`. Whatever goes wrong is inside, only Interrupted comes out.

    `trace` gets every key as the task comes to it: see `meter.running`.
    """
    with meter.running(index, trace) as gauge:
        try:
            function, task = pickle.loads(payload)
            result = function(task)
            return pickle.dumps(Ended(result, None, gauge.progress(done=True)), protocol=5)
        except Interrupted:
            raise
        except BaseException as error:  # SystemExit too: a script that exits must not look like a worker that died
            return pickle.dumps(Ended(None, as_tarmill_error(error), gauge.progress()), protocol=5)


def unpack(reply: bytes) -> Ended:
    """What `run_packed` said. The reply comes from a worker of this run, which is trusted as much as the driver."""
    ended = pickle.loads(reply)
    if not isinstance(ended, Ended):
        raise TypeError(f"a worker answered with {type(ended).__name__} where an Ended was expected")
    return ended
