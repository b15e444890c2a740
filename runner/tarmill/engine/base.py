"""What every engine promises: tasks in, outcomes out, whatever runs them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from tarmill.errors import TarmillError
from tarmill.values import valueclass


class TaskLike(Protocol):
    """What an engine needs to know of a task: a number unique in its run, and a name for people."""

    @property
    def index(self) -> int:
        """Number of the task, unique in one run."""

    @property
    def label(self) -> str:
        """Name for messages, mostly the URL of the shard with the password masked."""


T = TypeVar("T", bound=TaskLike)
R = TypeVar("R")


@valueclass
class Progress:
    """How far a running task is; counts are totals of this attempt, so they fall back to 0 when a task runs again."""

    index: int
    samples: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    key: str = ""
    done: bool = False


@valueclass
class Outcome(Generic[T, R]):
    """How a task ended: with a result or with an error, never with both.

    `attempts` counts how often the task was started; `worker` names who ran the last attempt, for messages.
    """

    task: T
    result: R | None
    error: TarmillError | None
    attempts: int
    worker: str


ProgressCallback = Callable[[Progress], None]


class Engine(Protocol):
    """A place where tasks run. Use it as a context manager, or call `close`."""

    name: str

    @property
    def workers(self) -> int:
        """How many tasks can run at the same time now."""

    def prepare(self, function: Callable[[T], R]) -> None:
        """Begin to start workers, where that is for the engine to do, before their tasks are known.

        Args:
            function: what they are likely to run.
        """

    def is_ready(self) -> bool:
        """Whether a worker that `prepare` began to start is there; it may be asked before `run` is called."""

    def run(
        self, function: Callable[[T], R], tasks: Sequence[T], *, on_progress: ProgressCallback | None = None
    ) -> Generator[Outcome[T, R], None, None]:
        """Run `function(task)` for each task and yield the outcomes as they become ready, in any order.

        Each task ends exactly once. An exception that the function raises is the `error` of that task's outcome and
        ends nothing else. Closing the generator early (`break` under `contextlib.closing`) stops what runs.

        Args:
            function: of a module, so that workers can import it; not from `__main__`.
            tasks: picklable; `index` must be unique among them.
            on_progress: called about twice a second for each running task, and once with `done` when it ended well;
                perhaps from another thread, but never two calls at a time.

        Raises:
            Interrupted: someone asked to stop; all workers have stopped by then.
            TarmillError: the engine itself cannot go on (no worker starts, the scheduler is gone).
        """

    def close(self) -> None:
        """Stop all workers that this engine started. May be called twice."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def checked_tasks(function: Callable[..., Any], tasks: Sequence[T]) -> dict[int, T]:
    """The tasks by index.

    Raises:
        ValueError: two tasks have one index, or workers could not import the function.
    """
    if getattr(function, "__module__", None) == "__main__":
        raise ValueError(f"{function!r} is defined in __main__, which workers do not import: move it to a module")
    by_index = {task.index: task for task in tasks}
    if len(by_index) != len(tasks):
        raise ValueError(f"{len(tasks)} tasks have {len(by_index)} different indexes; each needs its own")
    return by_index


def as_tarmill_error(error: BaseException) -> TarmillError:
    """The error in a form that can cross to another process.

    A TarmillError stays as it is. Anything else is a fault of tarmill or its surroundings (what the user's script
    raises is a ScriptError before it gets here), so the traceback goes along, as text in the fact `worker_traceback`.
    """
    if isinstance(error, TarmillError) and _survives_pickle(error):
        return error
    import traceback

    text = "".join(traceback.format_exception(error))
    if isinstance(error, TarmillError):
        facts = {name: value for name, value in error.facts.items() if isinstance(value, str | int | float | None)}
        safe = type(error)(error.message, **{**facts, "worker_traceback": text})
        return safe if _survives_pickle(safe) else TarmillError(error.message, worker_traceback=text)
    kind = type(error).__name__
    cure = "; this needs more memory per worker, or fewer workers" if isinstance(error, MemoryError) else ""
    return TarmillError(f"unexpected {kind}: {error}{cure}", kind=kind, worker_traceback=text)


def _survives_pickle(error: TarmillError) -> bool:
    import pickle

    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False
