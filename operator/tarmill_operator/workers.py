"""What workers say of themselves when they fail: the job goes on without them, as long as that does not go on for ever
(pure)."""

from __future__ import annotations

from dataclasses import replace

from tarmill_operator.causes import disruption_of, memory_limit_of, pods_of, shorten, statuses_of
from tarmill_operator.model import Cause, Observed, Resource
from tarmill_operator.names import WORKER


def worker_failure(observed: Observed, run: int) -> Cause | None:
    """Tell of a worker that was killed or ended with an error: the job goes on without it, but people should know."""
    for pod in reversed(pods_of(observed, WORKER, run)):
        if disruption := disruption_of(pod):
            name = pod["metadata"]["name"]
            return Cause(disruption.reason, disruption.message, WORKER, name, disruption.exit_code, True)
        if failure := _failure_of_worker(pod):
            return failure
    return None


def worn_out_worker(observed: Observed, run: int, attempt: int, limit: int) -> Cause | None:
    """Tell of a worker that by its own fault was begun again more often than it may be.

    Args:
        observed: what was seen.
        run, attempt: numbers of these.
        limit: `failure.maxWorkerRestarts`.
    """
    for pod in pods_of(observed, WORKER, run):
        failure = _failure_of_worker(pod)
        if failure is not None and disruption_of(pod) is None and is_worn_out(pod, attempt, limit):
            told = f"{failure.message}. It was begun again {_restarts(pod)} times; failure.maxWorkerRestarts is {limit}"
            return replace(failure, message=shorten(told))
    return None


def is_worn_out(pod: Resource, attempt: int, limit: int) -> bool:
    """Tell whether a worker's pod was begun again more often than it may be in its place.

    Args:
        pod: of a worker.
        attempt: its number; workers leave, which is no fault, at the end of each attempt before it.
        limit: `failure.maxWorkerRestarts`; negative for none.
    """
    leaving = "deletionTimestamp" in pod["metadata"]
    return not leaving and 0 <= limit < _restarts(pod) - (attempt - 1)


def _restarts(pod: Resource) -> int:
    return max((int(container.get("restartCount", 0)) for container in statuses_of(pod)), default=0)


def _failure_of_worker(pod: Resource) -> Cause | None:
    name = pod["metadata"]["name"]
    for container in statuses_of(pod):
        for state in (container.get("state"), container.get("lastState")):
            ended = (state or {}).get("terminated") or {}
            if ended.get("reason") == "OOMKilled":
                return Cause(
                    "WorkerOOMKilled",
                    f"worker {name} used more memory than its limit{memory_limit_of(pod)}; its shards run again "
                    "elsewhere. Raise workers.resources.limits.memory, or lower what the script holds",
                    WORKER,
                    name,
                    ended.get("exitCode"),
                )
            if ended.get("exitCode"):
                return Cause(
                    "WorkerFailed",
                    f"worker {name} ended with exit code {ended['exitCode']} ({ended.get('reason', '')}); its "
                    "shards run again elsewhere",
                    WORKER,
                    name,
                    ended["exitCode"],
                )
    return None
