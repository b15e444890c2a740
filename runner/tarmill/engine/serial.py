"""The engine without workers: every task in this process and thread, one after the other, in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Self

from tarmill.engine import meter
from tarmill.engine.base import Outcome, Progress, ProgressCallback, R, T, as_tarmill_error, checked_tasks
from tarmill.engine.interrupts import raise_if_asked
from tarmill.errors import Interrupted, TarmillError


class SerialEngine:
    """Runs tasks right here. For debugging, for `-` as input, and where one worker is all there is.

    A script that hangs cannot be ended from inside its own process: whoever wants a task timeout takes the process
    engine with one worker.
    """

    name = "serial"
    workers = 1

    def prepare(self, function: Callable[[T], R]) -> None:
        """Nothing to start."""

    def is_ready(self) -> bool:
        """Always."""
        return True

    def run(
        self, function: Callable[[T], R], tasks: Sequence[T], *, on_progress: ProgressCallback | None = None
    ) -> Generator[Outcome[T, R], None, None]:
        """Run the tasks in their order; see `Engine.run`."""
        one_at_a_time = threading.Lock()

        def tell(progress: Progress) -> None:
            if on_progress is not None:
                with one_at_a_time:
                    on_progress(progress)

        reporter = meter.Reporter(tell) if on_progress is not None else None
        try:
            for task in checked_tasks(function, tasks).values():
                outcome, last = _attempt(function, task)
                raise_if_asked()
                if outcome.error is None:
                    tell(last)
                yield outcome
        finally:
            if reporter is not None:
                reporter.stop()

    def close(self) -> None:
        """Nothing to stop."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _attempt(function: Callable[[T], R], task: T) -> tuple[Outcome[T, R], Progress]:
    result: R | None = None
    failure: TarmillError | None = None
    with meter.running(task.index) as gauge:
        try:
            result = function(task)
        except (Interrupted, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # SystemExit too: a library that exits must not end the whole job in silence
            failure = as_tarmill_error(error)
        last = gauge.progress(done=True)
    return Outcome(task, result, failure, 1, "this process"), last


def serial_engine() -> SerialEngine:
    """The engine that runs tasks in this process, in order."""
    return SerialEngine()
