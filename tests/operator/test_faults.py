"""Whatever call fails, in whatever way: the same end, and nothing is left."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from support.fakeapi import FAULTS
from support.fakecluster import SHARDS
from support.operatorworld import World

from tarmill_operator.model import Resource

Story = Callable[[World], Resource]


def plain(world: World) -> Resource:
    resource = world.cluster.make()
    world.hear()
    world.settle()
    return resource


def alone(world: World) -> Resource:
    resource = world.cluster.make(workers={"replicas": 0})
    world.hear()
    world.settle()
    return resource


def begun(world: World, **spec: Any) -> Resource:
    """Let a job come to where its runner has finished a shard."""
    resource = world.cluster.make(**spec)
    world.hear()
    world.go_on(lambda: bool(world.cluster.finished) and "runningTime" in world.status(resource))
    return resource


def runner_fails_once(world: World) -> Resource:
    resource = begun(world)
    world.cluster.end_runner(world.cluster.running_runners()[0], 1, outcome="failed", reason="ScriptError", message="x")
    world.settle()
    return resource


def node_goes(world: World) -> Resource:
    resource = begun(world)
    world.cluster.lose_node(world.cluster.running_runners()[0])
    world.settle()
    return resource


def runner_fails_always(world: World) -> Resource:
    resource = world.cluster.make(run={"backoffLimit": 1})
    world.cluster.script_is_wrong = True
    world.hear()
    world.settle()
    return resource


def suspended_twice(world: World) -> Resource:
    resource = begun(world)
    for _ in range(2):
        attempt = world.status(resource)["attempt"]
        world.cluster.edit(resource, "run", suspend=True)
        world.hear()
        world.settle()
        assert world.status(resource)["phase"] == "Suspended"
        assert [kind for kind, _ in world.left() if kind in ("Job", "Deployment", "Pod")] == []
        world.cluster.edit(resource, "run", suspend=False)
        world.hear()
        world.go_on(lambda attempt=attempt: world.status(resource)["attempt"] > attempt)  # type: ignore[misc]
    world.settle()
    return resource


def started_anew(world: World) -> Resource:
    resource = begun(world)
    world.cluster.edit(resource, "run", runId="second")
    world.hear()
    world.settle()
    return resource


def operator_restarts(world: World) -> Resource:
    resource = begun(world)
    world.start_operator()
    world.settle()
    return resource


STORIES: dict[str, Story] = {
    "plain": plain,
    "alone": alone,
    "runner fails once": runner_fails_once,
    "runner fails always": runner_fails_always,
    "node goes": node_goes,
    "suspended twice": suspended_twice,
    "started anew": started_anew,
    "operator restarts": operator_restarts,
}


def outcome(world: World, resource: Resource) -> dict[str, Any]:
    """Give what must be the same however it came about: no times, no counts of what was tried again."""
    status = world.status(resource)
    told = {name: status.get(name) for name in ("phase", "reason", "run", "attempt", "shards", "restarts", "message")}
    conditions = {one["type"]: one["status"] for one in status["conditions"]}
    return told | {"conditions": conditions, "left": world.left(), "errors": world.cluster.errors}


@pytest.mark.parametrize("name", STORIES)
def test_each_story_ends_well_where_nothing_fails(name: str) -> None:
    world = World()
    resource = STORIES[name](world)
    end = outcome(world, resource)
    assert end["phase"] == ("Failed" if name == "runner fails always" else "Succeeded")
    assert end["left"] == []
    assert end["errors"] == []
    assert end["shards"]["done"] == (SHARDS if end["phase"] == "Succeeded" else 0)


def test_a_job_with_workers_costs_few_writes_besides_its_progress() -> None:
    world = World()
    resource = world.cluster.make(run={"ttlSecondsAfterFinished": -1})
    world.hear()
    world.settle()
    reads = ("list", "get", "discover", "log")
    writes = [call for call in world.api.calls if not call.startswith(reads)]
    progress = [call for call in writes if call == "put status"][3:]
    assert world.status(resource)["phase"] == "Succeeded"
    assert len(writes) - len(progress) <= 16, writes


def calls_of(name: str) -> int:
    world = World()
    STORIES[name](world)
    return len(world.api.calls)


CASES = [(story, fault) for story in STORIES for fault in FAULTS]


@pytest.mark.parametrize(
    ("story", "fault"), [pytest.param(*case, id="-".join(case)) for case in CASES if case[0] == "plain"]
)
def test_any_one_call_may_fail(story: str, fault: str) -> None:
    check_every_call(story, fault)


@pytest.mark.long
@pytest.mark.parametrize(
    ("story", "fault"), [pytest.param(*case, id="-".join(case)) for case in CASES if case[0] != "plain"]
)
def test_any_one_call_may_fail_in_longer_stories(story: str, fault: str) -> None:
    check_every_call(story, fault)


def check_every_call(story: str, fault: str) -> None:
    world = World()
    expected = outcome(world, STORIES[story](world))
    for number in range(1, calls_of(story) + 1):
        world = World()
        world.api.fault = lambda call, number=number: fault if call == number else None  # type: ignore[misc]
        end = outcome(world, STORIES[story](world))
        assert end == expected, f"{fault} at call {number}: {world.api.calls[number - 1]}"


@pytest.mark.parametrize("story", STORIES)
def test_every_third_call_may_fail(story: str) -> None:
    world = World()
    expected = outcome(world, STORIES[story](world))
    for start in range(3):
        world = World()
        kinds = random.Random(start)
        world.api.fault = lambda call, start=start, kinds=kinds: (  # type: ignore[misc]
            kinds.choice(list(FAULTS)) if call % 3 == start else None
        )
        assert outcome(world, STORIES[story](world)) == expected
