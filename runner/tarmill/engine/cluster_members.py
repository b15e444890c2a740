"""Who works on the Dask cluster: joins and losses, as events for the driver, from the client's own event loop.

The scheduler tells of a lost worker at once, by its event topic "all"; asking for the list every second finds what
such an event missed. A worker is announced only after it was admitted: its versions fit, and it passes what the job
requires.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tarmill.engine import cluster_farewell
from tarmill.engine.attempt import Ended, unpack
from tarmill.engine.base import Progress, as_tarmill_error
from tarmill.engine.cluster_worker import installed, introduce, probe_here
from tarmill.errors import TarmillError, UsageError

ASK_EVERY_S = 1.0
CALL_TIMEOUT_S = 30.0
DIRECT_TIMEOUT_S = 3.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker may get tasks now."""

    worker: str
    worker_id: str
    slots: int


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker is no longer part of the cluster. `retired`: it said good-bye, so no task made it die."""

    worker: str
    retired: bool = False


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The scheduler does not answer, since that many seconds."""

    since_s: float


class Members:
    """Follows the workers of a cluster and hands events to `put`, which is called in the client's event loop.

    Args:
        client: a connected `distributed.Client`.
        requirements: packed functions that every worker must run without an error before it gets tasks.
        put: takes Joined, Gone and Unreachable.
    """

    def __init__(self, client: Any, requirements: list[bytes], put: Callable[[Any], None]) -> None:
        self._client = client
        self._requirements = requirements
        self._put = put
        self._known: dict[str, TarmillError | None] = {}  # None: admitted; else why not
        self._task: asyncio.Task[None] | None = None
        self._answered_s = time.monotonic()
        self.direct = False  # whether results can be fetched from the workers themselves

    @property
    def refused(self) -> dict[str, TarmillError]:
        """The workers that get no tasks, and why."""
        return {worker: error for worker, error in self._known.items() if error is not None}

    def start(self) -> None:
        """Begin to follow; returns at once."""
        self._client.subscribe_topic("all", self._on_scheduler_event)
        self._client.subscribe_topic(cluster_farewell.TOPIC, self._on_farewell)
        self._client.loop.add_callback(self._begin)

    def stop(self) -> None:
        """No event comes from here after the loop has turned once more."""
        self._put = lambda event: None
        if self._client.status == "running":
            self._client.unsubscribe_topic("all")
            self._client.unsubscribe_topic(cluster_farewell.TOPIC)
        self._client.loop.add_callback(lambda: self._task and self._task.cancel())

    def forget(self, worker: str) -> None:
        """Look at this worker anew: another process has taken its address."""
        self._known.pop(worker, None)

    async def _begin(self) -> None:
        self._task = asyncio.ensure_future(self._follow())

    def _on_scheduler_event(self, event: tuple[float, Any]) -> None:
        message = event[1]
        if isinstance(message, Mapping) and message.get("action") == "remove-worker":
            worker = str(message.get("worker"))
            if self._known.pop(worker, self) is None:
                self._put(Gone(worker, _is_farewell(message)))

    def _on_farewell(self, event: tuple[float, Any]) -> None:
        worker = str(event[1]["worker"])
        if self._known.get(worker, self) is None:
            self._known[worker] = TarmillError("it is leaving", worker=worker)  # no new tasks until it is gone
            self._put(Gone(worker, retired=True))

    async def _follow(self) -> None:
        while True:
            try:
                now: dict[str, int] = await asyncio.wait_for(
                    self._client.scheduler.ncores(workers=None), CALL_TIMEOUT_S
                )
                self._answered_s = time.monotonic()
                for worker in [worker for worker in self._known if worker not in now]:
                    if self._known.pop(worker) is None:
                        self._put(Gone(worker))
                await self._admit({worker: slots for worker, slots in now.items() if worker not in self._known})
            except (OSError, TimeoutError):
                self._put(Unreachable(time.monotonic() - self._answered_s))
            except Exception:
                log.exception("following the workers of the Dask cluster failed; trying again")
            await asyncio.sleep(ASK_EVERY_S)

    async def _admit(self, new: dict[str, int]) -> None:
        if not new:
            return
        introductions = await broadcast(self._client, introduce, workers=list(new))
        for worker, answer in introductions.items():
            if isinstance(answer, OSError):
                continue  # it left again, or is not quite there: the next round tells
            error = judge_versions(worker, answer[1] if not isinstance(answer, BaseException) else answer)
            for requirement in self._requirements if error is None else ():
                error = (await probe(self._client, requirement, [worker]))[worker].error
            self._known[worker] = error
            if error is None:
                self.direct = self.direct or await self._reaches(worker)
                self._put(Joined(worker, answer[0], new[worker]))
            else:
                log.warning("worker %s gets no tasks: %s", worker, error)

    async def _reaches(self, worker: str) -> bool:
        from distributed.comm import connect

        try:
            comm = await connect(worker, timeout=DIRECT_TIMEOUT_S, **self._client.connection_args)
            await comm.close()
        except (OSError, TimeoutError):
            return False
        return True


def _is_farewell(message: Mapping[str, Any]) -> bool:
    """Whether a worker left by a decision (retired, or its nanny was told to go) and was not found dead."""
    return bool(message.get("expected")) or str(message.get("stimulus_id", "")).startswith(
        ("nanny-close", "retire-workers")
    )


async def broadcast(client: Any, function: Callable[..., Any], *args: Any, workers: list[str] | None = None) -> Any:
    """Run a function on workers out of band: {address: result or exception}."""
    call = client.run(function, *args, workers=workers, on_error="return", asynchronous=True)
    return await asyncio.wait_for(call, CALL_TIMEOUT_S)


async def probe(client: Any, packed: bytes, workers: list[str] | None = None) -> dict[str, Any]:
    """Run what `attempt.pack` made on workers: {address: Ended}."""
    answers = await broadcast(client, probe_here, packed, workers=workers)
    return {
        worker: unpack(answer) if isinstance(answer, bytes) else Ended(None, as_tarmill_error(answer), Progress(-1))
        for worker, answer in answers.items()
    }


def judge_versions(worker: str, found: dict[str, str] | BaseException) -> UsageError | None:
    """What is wrong with the versions of a worker, compared with this process; None when they fit: pure."""
    expected = installed()
    cure = "Install the same there as here, or use the same image for driver and workers"
    if isinstance(found, ModuleNotFoundError) or (isinstance(found, BaseException) and "tarmill" in str(found)):
        return UsageError(
            f"worker {worker} cannot import tarmill {expected['tarmill']} ({found}). {cure}", worker=worker
        )
    if isinstance(found, BaseException):
        return UsageError(f"worker {worker} did not tell its versions: {found!r}", worker=worker)
    wrong = [name for name in expected if found.get(name) != expected[name]]
    if not wrong:
        return None
    told = ", ".join(f"{name} {found.get(name)} where the driver has {expected[name]}" for name in wrong)
    return UsageError(f"worker {worker} has {told}. {cure}", worker=worker, found=found, expected=expected)
