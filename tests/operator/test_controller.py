"""What controller and executor do beside the usual: keep logs, go on with chains, post few Events, tell our faults."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.operatorworld import World
from support.virtualtime import run

from tarmill_operator import controller
from tarmill_operator.api import ApiError


def failed_job(world: World, **spec: Any) -> Any:
    world.cluster.script_is_wrong = True
    resource = world.cluster.make(run={"backoffLimit": 1, "ttlSecondsAfterFinished": -1}, **spec)
    world.hear()
    world.settle()
    assert world.status(resource)["phase"] == "Failed"
    return resource


def test_the_last_lines_of_each_attempt_are_kept_and_the_pods_go() -> None:
    world = World()
    failed_job(world)
    (logs,) = [item for item in world.api.of("ConfigMap") if item["metadata"]["name"].endswith("-r1-logs")]
    assert [name.split("-")[-2] for name in sorted(logs["data"])] == ["a1", "a2"]
    assert all(text.startswith("last lines of digits-") for text in logs["data"].values())
    assert logs["metadata"]["ownerReferences"][0]["controller"] is True
    assert {kind for kind, _ in world.left()} == {"ConfigMap", "Job", "Pod"}


@pytest.mark.parametrize("calls", ["log", "create ConfigMap digits-00000001-r1-logs"])
def test_logs_that_cannot_be_kept_keep_nothing_else_from_going_on(calls: str) -> None:
    world = World()
    before = world.api._call

    def refuse(what: str, do: Any) -> Any:
        if what == calls:
            raise ApiError(403, "not yours", "Forbidden")
        return before(what, do)

    world.api._call = refuse  # type: ignore[method-assign]
    failed_job(world)
    assert world.api.of("Deployment") == []
    kept = [item for item in world.api.of("ConfigMap") if item["metadata"]["name"].endswith("-logs")]
    if calls == "log":
        assert all("could not be read: HTTP 403" in text for text in kept[0]["data"].values())
    else:
        assert kept == []


def test_a_chain_that_is_made_in_one_go_runs_in_its_order() -> None:
    world = World()
    names = ["raw", "mapped", "shuffled"]
    for before, name in reversed(list(zip(["", *names], names, strict=False))):
        spec: dict[str, Any] = {"inputFrom": {"kind": "ShardMap", "name": before}} if before else {}
        world.cluster.make(name, run={"ttlSecondsAfterFinished": -1}, **spec)
    world.hear()
    world.settle(400)
    statuses = [world.api.objects["ShardMap", "team", name]["status"] for name in names]
    assert [status["phase"] for status in statuses] == ["Succeeded"] * 3
    assert [status["input"] for status in statuses] == ["", "s3://b/raw-@4.tar", "s3://b/mapped-@4.tar"]
    ends = [status["completionTime"] for status in statuses]
    assert ends == sorted(ends)


def test_a_resource_that_asks_for_it_is_removed_when_its_time_is_over() -> None:
    world = World()
    resource = world.cluster.make(run={"ttlSecondsAfterFinished": 60, "deleteWhenExpired": True})
    world.hear()
    world.settle()
    assert not world.cluster.is_there(resource)
    assert world.left() == []


def test_events_tell_of_what_happened_in_kubernetes_style() -> None:
    world = World()
    resource = failed_job(world)
    told = [(event["type"], event["reason"]) for event in world.api.events]
    assert told == [
        ("Warning", "BackingOff"),
        ("Warning", "ScriptError"),
        ("Warning", "BackoffLimitExceeded"),
    ]
    event = world.api.events[0]
    assert event["involvedObject"]["uid"] == resource["metadata"]["uid"]
    assert "it returned no sample" in event["message"]
    assert event["reportingComponent"] == "tarmill-operator"


def test_a_fault_of_ours_is_logged_and_tried_again_and_hurts_no_other_resource(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> tuple[int, str]:
        world = World()
        bad, good = world.cluster.make("bad"), world.cluster.make("good")
        world.hear()
        tries = []
        decide = controller.reconcile

        def faulty(observed: Any, now: float) -> Any:
            if observed.resource["metadata"]["name"] == "bad":
                tries.append(now)
                raise KeyError("oops")
            return decide(observed, now)

        monkeypatch.setattr(controller, "reconcile", faulty)
        queue = world.controller._queue
        for uid in (bad["metadata"]["uid"], good["metadata"]["uid"]):
            queue.add(uid)
        for _ in range(6):
            await world.controller.work(await queue.take())
        assert asyncio.get_running_loop().time() >= 3
        return len(tries), str(world.status(good).get("phase"))

    tries, phase = run(story())
    assert tries >= 2
    assert phase == "Starting"
    assert "ShardMap team/bad: this should not happen" in caplog.text


def test_what_a_runner_went_for_is_told_though_its_pod_is_gone_by_then() -> None:
    world = World()
    resource = world.cluster.make()
    world.hear()
    world.go_on(lambda: bool(world.cluster.running_runners()))
    (pod,) = world.cluster.running_runners()
    evicted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drained"}
    world.api.change(pod, lambda item: item["status"].update(conditions=[evicted]))
    world.api.remove(pod, by_force=True)
    world.cluster.judge_jobs()
    world.hear()
    world.operate()
    failure = world.status(resource)["lastFailure"]
    assert (failure["reason"], failure["message"]) == ("Disrupted", "EvictionByEvictionAPI: drained")
    assert failure["pod"] == pod["metadata"]["name"]
    world.settle()
    assert (world.status(resource)["phase"], world.status(resource)["attempt"]) == ("Succeeded", 2)
    uid = resource["metadata"]["uid"]
    assert (seen := world.cache.observe(uid, world.controller.settings))
    assert seen.gone_runner is None, "remembered for longer than it is needed"


def test_a_namespace_that_is_being_deleted_gets_nothing_new_and_no_complaint(caplog: pytest.LogCaptureFixture) -> None:
    message = "jobs x is forbidden: unable to create new content in namespace team because it is being terminated"

    async def story() -> World:
        world = World()
        queue = world.controller._queue
        world.cluster.make()
        world.cluster.make("later", inputFrom={"kind": "ShardMap", "name": "nothing"})
        world.hear()
        world.api.refuse = lambda item: ApiError(403, message, "Forbidden")
        for uid in world.cache.uids():
            queue.add(uid)
        for _ in range(6):
            await world.controller.work(await queue.take())
        assert asyncio.get_running_loop().time() >= 30
        return world

    world = run(story())
    assert {one["status"]["reason"] for one in world.api.of("ShardMap")} == {"StartingPods", "WaitingForInput"}
    assert world.api.calls.count("create ConfigMap digits-00000001-r1") >= 2
    assert caplog.text == ""


def test_a_run_keeps_the_script_that_it_began_with_and_the_next_run_reads_it_anew() -> None:
    world = World()
    resource = world.cluster.make(
        scriptFrom={"configMap": {"name": "scripts", "key": "map.py"}}, run={"ttlSecondsAfterFinished": -1}
    )
    source = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "scripts", "namespace": "team"}}

    def kept(run: int) -> str:
        held = world.api.objects["ConfigMap", "team", f"digits-00000001-r{run}"]["data"]
        return str(held["script"])

    world.hear()
    world.operate()
    assert (world.status(resource)["phase"], world.status(resource)["reason"]) == ("Pending", "ConfigMapMissing")
    assert '"scripts"' in world.status(resource)["message"]
    assert world.left() == []
    made = world.api.add({**source, "data": {"other.py": "x"}})
    for _ in range(2):
        world.cluster.now += 31
        world.operate()
    assert 'no key "map.py"' in world.status(resource)["message"]
    world.api.change(made, lambda item: item["data"].update({"map.py": "first"}))
    world.cluster.now += 31
    world.go_on(lambda: bool(world.cluster.running_runners()))
    world.api.change(made, lambda item: item["data"].update({"map.py": "second"}))
    for pod in world.cluster.running_runners():
        world.cluster.lose_node(pod)
    world.settle()
    assert (world.status(resource)["phase"], world.status(resource)["attempt"]) == ("Succeeded", 2)
    assert kept(1) == "first"
    mounts = [one["spec"]["template"]["spec"]["volumes"] for one in world.api.of("Job")]
    assert all("scripts" not in str(volumes) and "'script'" in str(volumes) for volumes in mounts)
    world.cluster.edit(resource, "run", runId="two")
    world.hear()
    world.settle()
    assert kept(2) == "second"


def test_what_a_worker_had_in_hand_when_it_was_stopped_is_looked_at_again() -> None:
    world = World()
    world.cluster.make()
    world.hear()
    (uid,) = world.cache.uids()
    queue = world.controller._queue

    begun = asyncio.Event()

    async def hang(resource: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    async def story() -> None:
        world.api.put_status = hang  # type: ignore[method-assign]
        queue.add(uid)
        working = asyncio.create_task(world.controller.work(await queue.take()))
        await begun.wait()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        async with asyncio.timeout(1):
            assert await queue.take() == uid

    run(story())
