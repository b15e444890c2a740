"""Resources that write to one output, in a cluster that holds them all."""

from __future__ import annotations

from typing import Any

import pytest
from support.operatorworld import World

from tarmill_operator.model import Resource

OUTPUT = "s3://b/same-@4.tar"


def writers(world: World, *names: str, **spec: Any) -> list[Resource]:
    made = []
    for name in names:
        made.append(world.cluster.make(name, output=OUTPUT, **spec))
        world.cluster.now += 1
    world.hear()
    return made


def at_work(world: World) -> set[str]:
    return {pod["metadata"]["labels"]["tarmill.dev/name"] for pod in world.cluster.running_runners()}


def test_they_run_one_after_the_other_the_oldest_first_and_those_who_wait_say_for_whom() -> None:
    world = World()
    resources = writers(world, "one", "two", "three")
    order: list[str] = []
    for name in ("one", "two", "three"):
        world.go_on(lambda name=name: name in at_work(world))  # type: ignore[misc]
        assert at_work(world) == {name}
        order.append(name)
        waiting = [world.status(one) for one in resources if one["metadata"]["name"] not in order]
        assert {status["reason"] for status in waiting} <= {"OutputInUse"}
        assert all(f"ShardMap {name} writes to the same output" in status["message"] for status in waiting)
        world.go_on(lambda: not at_work(world))
    world.settle()
    assert [world.status(one)["phase"] for one in resources] == ["Succeeded"] * 3
    assert world.cluster.errors == []


@pytest.mark.parametrize("how", ["removed", "suspended before it began", "another output"])
def test_nobody_waits_for_one_that_does_not_write(how: str) -> None:
    world = World()
    suspend = how == "suspended before it began"
    (first,) = writers(world, "first", run={"suspend": suspend, "pendingDeadlineSeconds": 0})
    (second,) = writers(world, "second")
    if how == "removed":
        world.go_on(lambda: at_work(world) == {"first"})
        assert world.status(second)["reason"] == "OutputInUse"
        world.api.remove(first)
    if how == "another output":
        world.api.change(first, lambda item: item["spec"].update(output="s3://b/other-@4.tar"))
        world.cluster.edit(first, "run", runId="two")
    world.go_on(lambda: world.status(second).get("phase") == "Succeeded")


def test_the_same_output_at_another_endpoint_or_in_another_run_is_no_hindrance() -> None:
    world = World()
    resources = [
        world.cluster.make("here", output=OUTPUT, options={"s3Endpoint": "http://one"}),
        world.cluster.make("there", output=OUTPUT, options={"s3Endpoint": "http://two"}),
    ]
    world.hear()
    world.go_on(lambda: at_work(world) == {"here", "there"})
    world.settle()
    world.cluster.edit(resources[0], "run", runId="again")
    world.hear()
    world.settle()
    assert [world.status(one)["phase"] for one in resources] == ["Succeeded"] * 2
    assert world.status(resources[0])["run"] == 2
