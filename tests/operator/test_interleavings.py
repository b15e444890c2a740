"""Whatever befalls a cluster, in whatever order, and however late the watches tell: one end, no leaks, one runner."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakeapi import FAULTS
from support.fakecluster import SHARDS
from support.operatorworld import World

from tarmill_operator.api import ApiError
from tarmill_operator.conditions import TERMINAL
from tarmill_operator.model import Resource

Happening = Callable[[World, Resource], object]
BACKOFF_LIMIT = 3


def _runner_fails(world: World, resource: Resource) -> None:
    for pod in world.cluster.running_runners():
        world.cluster.end_runner(pod, 1, outcome="failed", reason="StorageError", message="the store is away")


def _runner_is_out_of_memory(world: World, resource: Resource) -> None:
    for pod in world.cluster.running_runners():
        world.cluster.end_runner(pod, 137, state_reason="OOMKilled")


def _runner_is_taken_away(world: World, resource: Resource) -> None:
    for pod in world.cluster.running_runners():
        world.api.remove(pod, by_force=True)


def _runner_is_deleted(world: World, resource: Resource) -> None:
    for pod in world.cluster.running_runners():
        world.api.remove(pod)


def _node_goes(world: World, resource: Resource) -> None:
    for pod in world.cluster.running_runners():
        world.cluster.lose_node(pod)


def _worker_is_out_of_memory(world: World, resource: Resource) -> None:
    for pod in [pod for pod in world.cluster.workers() if pod["status"]["phase"] == "Running"][:1]:
        world.cluster.out_of_memory(pod)


def _removed(kind: str) -> Happening:
    def remove(world: World, resource: Resource) -> None:
        for item in world.api.of(kind)[:1]:
            world.api.remove(item, by_force=True)

    return remove


def _edited(**values: object) -> Happening:
    def edit(world: World, resource: Resource) -> None:
        if world.cluster.is_there(resource):
            world.cluster.edit(resource, "run", **values)

    return edit


def _new_run(world: World, resource: Resource) -> None:
    if world.cluster.is_there(resource):
        world.cluster.edit(resource, "run", runId=f"run at {world.cluster.now}")


def _scaled(count: int) -> Happening:
    def scale(world: World, resource: Resource) -> None:
        if world.cluster.is_there(resource):
            world.cluster.edit(resource, "workers", replicas=count)

    return scale


def _deleted(world: World, resource: Resource) -> None:
    if world.cluster.is_there(resource):
        world.api.remove(resource)


def _api_fails(fault: str) -> Happening:
    def fail(world: World, resource: Resource) -> None:
        last = len(world.api.calls) + 4
        world.api.fault = lambda call: fault if call <= last else None

    return fail


def _time_passes(seconds: float) -> Happening:
    def wait(world: World, resource: Resource) -> None:
        world.cluster.now += seconds

    return wait


def _told(kind: str, most: int | None) -> Happening:
    return lambda world, resource: world.hear(kind, most)


USUAL: dict[str, Happening] = {
    "the operator acts": lambda world, resource: world.operate(),
    "everything goes on": lambda world, resource: world.cluster.step(),
    "the operator is told all": lambda world, resource: world.hear(),
    "Jobs get pods": lambda world, resource: world.cluster.run_jobs(),
    "kubelets act": lambda world, resource: world.cluster.run_kubelets(),
    "runners work": lambda world, resource: world.cluster.run_runners(),
    "Jobs are judged": lambda world, resource: world.cluster.judge_jobs(),
    "garbage is collected": lambda world, resource: world.cluster.collect_garbage(),
    "told of a Job": _told("Job", 1),
    "told of a pod": _told("Pod", 1),
    "told of a resource": _told("ShardMap", 1),
    "told of Deployments": _told("Deployment", None),
    "a second passes": _time_passes(1),
    "twenty seconds pass": _time_passes(20),
}
ODD: dict[str, Happening] = {
    "runner fails": _runner_fails,
    "runner out of memory": _runner_is_out_of_memory,
    "runner taken away": _runner_is_taken_away,
    "runner deleted": _runner_is_deleted,
    "node goes": _node_goes,
    "worker out of memory": _worker_is_out_of_memory,
    "Job removed": _removed("Job"),
    "Deployment removed": _removed("Deployment"),
    "Service removed": _removed("Service"),
    "ConfigMap removed": _removed("ConfigMap"),
    "operator starts again": lambda world, resource: world.start_operator(),
    "suspended": _edited(suspend=True),
    "resumed": _edited(suspend=False),
    "scaled up": _scaled(4),
    "scaled down": _scaled(1),
    "a new run": _new_run,
    "deleted": _deleted,
    **{f"the API server answers {fault}": _api_fails(fault) for fault in FAULTS},
}
HAPPENINGS = USUAL | ODD

GOING_ON = ["the operator is told all", "the operator acts", "everything goes on", "a second passes"]

# The usual happens more often, and much of it in the usual order; a resource that is deleted ends its story early.
parts = st.one_of(
    st.sampled_from([GOING_ON]),
    st.sampled_from(sorted(USUAL)).map(lambda name: [name]),
    st.sampled_from(sorted(USUAL)).map(lambda name: [name]),
    st.sampled_from(sorted(set(ODD) - {"deleted"})).map(lambda name: [name]),
    st.sampled_from(sorted(ODD)).map(lambda name: [name]),
)
stories = st.builds(
    lambda rounds, rest: GOING_ON * rounds + [name for part in rest for name in part],
    st.integers(0, 8),
    st.lists(parts, min_size=2, max_size=40),
)


def _tell(story: Sequence[str]) -> tuple[World, Resource]:
    """Let a story happen, and then everything come to rest."""
    world = World()
    resource = world.cluster.make(run={"backoffLimit": BACKOFF_LIMIT, "backoffMaxSeconds": 60})
    world.hear()
    for name in story:
        HAPPENINGS[name](world, resource)
        world.cluster.check()
    world.api.fault = lambda call: None
    if world.cluster.is_there(resource):
        world.cluster.edit(resource, "run", suspend=False)
    world.hear()
    world.settle(rounds=400)
    return world, resource


def _check(story: Sequence[str]) -> None:
    world, resource = _tell(story)
    assert world.cluster.errors == []
    assert world.left() == []
    if not world.cluster.is_there(resource):
        return
    status = world.status(resource)
    assert status["phase"] in TERMINAL
    restarts, happened = status["restarts"], sum(name in ("runner fails", "runner out of memory") for name in story)
    assert restarts["counted"] <= min(happened, BACKOFF_LIMIT)
    assert status["attempt"] <= 1 + len(story)
    if status["phase"] == "Succeeded":
        assert world.cluster.finished[resource["metadata"]["uid"]] == set(range(SHARDS))
    else:
        assert status["reason"] == "BackoffLimitExceeded"
        assert happened > BACKOFF_LIMIT


@given(stories)
def test_any_story_ends_well(story: list[str]) -> None:
    _check(story)


@pytest.mark.long
@pytest.mark.parametrize("part", range(20))
def test_any_of_thousands_of_stories_ends_well(part: int) -> None:
    @hypothesis.seed(part)
    @hypothesis.settings(max_examples=250, database=None, derandomize=False)
    @given(stories)
    def check(story: list[str]) -> None:
        _check(story)

    check()


@pytest.mark.parametrize("name", ODD)
def test_any_one_thing_may_happen_to_a_job_at_work(name: str) -> None:
    start = ["the operator is told all", "the operator acts", "everything goes on"] * 4
    _check([*start, name, *start, name])


def test_a_namesake_that_is_another_s_is_told_of_and_never_touched() -> None:
    world = World()
    resource = world.cluster.make()
    name = f"digits-{resource['metadata']['uid'][:8]}-r1"
    metadata = {"name": name, "namespace": "team"}
    other = world.api.add({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"mine": True}})
    world.hear()
    for _ in range(5):
        world.operate()
        world.cluster.now += 31
    status = world.status(resource)
    assert (status["phase"], status["reason"]) == ("Pending", "NameConflict")
    assert name in status["message"]
    assert {one["type"]: one["status"] for one in status["conditions"]}["Stalled"] == "True"
    assert other["spec"] == {"mine": True}
    world.api.remove(other)
    world.cluster.now += 31
    world.settle()
    assert world.status(resource)["phase"] == "Succeeded"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ApiError(403, 'pods "x" is forbidden: exceeded quota: small', "Forbidden"), "QuotaExceeded"),
        (ApiError(403, "cannot create resource", "Forbidden"), "Forbidden"),
        (ApiError(422, "spec.template.spec.containers[0].name: Invalid value", "Invalid"), "InvalidSpec"),
        (ApiError(500, "failed to create typed patch object: field not declared in schema"), "InvalidSpec"),
    ],
    ids=["quota", "rights", "invalid", "untyped"],
)
def test_what_the_api_server_refuses_is_told_tried_again_and_ends_at_the_deadline(error: ApiError, reason: str) -> None:
    world = World()
    world.api.refuse = lambda item: error if item["kind"] == "Job" else None
    resource = world.cluster.make(run={"pendingDeadlineSeconds": 300})
    world.hear()
    world.operate()
    status = world.status(resource)
    assert (status["phase"], status["reason"]) == ("Pending", reason)
    assert error.message in status["message"]
    writes = sum(call == "put status" for call in world.api.calls)
    for _ in range(4):
        world.cluster.now += 31
        world.operate()
    assert sum(call.startswith("create Job") for call in world.api.calls) >= 5
    assert sum(call == "put status" for call in world.api.calls) == writes
    world.settle()
    assert (world.status(resource)["phase"], world.status(resource)["reason"]) == ("Failed", "PendingDeadline")
    assert world.status(resource)["lastFailure"]["reason"] == reason
    assert world.left() == []
