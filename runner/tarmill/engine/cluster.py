"""The engine of many machines: any Dask cluster, of which Dask moves the messages and tarmill decides the places.

Tasks are pinned: each goes to the worker that `dispatch` chose, never more than a worker has threads, and never again
by Dask's own decision. So a lost worker is handled exactly as a lost local process. The scheduler sees small orders
and, where the workers can be reached directly, not even the results.
"""

from __future__ import annotations

import pickle
import queue
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Self

from tarmill.engine import cluster_members as members
from tarmill.engine.attempt import Ended, pack, unpack
from tarmill.engine.base import Outcome, Progress, ProgressCallback, R, T, as_tarmill_error, checked_tasks
from tarmill.engine.cluster_connect import CONNECT_TIMEOUT_S, connect
from tarmill.engine.cluster_worker import Order, WrongWorkerError, execute, introduce
from tarmill.engine.dispatch import Dispatcher, Start
from tarmill.engine.meter import PERIOD_S
from tarmill.engine.watch import Watch, death_error, timeout_error
from tarmill.errors import ClusterError, NoWorkersError, TarmillError, TaskTimeout

NO_WORKER_TIMEOUT_S = 300.0
LOST_SCHEDULER_S = 30.0
STOP_GRACE_S = 3.0
REPORTS_PER_S = 200  # of all workers together: what a scheduler passes on without being busy with it


class DaskEngine:
    """Runs tasks on the workers of a Dask cluster that somebody else started; it is left running.

    Args:
        scheduler: HOST:PORT, an address with a scheme, or a scheduler file.
        tls_ca_file, tls_cert, tls_key: PEM files; with a CA file HOST:PORT means tls://.
        task_timeout_s: a task whose meter does not change for this long is ended with TaskTimeout; None = never. A task
            that does not even listen to that costs its whole worker process, whose other tasks run again.
        no_worker_timeout_s: how long to wait while there is no worker at all; None = for ever.

    Raises:
        UsageError: Dask is not installed, or the address cannot be read.
        ClusterError: no scheduler answers.
    """

    name = "dask"

    def __init__(
        self,
        scheduler: str,
        *,
        tls_ca_file: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        task_timeout_s: float | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        no_worker_timeout_s: float | None = NO_WORKER_TIMEOUT_S,
    ) -> None:
        self.client = connect(
            scheduler, tls_ca_file=tls_ca_file, tls_cert=tls_cert, tls_key=tls_key, timeout_s=connect_timeout_s
        )
        self.address = str(self.client.scheduler.address)
        self.task_timeout_s = task_timeout_s
        self.no_worker_timeout_s = no_worker_timeout_s
        self.known_workers = 0
        """How many workers could take tasks when it was last heard; asks nobody, unlike `workers`."""
        self._requirements: list[bytes] = []

    @property
    def workers(self) -> int:
        """Threads of all workers of the cluster now."""
        return sum(self.client.nthreads().values())

    def check_versions(self) -> None:
        """Compare Python, tarmill and format version of the driver with every worker's.

        Raises:
            UsageError: the first worker that differs, by address; one that joins later and differs gets no tasks.
        """
        answers = self.client.sync(members.broadcast, self.client, introduce)
        for worker, answer in sorted(answers.items()):
            error = members.judge_versions(worker, answer if isinstance(answer, BaseException) else answer[1])
            if error is not None:
                raise error

    def probe(self, function: Callable[[Any], R], argument: Any) -> dict[str, R | TarmillError]:
        """Run `function(argument)` once in every worker, beside its tasks: {worker: result or error}."""
        answers: dict[str, Ended] = self.client.sync(members.probe, self.client, pack(function, argument))
        return {worker: ended.error or ended.result for worker, ended in answers.items()}

    def require(self, function: Callable[[Any], Any], argument: Any) -> None:
        """As `probe`, for what must not fail; workers that join later must pass it too before they get tasks.

        Raises:
            TarmillError: what the function raised on the first worker, with the fact `worker`.
        """
        for worker, answer in sorted(self.probe(function, argument).items()):
            if isinstance(answer, TarmillError):
                facts = {**answer.facts, "worker": worker}
                raise type(answer)(f"on worker {worker}: {answer.message}", **facts) from answer
        self._requirements.append(pack(function, argument))

    def prepare(self, function: Callable[[T], R]) -> None:
        """Nothing to start: whoever runs the cluster has done it."""

    def is_ready(self) -> bool:
        """Whether `run` need not wait for a worker."""
        return self.workers > 0

    def run(
        self, function: Callable[[T], R], tasks: Sequence[T], *, on_progress: ProgressCallback | None = None
    ) -> Generator[Outcome[T, R], None, None]:
        """Run the tasks on the cluster; see `Engine.run`."""
        run = _Run(self, function, checked_tasks(function, tasks), on_progress)
        run.begin(self._requirements)
        try:
            yield from run.outcomes()
        finally:
            run.finish()

    def close(self) -> None:
        """Disconnect; the cluster goes on."""
        with suppress(TimeoutError, OSError):
            self.client.close(timeout=2)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Job:
    """A task on a worker, from its order to its end."""

    def __init__(self, start: Start, future: Any) -> None:
        self.start = start
        self.future = future
        self.watch = Watch.begin(start.index, time.monotonic())
        self.hung: TaskTimeout | None = None


class _Run(Generic[T, R]):
    """One call of `DaskEngine.run`. The client's event loop puts events into a queue; this thread decides."""

    def __init__(
        self, engine: DaskEngine, function: Callable[[T], R], tasks: dict[int, T], on_progress: ProgressCallback | None
    ) -> None:
        self.engine = engine
        self.client = engine.client
        self.function = function
        self.tasks = tasks
        self.on_progress = on_progress or (lambda progress: None)
        self.topic = f"tarmill-{uuid.uuid4().hex[:12]}"
        self.dispatcher = Dispatcher(tasks)
        self.jobs: dict[tuple[int, int], _Job] = {}  # by index and attempt
        self.ids: dict[str, str] = {}
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.no_worker_since_s = time.monotonic()
        self.on_workers: set[tuple[int, int]] = set()  # attempts whose code has not left its worker yet

    def begin(self, requirements: list[bytes]) -> None:
        self.client.subscribe_topic(self.topic, lambda event: self.events.put(event[1]))
        self.members = members.Members(self.client, requirements, self.events.put)
        self.members.start()

    def outcomes(self) -> Generator[Outcome[T, R], None, None]:
        while self.dispatcher.unfinished:
            self._submit_all()
            ended = self._turn()
            self._submit_all()  # before the yield: workers need not wait until the caller comes back
            yield from ended
            self._check_cluster()

    def finish(self) -> None:
        """Cancel what runs, and give its code a moment to undo what is half done and to leave the workers."""
        self.members.stop()
        deadline_s = time.monotonic() + STOP_GRACE_S
        self._cancel([job.future for job in self.jobs.values()])
        self.jobs.clear()
        while self.on_workers and (rest_s := deadline_s - time.monotonic()) > 0:
            with suppress(queue.Empty):
                self._hear(self.events.get(timeout=rest_s))
        if self.client.status == "running":
            self.client.unsubscribe_topic(self.topic)

    def _submit_all(self) -> None:
        for start in self.dispatcher.next_starts():
            self._submit(start)

    def _submit(self, start: Start) -> None:
        task = self.tasks[start.index]
        key = f"{self.topic}-{start.index}-{start.attempt}"
        order = Order(
            index=start.index,
            attempt=start.attempt,
            label=task.label,
            payload=pack(self.function, task),
            key=key,
            worker_id=self.ids[start.worker],
            topic=self.topic,
            task_timeout_s=self.engine.task_timeout_s,
            period_s=0 if start.alone else max(PERIOD_S, len(self.ids) / REPORTS_PER_S),
        )
        future = self.client.submit(
            execute, order, key=key, workers=[start.worker], allow_other_workers=False, pure=False, retries=0
        )
        self.jobs[start.index, start.attempt] = _Job(start, future)
        self.on_workers.add((start.index, start.attempt))
        self.client.loop.add_callback(self._collect, start, future)

    async def _collect(self, start: Start, future: Any) -> None:
        """In the client's event loop: wait for the reply of one attempt and pass it on."""
        try:
            (reply,) = await self.client.gather([future], direct=self.members.direct, asynchronous=True)
            self.events.put((start, unpack(reply)))
        except BaseException as error:
            self.events.put((start, error))

    def _turn(self) -> list[Outcome[T, R]]:
        """Wait until something happens, and return the outcomes that came of all that has happened by then."""
        outcomes: list[Outcome[T, R]] = []
        with suppress(queue.Empty):
            event = self.events.get(timeout=members.ASK_EVERY_S)
            while True:
                outcomes += self._hear(event)
                event = self.events.get_nowait()
        return outcomes

    def _hear(self, event: Any) -> list[Outcome[T, R]]:
        match event:
            case members.Joined(worker, worker_id, slots):
                self.ids[worker] = worker_id
                self.dispatcher.join(worker, slots)
                self.engine.known_workers = len(self.ids)
            case members.Gone(worker, retired):
                return self._lose(worker, blame=not retired)
            case members.Unreachable(since_s):
                if since_s > LOST_SCHEDULER_S:
                    raise self._lost_scheduler()
            case {"tarmill": told}:
                self._hear_monitor(*pickle.loads(told))
            case (Start() as start, reply):
                return self._end(start, reply)
        return []

    def _hear_monitor(self, index: int, attempt: int, message: dict[str, Any]) -> None:
        job = self.jobs.get((index, attempt))
        if "left" in message:
            self.on_workers.discard((index, attempt))
        elif job is not None and "hung" in message:
            job.hung = message["hung"]
        elif job is not None and "progress" in message:
            progress: Progress = message["progress"]
            job.watch.hear(progress, time.monotonic())
            self.on_progress(progress)

    def _end(self, start: Start, reply: Ended | BaseException) -> list[Outcome[T, R]]:
        job = self.jobs.get((start.index, start.attempt))
        if job is None:
            return []  # of an attempt that was given up
        if isinstance(reply, WrongWorkerError):
            self.members.forget(start.worker)
            return self._lose(start.worker, blame=True)
        if isinstance(reply, BaseException):
            kind = type(reply).__name__
            if kind == "KilledWorker":
                return []  # with Dask's `allowed-failures: 0`; the loss of the worker is an event of its own
            if kind in ("CancelledError", "FutureCancelledError"):
                raise self._lost_scheduler()
            reply = Ended(None, as_tarmill_error(reply), job.watch.last)
        del self.jobs[start.index, start.attempt]
        self.dispatcher.end(start.index, start.attempt)
        if reply.error is None:
            self.on_progress(reply.progress)
        return [Outcome(self.tasks[start.index], reply.result, reply.error, start.attempt, start.worker)]

    def _lose(self, worker: str, *, blame: bool) -> list[Outcome[T, R]]:
        """A worker is gone: its tasks run again, or have ended with the reason why it is gone."""
        self.ids.pop(worker, None)
        self.engine.known_workers = len(self.ids)
        now_s = time.monotonic()
        lost = [job for job in self.jobs.values() if job.start.worker == worker]
        errors = {job.start.index: error for job in lost if (error := self._hung(job, now_s)) is not None}
        given_up = self.dispatcher.leave(worker, blame=blame and not errors, ended=errors)
        for job in lost:
            start = job.start
            del self.jobs[start.index, start.attempt]
            self.on_workers.discard((start.index, start.attempt))
            if start.index in given_up:
                deaths = self.dispatcher.deaths(start.index)
                errors[start.index] = death_error(self.tasks[start.index], deaths, job.watch.last.key, None)
        self._cancel([job.future for job in lost])
        return [
            Outcome(self.tasks[job.start.index], None, errors[job.start.index], job.start.attempt, worker)
            for job in lost
            if job.start.index in errors
        ]

    def _hung(self, job: _Job, now_s: float) -> TarmillError | None:
        """The timeout for which the worker was ended: it said so, or the task was alone on it and long silent."""
        if job.hung is not None:
            return job.hung
        timeout_s = self.engine.task_timeout_s
        alone = self.dispatcher.ran_alone(job.start.worker, job.start.index)
        if timeout_s is None or not alone or job.watch.stuck_s(now_s) < timeout_s:
            return None
        return timeout_error(self.tasks[job.start.index], job.watch, timeout_s, now_s)

    def _cancel(self, futures: list[Any]) -> None:
        if futures and self.client.status == "running":
            self.client.loop.add_callback(lambda: self.client.cancel(futures, asynchronous=True))

    def _check_cluster(self) -> None:
        now_s, timeout_s = time.monotonic(), self.engine.no_worker_timeout_s
        if self.dispatcher.workers:
            self.no_worker_since_s = now_s
        elif timeout_s is not None and now_s - self.no_worker_since_s > timeout_s:
            refused = "".join(f"; {error}" for error in self.members.refused.values())
            raise NoWorkersError(
                f"the Dask scheduler at {self.engine.address} has had no worker that could take a task for "
                f"{timeout_s:g} s, and {self.dispatcher.unfinished} tasks wait{refused}. "
                f"Start workers: dask worker {self.engine.address}",
                address=self.engine.address,
            )

    def _lost_scheduler(self) -> ClusterError:
        return ClusterError(
            f"the Dask scheduler at {self.engine.address} is gone, and with it what ran. Finished outputs are kept: "
            "run the same command again once a scheduler is there",
            address=self.engine.address,
        )


def dask_engine(scheduler: str, **options: Any) -> DaskEngine:
    """The engine that runs tasks on a Dask cluster; see DaskEngine for the arguments."""
    return DaskEngine(scheduler, **options)
