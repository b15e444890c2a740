"""What becomes of a resource, from its creation to its end, as `reconcile` decides it."""

from __future__ import annotations

from typing import Any

import pytest
from support.runs import World, shard_map

DONE = {"outcome": "succeeded", "shards": {"total": 4, "done": 4, "failed": 0}, "manifest": "out.manifest.json"}
SCRIPT = {"outcome": "failed", "reason": "ScriptError", "message": "script.py line 3: KeyError: 'txt'"}


def started(**spec: Any) -> tuple[World, Any]:
    world = World(shard_map(**spec))
    world.settle()
    pod = world.start_runner()
    world.settle(5)
    return world, pod


def condition(world: World, name: str) -> str:
    return next(one["status"] for one in world.status["conditions"] if one["type"] == name)


def test_a_run_and_its_attempt_are_stored_before_anything_is_made() -> None:
    world = World(shard_map())
    seen = []
    while not (decision := world.look()).apply:
        seen.append((decision.status["run"], decision.status["attempt"]))
        world.do(decision)
    assert seen == [(1, 1)]
    assert world.children == []


def test_all_that_a_run_needs_is_made_once_and_owned_by_the_resource() -> None:
    world = World(shard_map())
    world.settle()
    kinds = [child["kind"] for child in world.children]
    assert sorted(kinds) == ["ConfigMap", "Deployment", "Job", "NetworkPolicy", "Secret", "Service"]
    assert world.look().apply == ()
    for child in world.children:
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (
            world.resource["metadata"]["uid"],
            True,
            False,
        )


def test_without_workers_the_runner_is_alone() -> None:
    world = World(shard_map(workers={"replicas": 0, "threads": 1}))
    world.settle()
    assert {child["kind"] for child in world.children} <= {"ConfigMap", "Job", "NetworkPolicy"}


def test_every_pod_is_as_the_restricted_standard_asks() -> None:
    world = World(shard_map())
    world.settle()
    templates = [child["spec"]["template"] for child in world.children if child["kind"] in ("Job", "Deployment")]
    assert len(templates) == 2
    for template in templates:
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}


def test_a_run_that_is_done_says_so_before_its_pods_are_removed() -> None:
    world, pod = started()
    assert (world.status["phase"], world.status["shardsText"]) == ("Running", "1/4")
    world.end_runner(pod, 0, DONE)
    decision = world.look()
    assert (decision.status["phase"], decision.delete) == ("Succeeded", ())
    world.settle()
    assert (world.status["phase"], world.status["shardsText"], world.status["percent"]) == ("Succeeded", "4/4", 100)
    assert [condition(world, name) for name in ("Ready", "Complete", "Stalled", "Reconciling")] == [
        "True",
        "True",
        "False",
        "False",
    ]
    assert world.names("Deployment") == world.names("Service") == []
    assert world.status["manifest"] == "out.manifest.json"


def test_failures_are_tried_again_after_longer_and_longer_pauses_until_the_limit() -> None:
    world, pod = started()
    for attempt, pause in ((1, 10), (2, 20)):
        world.end_runner(pod, 1, SCRIPT)
        world.settle()
        assert (world.status["phase"], world.status["attempt"]) == ("Retrying", attempt)
        assert world.status["lastFailure"]["reason"] == "ScriptError"
        world.settle(pause - 1)
        assert world.status["phase"] == "Retrying"
        world.settle(2)
        assert world.status["attempt"] == attempt + 1
        pod = world.start_runner()
        world.settle(1)
    world.end_runner(pod, 1, SCRIPT)
    world.settle()
    assert (world.status["phase"], world.status["reason"]) == ("Failed", "BackoffLimitExceeded")
    assert "KeyError: 'txt'" in world.status["message"]
    assert (condition(world, "Stalled"), condition(world, "Failed")) == ("True", "True")
    assert world.names("Deployment") == []


def test_a_usage_error_ends_the_run_at_once() -> None:
    world, pod = started()
    world.end_runner(pod, 2, {"outcome": "usage", "reason": "SpecError", "message": "--limit is -1"})
    world.settle()
    assert (world.status["phase"], world.status["reason"]) == ("Failed", "UsageError")
    assert "--limit is -1" in world.status["message"]


def test_a_runner_out_of_memory_is_a_failure_with_its_limit_named() -> None:
    world, pod = started()
    world.end_runner(pod, 137, reason="OOMKilled")
    world.settle()
    failure = world.status["lastFailure"]
    assert (failure["reason"], world.status["restarts"]["counted"]) == ("RunnerOOMKilled", 1)
    assert "1Gi" in failure["message"]


def test_a_drained_node_costs_no_retry() -> None:
    world, pod = started()
    world.end_runner(pod, 143, {"outcome": "interrupted", "reason": "Interrupted", "message": "stopped"})
    pod["status"]["conditions"] = [
        {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drained"}
    ]
    world.settle()
    assert world.status["restarts"] == {"counted": 0, "uncounted": 1}
    assert world.status["attempt"] == 2


def test_no_second_runner_begins_while_an_earlier_one_may_still_write() -> None:
    world, pod = started(run={"backoffLimit": 2, "backoffBaseSeconds": 0, "backoffMaxSeconds": 0,
                              "progressDeadlineSeconds": 60})  # fmt: skip
    world.now += 120
    for _ in range(10):
        decision = world.look()
        world.do(decision)
        world.pods, world.progress = [pod], None  # it takes its time to end, and is no longer asked
    assert not [child for child in world.children if child["kind"] == "Job"]
    world.pods = []
    world.settle()
    assert world.names("Job") == ["digits-0a1b2c3d-r1-a2"]


def test_suspending_twice_costs_no_retry_and_goes_on_each_time() -> None:
    world, _ = started()
    for attempt in (2, 3):
        world.resource["spec"]["run"]["suspend"] = True
        world.settle()
        assert world.status["phase"] == "Suspended"
        assert world.names("Job") == world.names("Deployment") == []
        world.resource["spec"]["run"]["suspend"] = False
        world.settle()
        assert world.status["attempt"] == attempt
        assert world.names("Job") == [f"digits-0a1b2c3d-r1-a{attempt}"]
        world.start_runner()
        world.settle(1)
    assert world.status["restarts"] == {"counted": 0, "uncounted": 0}


def test_another_run_id_begins_another_run_and_clears_the_first_away() -> None:
    world, pod = started()
    world.end_runner(pod, 0, DONE)
    world.settle()
    world.resource["spec"]["run"]["runId"] = "again"
    world.settle()
    assert (world.status["run"], world.status["attempt"], world.status["runId"]) == (2, 1, "again")
    assert world.names("Job") == ["digits-0a1b2c3d-r2-a1"]


@pytest.mark.parametrize(("phase", "expected"), [("Running", "WaitingForInput"), ("Failed", "Failed")])
def test_a_run_waits_for_its_input_and_fails_with_it(phase: str, expected: str) -> None:
    spec = shard_map(inputFrom={"kind": "ShardUpload", "name": "raw"})
    del spec["spec"]["input"]
    world = World(spec)
    world.settle()
    assert world.status["phase"] == "WaitingForInput"
    upstream = {"kind": "ShardUpload", "metadata": {"name": "raw", "generation": 3}}
    world.input = {**upstream, "status": {"observedGeneration": 3, "phase": phase}}
    world.settle(100_000)
    assert world.status["phase"] == expected
    assert world.children == []
    if expected == "Failed":
        assert world.status["reason"] == "InputFailed"
        return
    world.input["status"] = {"observedGeneration": 3, "phase": "Succeeded", "output": "raw-@7.tar"}
    world.settle()
    (job,) = (child["data"]["job.json"] for child in world.children if child["kind"] == "ConfigMap")
    assert '"input": "raw-@7.tar"' in job


def test_a_missing_dask_operator_is_told_with_its_cure_at_once() -> None:
    world = World(shard_map(cluster={"engine": "dask-kubernetes"}))
    world.settle()
    assert (world.status["reason"], condition(world, "Accepted")) == ("BackendMissing", "False")
    assert "cluster.engine: native" in world.status["message"]
    assert world.children == []


def test_children_go_when_their_time_is_over_and_the_resource_stays() -> None:
    world, pod = started(run={"ttlSecondsAfterFinished": 60})
    world.end_runner(pod, 0, DONE)
    world.settle()
    assert world.names("Job")
    world.settle(61)
    assert world.children == []
    assert world.look().delete_resource is False
