"""Workers that fail again and again: when the job goes on without them, and when the attempt ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.observing import NOW, pod_of, resource, running, settle, started, store

from tarmill_operator.model import Observed, Resource
from tarmill_operator.reconcile import reconcile
from tarmill_operator.times import to_text
from tarmill_operator.workers import worker_failure

WORKING = {"format": 1, "phase": "running", "shards": {"total": 4, "done": 1, "failed": 0}}
KILLED = {"reason": "OOMKilled", "exitCode": 137}
LEFT = {"reason": "Completed", "exitCode": 0}


def worker(observed: Observed, restarts: int, last: dict[str, Any], name: str = "w") -> Resource:
    pod = pod_of(observed, "worker", **running())
    pod["metadata"]["name"] = name
    pod["status"]["containerStatuses"][0] |= {"lastState": {"terminated": last}, "restartCount": restarts}
    return pod


def at_work(*, limit: int | None = None, **run: Any) -> Observed:
    observed = started(resource(run=run, **({} if limit is None else {"failure": {"maxWorkerRestarts": limit}})))
    return replace(observed, pods=(pod_of(observed),), progress=WORKING)


def with_workers(observed: Observed, *pods: Resource) -> Observed:
    return replace(observed, pods=(*observed.pods, *pods))


def test_a_worker_that_left_in_peace_is_no_failure() -> None:
    observed = at_work()
    assert worker_failure(with_workers(observed, worker(observed, 1, LEFT)), 1) is None


@pytest.mark.parametrize(
    ("limit", "restarts", "last", "phase"),
    [
        (3, 3, KILLED, "Running"),
        (3, 4, KILLED, "Retrying"),
        (3, 4, {"reason": "Error", "exitCode": 1}, "Retrying"),
        (3, 4, LEFT, "Running"),
        (0, 1, KILLED, "Retrying"),
        (-1, 10_000, KILLED, "Running"),
        (None, 50, KILLED, "Running"),
        (None, 51, KILLED, "Retrying"),
    ],
)
def test_a_worker_that_is_begun_again_too_often_ends_the_attempt(
    limit: int | None, restarts: int, last: dict[str, Any], phase: str
) -> None:
    observed = at_work(limit=limit)
    status = reconcile(with_workers(observed, worker(observed, restarts, last)), NOW).status
    assert (status["phase"], status["restarts"]["counted"]) == (phase, int(phase == "Retrying"))
    if phase == "Retrying":
        failure = status["lastFailure"]
        assert failure["reason"] == ("WorkerOOMKilled" if last is KILLED else "WorkerFailed")
        assert (failure["component"], failure["pod"]) == ("worker", "w")
        assert f"begun again {restarts} times" in failure["message"]


def test_restarts_of_several_pods_are_not_added_up_and_what_the_cluster_took_away_is_not_counted() -> None:
    observed = at_work(limit=3)
    evicted = worker(observed, 9, {"reason": "Error", "exitCode": 137}, "taken")
    evicted["status"] |= {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
    leaving = worker(observed, 9, KILLED, "leaving")
    leaving["metadata"]["deletionTimestamp"] = to_text(NOW)
    pods = [worker(observed, 3, KILLED, "a"), worker(observed, 3, KILLED, "b"), evicted, leaving]
    assert reconcile(with_workers(observed, *pods), NOW).status["phase"] == "Running"


def test_the_attempt_after_that_begins_with_other_workers_and_not_before_the_old_ones_go() -> None:
    observed = at_work(limit=0, backoffBaseSeconds=10, backoffLimit=1)
    failed = with_workers(observed, worker(observed, 1, KILLED))
    failed = store(failed, reconcile(failed, NOW))
    # the runner that is told to go lets its workers leave first
    waiting = replace(failed, pods=(worker(failed, 2, LEFT),))
    for now in (NOW + 1, NOW + 100):
        decision = reconcile(waiting, now)
        assert {ref.kind for ref in decision.delete} == {"Job", "Deployment"}
        assert decision.status["attempt"] == 1
    gone = tuple(child for child in waiting.children if child["kind"] not in ("Job", "Deployment"))
    after, decision = settle(replace(waiting, pods=(), children=gone), NOW + 100)
    assert {child["kind"] for child in after.children} >= {"Job", "Deployment"}
    assert after.resource["status"]["attempt"] == 2


def test_workers_that_left_with_earlier_attempts_have_not_failed() -> None:
    observed = at_work(limit=0)
    observed.resource["status"]["attempt"] = 3
    observed, _ = settle(replace(observed, children=(), pods=()))
    pods = (pod_of(observed), worker(observed, 2, KILLED))
    assert reconcile(replace(observed, pods=pods, progress=WORKING), NOW).status["phase"] == "Running"
