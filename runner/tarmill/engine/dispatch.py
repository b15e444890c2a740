"""Which task goes to which worker, and who is to blame when one dies: pure decisions, for processes and Dask alike.

A dead worker tells nothing about which of its tasks killed it. So all tasks that ran on it become *suspects*, and a
suspect runs again with a worker for itself: nothing else runs beside it. If that worker dies too, the suspect did it. A
task whose worker died `MAX_DEATHS_ALONE` times while it ran alone is given up; the innocent ones just succeed when
their turn comes. (Dask itself counts every task that was on a dead worker, and so fails innocents on a busy worker.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

from tarmill.values import field, valueclass

MAX_DEATHS_ALONE = 2


@valueclass
class Start:
    """An order: start this task on this worker now. `attempt` counts from 1; `alone` tells that a suspect runs."""

    index: int
    worker: str
    attempt: int
    alone: bool


@valueclass(frozen=False)
class _Run:
    attempt: int
    shared: bool  # another task ran on this worker during a part of this run


@valueclass(frozen=False)
class _Worker:
    slots: int
    age: int
    runs: dict[int, _Run] = field(default_factory=dict)
    exclusive: bool = False  # runs a suspect
    reserved: bool = False  # gets nothing new until it is empty, and then a suspect

    @property
    def free(self) -> int:
        return 0 if self.exclusive else self.slots - len(self.runs)


class Dispatcher:
    """Hands tasks to workers that come and go. Tell it what happens; `next_starts` says what to do.

    Args:
        indexes: the tasks, in the order in which they should start.
        max_deaths_alone: a task is given up when its worker died this many times while it ran alone.
    """

    def __init__(self, indexes: Iterable[int], max_deaths_alone: int = MAX_DEATHS_ALONE) -> None:
        self._fresh: deque[int] = deque(indexes)
        self._suspects: deque[int] = deque()
        self._unfinished = set(self._fresh)
        self._workers: dict[str, _Worker] = {}
        self._attempts: dict[int, int] = {}
        self._deaths_alone: dict[int, int] = {}
        self._max_deaths_alone = max_deaths_alone
        self._joined = 0

    @property
    def unfinished(self) -> int:
        """How many tasks have not ended."""
        return len(self._unfinished)

    @property
    def waiting(self) -> int:
        """How many tasks wait for a worker."""
        return len(self._fresh) + len(self._suspects)

    @property
    def workers(self) -> dict[str, int]:
        """The slots of every worker."""
        return {name: worker.slots for name, worker in self._workers.items()}

    def running_on(self, worker: str) -> list[int]:
        """The tasks that run on this worker."""
        known = self._workers.get(worker)
        return list(known.runs) if known else []

    def ran_alone(self, worker: str, index: int) -> bool:
        """Whether this running task has had its worker for itself, so that what the worker suffers is its doing."""
        return not self._workers[worker].runs[index].shared

    def attempts(self, index: int) -> int:
        """How often the task was started."""
        return self._attempts.get(index, 0)

    def deaths(self, index: int) -> int:
        """How many workers died while they ran this task and nothing else."""
        return self._deaths_alone.get(index, 0)

    def join(self, worker: str, slots: int) -> None:
        """A worker is there and can run `slots` tasks at a time; a name that is known already is left as it is."""
        if worker not in self._workers and slots > 0:
            self._joined += 1
            self._workers[worker] = _Worker(slots, self._joined)

    def leave(self, worker: str, *, blame: bool = True, ended: Collection[int] = ()) -> list[int]:
        """A worker is gone. Returns the tasks that are given up now: they have ended.

        Args:
            worker: its name; one that is not known is no error.
            blame: False where it is known that no task was the cause (the worker was retired, or we killed it).
            ended: tasks that ran there and that the caller ends itself, such as the one for which it killed the worker.
        """
        if worker not in self._workers:
            return []
        gone = self._workers.pop(worker)
        given_up: list[int] = []
        for index, run in gone.runs.items():
            if index in ended:
                self._unfinished.discard(index)
                continue
            if blame and not run.shared:
                self._deaths_alone[index] = self.deaths(index) + 1
            if self.deaths(index) >= self._max_deaths_alone:
                self._unfinished.discard(index)
                given_up.append(index)
            elif blame or gone.exclusive:
                self._suspects.append(index)
            else:
                self._fresh.appendleft(index)
        return given_up

    def end(self, index: int, attempt: int) -> bool:
        """An attempt ended, well or with an error. False if it no longer counts: its outcome must be dropped."""
        for worker in self._workers.values():
            run = worker.runs.get(index)
            if run is not None and run.attempt == attempt:
                del worker.runs[index]
                worker.exclusive = False
                self._unfinished.discard(index)
                return True
        return False

    def next_starts(self) -> list[Start]:
        """What to start now; the dispatcher takes it as done.

        Suspects go first, on not more than half of the workers as long as other tasks wait.
        """
        starts: list[Start] = []
        while self._suspects and (name := self._worker_for_suspect()):
            starts.append(self._start(self._suspects.popleft(), name, alone=True))
        self._reserve()
        while self._fresh and (name := self._worker_for_fresh()):
            starts.append(self._start(self._fresh.popleft(), name, alone=False))
        return starts

    def _start(self, index: int, name: str, *, alone: bool) -> Start:
        worker = self._workers[name]
        shared = bool(worker.runs)
        for run in worker.runs.values():
            run.shared = True
        attempt = self._attempts[index] = self.attempts(index) + 1
        worker.runs[index] = _Run(attempt, shared)
        worker.exclusive = alone
        worker.reserved = False
        return Start(index, name, attempt, alone)

    def _for_suspects(self) -> int:
        return sum(worker.exclusive or worker.reserved for worker in self._workers.values())

    def _suspects_may_hold(self) -> int:
        return max(1, len(self._workers) // 2) if self._fresh else len(self._workers)

    def _worker_for_suspect(self) -> str | None:
        """An empty worker; the youngest, because an old process may carry what the last tasks left in it."""
        idle = [(worker.reserved, worker.age, name) for name, worker in self._workers.items() if not worker.runs]
        if not idle:
            return None
        reserved, _age, name = max(idle)
        return name if reserved or self._for_suspects() < self._suspects_may_hold() else None

    def _reserve(self) -> None:
        """Keep as many workers from getting new tasks as suspects wait, so that these get an empty one in the end.

        Chosen anew each time, those that will be empty first: the choice only moves to a worker with less to finish.
        """
        exclusive = sum(worker.exclusive for worker in self._workers.values())
        wanted = max(0, min(len(self._suspects), self._suspects_may_hold() - exclusive))
        open_ones = [worker for worker in self._workers.values() if not worker.exclusive]
        open_ones.sort(key=lambda worker: (len(worker.runs), not worker.reserved))
        for rank, worker in enumerate(open_ones):
            worker.reserved = rank < wanted

    def _worker_for_fresh(self) -> str | None:
        """The worker with the most free slots for its size."""
        best: tuple[float, int, str] | None = None
        for name, worker in self._workers.items():
            if worker.free > 0 and not worker.reserved:
                load = (len(worker.runs) / worker.slots, worker.age, name)
                best = min(best, load) if best else load
        return best[2] if best else None
