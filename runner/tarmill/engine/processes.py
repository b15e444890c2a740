"""The engine of one machine: worker processes, one task at a time in each.

Processes start when tasks need them, never more than there are tasks, and stay for the next `run`. One that dies is
replaced; `dispatch` decides what becomes of its task. Bytes of samples never travel: a task goes out, a small result
comes back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Generic, Self

from tarmill.engine.attempt import Ended, pack, unpack
from tarmill.engine.base import Outcome, Progress, ProgressCallback, R, T, checked_tasks
from tarmill.engine.cores import usable_cores
from tarmill.engine.dispatch import Dispatcher, Start
from tarmill.engine.process_handle import WorkerProcess, readable, stop
from tarmill.engine.watch import Watch, death_error, timeout_error
from tarmill.errors import TarmillError

MAX_FAILED_STARTS = 3
HUNG_GRACE_S = 3.0  # from SIGTERM to SIGKILL for a task that hangs
TICK_S = 1.0


class ProcessEngine:
    """Runs tasks in processes of this machine.

    Args:
        workers: how many at most; None = as many as this process may use cores.
        task_timeout_s: a task whose meter does not change for this long is ended with TaskTimeout; None = never.
        forks: workers may begin as copies of this process, where that is safe: the tasks run no code of users.
    """

    name = "processes"

    def __init__(self, workers: int | None = None, task_timeout_s: float | None = None, *, forks: bool = False) -> None:
        self.workers = workers if workers is not None else usable_cores()
        if self.workers < 1:
            raise ValueError(f"{self.workers} workers cannot run anything")
        self._task_timeout_s = task_timeout_s
        self._forks = forks
        self._pool: dict[str, WorkerProcess] = {}
        self._lifeline: tuple[int, int] | None = None
        self._current: _Run[Any, Any] | None = None
        self._starting: set[str] = set()

    def prepare(self, function: Callable[[T], R]) -> None:
        """Start all workers now; see `Engine.prepare`."""
        for _ in range(self.workers - len(self._pool)):
            self._start_worker(function.__module__)

    def is_ready(self) -> bool:
        """Whether a worker waits for its first task, or has something else to tell."""
        return bool(readable([worker.channel.fd for worker in self._pool.values()], 0))

    def run(
        self, function: Callable[[T], R], tasks: Sequence[T], *, on_progress: ProgressCallback | None = None
    ) -> Generator[Outcome[T, R], None, None]:
        """Run the tasks on the worker processes; see `Engine.run`."""
        if self._current is not None:
            raise RuntimeError("one engine does one run at a time")
        run = _Run(self, function, checked_tasks(function, tasks), on_progress, self._task_timeout_s)
        self._current = run
        finished = False
        try:
            yield from run.outcomes()
            finished = True
        finally:
            if not finished:
                self.close()
            self._current = None

    def close(self) -> None:
        """End all worker processes, and wait for their end: at most GRACE_S where one does not listen."""
        self._stop_all(busy=set(self._current.jobs) if self._current is not None else set())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_worker(self, module: str = "") -> None:
        if self._lifeline is None:
            self._lifeline = os.pipe()
        worker = WorkerProcess(self._lifeline[0], module, self._forks)
        self._pool[worker.name] = worker
        self._starting.add(worker.name)

    def _stop_all(self, busy: set[str]) -> None:
        pool, self._pool = self._pool, {}
        self._starting.clear()
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            # A worker whose start was cut short by an interrupt is in no list: the lifeline reaches it.
            os.close(lifeline[0])
            if busy:
                os.close(lifeline[1])
        stop(
            [worker for name, worker in pool.items() if name not in busy],
            [worker for name, worker in pool.items() if name in busy],
        )
        if lifeline is not None and not busy:
            os.close(lifeline[1])


class _Job:
    """A task on a worker, from its start to its end."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.watch = Watch.begin(start.index, time.monotonic())
        self.hung: TarmillError | None = None
        self.kill_at_s = 0.0
        self.never_began = False
        """Whether its worker was dead before the task came to it, so that the task is not to blame."""


class _Run(Generic[T, R]):
    """One call of `ProcessEngine.run`."""

    def __init__(
        self,
        engine: ProcessEngine,
        function: Callable[[T], R],
        tasks: dict[int, T],
        on_progress: ProgressCallback | None,
        task_timeout_s: float | None,
    ) -> None:
        self.engine = engine
        self.function = function
        self.tasks = tasks
        self.on_progress = on_progress or (lambda progress: None)
        self.task_timeout_s = task_timeout_s
        self.dispatcher = Dispatcher(tasks)
        self.jobs: dict[str, _Job] = {}  # by the name of the worker
        self.starting = engine._starting
        self.failed_starts = 0

    def outcomes(self) -> Generator[Outcome[T, R], None, None]:
        for name in self.engine._pool.keys() - self.starting:
            self.dispatcher.join(name, 1)
        while self.dispatcher.unfinished or self.jobs:
            self._start_workers()
            self._start_tasks()
            ended = self._turn()
            self._start_tasks()  # before the yield: workers need not wait until the caller comes back
            yield from ended

    def _start_workers(self) -> None:
        wanted = min(self.engine.workers, self.dispatcher.unfinished)
        for _ in range(wanted - len(self.engine._pool)):
            self.engine._start_worker()

    def _start_tasks(self) -> None:
        for start in self.dispatcher.next_starts():
            self._start_task(start)

    def _start_task(self, start: Start) -> None:
        payload = pack(self.function, self.tasks[start.index])
        self.jobs[start.worker] = _Job(start)
        try:
            self.engine._pool[start.worker].send_task(start.index, payload, is_traced=start.attempt > 1)
        except OSError:  # it died while it waited: the next turn finds that out
            self.jobs[start.worker].never_began = True

    def _turn(self) -> list[Outcome[T, R]]:
        """Wait until something happens, and return the outcomes that came of it."""
        pool = dict(self.engine._pool)
        by_fd = {worker.channel.fd: worker for worker in pool.values()}
        by_fd.update({worker.sentinel: worker for worker in pool.values()})
        active = {by_fd[fd].name for fd in readable(by_fd, self._wait_s())}
        outcomes: list[Outcome[T, R]] = []
        for name in active:
            for message in pool[name].receive_waiting():
                outcomes += self._hear(name, message)
            if pool[name].has_ended():
                outcomes += self._bury(name)
        self._judge_hung(set(self.jobs) - active)
        return outcomes

    def _wait_s(self) -> float:
        """Until the next watch may run out; that a watch is looked at too early does no harm."""
        now_s = time.monotonic()
        wait_s = TICK_S
        for job in self.jobs.values():
            if job.hung is not None:
                wait_s = min(wait_s, job.kill_at_s - now_s)
            elif self.task_timeout_s is not None:
                wait_s = min(wait_s, self.task_timeout_s - job.watch.stuck_s(now_s))
        return max(0.001, wait_s)

    def _hear(self, name: str, message: Any) -> list[Outcome[T, R]]:
        job = self.jobs.get(name)
        if isinstance(message, Progress):
            if job is not None and message.index == job.start.index:
                job.watch.hear(message, time.monotonic())
                self.on_progress(job.watch.last)
        elif isinstance(message, bytes) and job is not None:
            return self._end(name, job, unpack(message))
        else:
            self.starting.discard(name)
            self.failed_starts = 0
            self.dispatcher.join(name, 1)
        return []

    def _end(self, name: str, job: _Job, ended: Ended) -> list[Outcome[T, R]]:
        del self.jobs[name]
        if job.hung is None:
            self.dispatcher.end(job.start.index, job.start.attempt)
        if ended.error is None:
            self.on_progress(ended.progress)
        return [self._outcome(job, ended.result, ended.error)]

    def _outcome(self, job: _Job, result: R | None, error: TarmillError | None) -> Outcome[T, R]:
        start = job.start
        return Outcome(self.tasks[start.index], result, error, start.attempt, start.worker)

    def _bury(self, name: str) -> list[Outcome[T, R]]:
        """A worker process has ended: by itself, by the system, or since we killed it."""
        worker = self.engine._pool.pop(name)
        key = worker.last_traced_key()
        code = worker.destroy()
        job = self.jobs.pop(name, None)
        given_up = self.dispatcher.leave(name, blame=job is None or not job.never_began)
        if name in self.starting:
            self.starting.discard(name)
            self.failed_starts += 1
            if self.failed_starts >= MAX_FAILED_STARTS:
                raise TarmillError(
                    f"{self.failed_starts} worker processes in a row ended with exit code {code} before they were "
                    "ready for a task; what they wrote on standard error tells why",
                    exit_code_of_worker=code,
                )
        if job is not None and job.hung is not None:
            return [self._outcome(job, None, job.hung)]
        if job is not None and given_up:
            index = job.start.index
            error = death_error(self.tasks[index], self.dispatcher.deaths(index), key or job.watch.last.key, code)
            return [self._outcome(job, None, error)]
        return []

    def _judge_hung(self, quiet: set[str]) -> None:
        """End workers whose task makes no progress.

        One that has just sent something is judged in a later turn, when all that it sent was read: the driver may have
        been busy elsewhere for long.
        """
        now_s = time.monotonic()
        for name in quiet:
            job = self.jobs[name]
            if job.hung is not None:
                if now_s >= job.kill_at_s:
                    self.engine._pool[name].kill()
            elif self.task_timeout_s is not None and job.watch.stuck_s(now_s) >= self.task_timeout_s:
                job.hung = timeout_error(self.tasks[job.start.index], job.watch, self.task_timeout_s, now_s)
                job.kill_at_s = now_s + HUNG_GRACE_S
                self.dispatcher.leave(name, ended={job.start.index})
                self.engine._pool[name].terminate()


def process_engine(
    workers: int | None = None, task_timeout_s: float | None = None, *, forks: bool = False
) -> ProcessEngine:
    """The engine that runs tasks in processes of this machine; see ProcessEngine for the arguments."""
    return ProcessEngine(workers, task_timeout_s, forks=forks)
