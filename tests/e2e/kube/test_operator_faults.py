"""Faults in the middle of a run on a real cluster; it then ends with the bytes of a run without."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from support.gates import Gate
from support.kube import Kube
from support.operated import System, is_over, phase
from support.shards_in_store import SHARDS, Data

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("kube"), pytest.mark.timeout(400)]

Fault = Callable[[System, Kube], None]


def held(system: System, space: Kube, data: Data, gate: Gate, **spec: Any) -> None:
    """Begin a map on two workers, and return when one shard is done and the others wait at the gate."""
    output = f"{data.url}/mapped/out-@.tar.gz"
    workers = {"replicas": 2, **spec.pop("workers", {})}
    space.apply(
        system.resource(
            "ShardMap", "upper", input=data.input, output=output, script=gate.script, workers=workers, **spec
        )
    )

    def is_held(found: Any) -> bool:
        assert phase(found) != "Failed", found["status"]
        return bool(found.get("status", {}).get("shards", {}).get("done") == 1)

    space.wait("shardmap", "upper", is_held, 120, "one shard that is done")


def ends_well(space: Kube, data: Data) -> dict[str, Any]:
    """Wait for success, and make sure that all is as if nothing had been; the status."""
    done = space.wait("shardmap", "upper", is_over, 180, "the end")
    status: dict[str, Any] = done["status"]
    assert status["phase"] == "Succeeded", status
    assert status["shards"] == {"total": SHARDS, "done": SHARDS, "failed": 0}
    assert data.system.bytes_of(f"{data.name}/mapped") == data.mapped()
    assert not [name for name in data.system.names(f"{data.name}/mapped") if ".tarmill" in name]
    return status


def pods_of(space: Kube, role: str) -> list[str]:
    return list(space.names("pod", f"tarmill.dev/role={role}"))


def lose_the_runner(system: System, space: Kube) -> None:
    [pod] = pods_of(space, "runner")
    space.delete("pod", pod, force=True)
    space.wait("shardmap", "upper", lambda found: found["status"].get("attempt") == 2, what="another attempt")


def lose_a_worker(system: System, space: Kube) -> None:
    gone = pods_of(space, "worker")[0]
    space.delete("pod", gone, force=True)
    space.wait_for(lambda: len({*pods_of(space, "worker")} - {gone}) == 2, what="another worker")


def lose_all_workers(system: System, space: Kube) -> None:
    gone = pods_of(space, "worker")
    for pod in gone:
        space.delete("pod", pod, force=True)
    space.wait_for(lambda: len({*pods_of(space, "worker")} - {*gone}) == 2, what="other workers")


def lose_the_operator(system: System, space: Kube) -> None:
    [pod] = system.pods()
    system.home.delete("pod", pod, force=True)
    system.home.kubectl("rollout", "status", "deployment/tarmill", timeout_s=90)


def lose_the_api_server(system: System, space: Kube) -> None:
    with system.home.without("apiserver"):
        pass


def lose_operator_and_runner(system: System, space: Kube) -> None:
    with system.stopped():
        [runner] = pods_of(space, "runner")
        space.delete("pod", runner, force=True)
    space.wait("shardmap", "upper", lambda found: found["status"].get("attempt") == 2, what="another attempt")


FAULTS: list[Fault] = [lose_the_runner, lose_a_worker, lose_the_operator, lose_the_api_server]
RARER: list[Fault] = [lose_all_workers, lose_operator_and_runner]


CASES = [*FAULTS, *(pytest.param(fault, marks=pytest.mark.long) for fault in RARER)]


@pytest.mark.parametrize("fault", CASES, ids=lambda fault: fault.__name__)
def test_a_run_outlasts_a_loss(system: System, data: Data, fault: Fault) -> None:
    gate = Gate(system, data.name)
    with system.namespace() as space:
        held(system, space, data, gate)
        fault(system, space)
        gate.open()
        status = ends_well(space, data)
        assert status["attempt"] == (2 if "runner" in fault.__name__ else 1)


def test_a_run_that_is_suspended_twice_costs_no_retry(system: System, data: Data) -> None:
    gate = Gate(system, data.name)
    with system.namespace() as space:
        held(system, space, data, gate)
        for _ in range(2):
            set_run(space, suspend=True)
            space.wait("shardmap", "upper", lambda found: phase(found) == "Suspended", what="the pause")
            space.wait_for(lambda: not space.names("pod", "tarmill.dev/kind"), what="the end of all pods")
            set_run(space, suspend=False)
            space.wait("shardmap", "upper", lambda found: phase(found) == "Running", 90, "the next part")
        gate.open()
        status = ends_well(space, data)
        assert status["restarts"]["counted"] == 0


def test_workers_are_scaled_while_a_job_runs(system: System, data: Data) -> None:
    gate = Gate(system, data.name)
    with system.namespace() as space:
        held(system, space, data, gate)
        for count in (3, 1):
            change = {"spec": {"workers": {"replicas": count}}}
            space.kubectl("patch", "shardmap", "upper", "--type=merge", "-p", json.dumps(change))
            space.wait_for(lambda count=count: len(pods_of(space, "worker")) == count, 90, f"{count} workers")  # type: ignore[misc]
        gate.open()
        ends_well(space, data)


def test_what_is_deleted_in_mid_run_leaves_nothing_with_and_without_the_operator(system: System, data: Data) -> None:
    gate = Gate(system, data.name)
    with system.namespace() as space:
        for context in (nullcontext(), system.stopped()):
            held(system, space, data, gate)
            with context:
                space.delete("shardmap", "upper")
                space.wait_for(lambda: not left_in(space), 90, "the end of all that the job consists of")
        # one of the same name is another one, and goes on with what is finished
        gate.open()
        held_or_done = system.resource(
            "ShardMap", "upper", input=data.input, output=f"{data.url}/mapped/out-@.tar.gz", script=gate.script
        )
        space.apply(held_or_done)
        ends_well(space, data)


def test_a_job_goes_on_while_the_kubelet_is_away(system: System, data: Data) -> None:
    gate = Gate(system, data.name)
    with system.namespace() as space:
        held(system, space, data, gate)
        with system.home.without("kubelet"):
            assert phase(space.get("shardmap", "upper")) == "Running"
        [operator] = system.pods()
        system.home.wait_for(lambda: system.home.logs(operator), 60, "a kubelet that answers")
        gate.open()
        assert ends_well(space, data)["attempt"] == 1


def set_run(space: Kube, **change: Any) -> None:
    space.kubectl("patch", "shardmap", "upper", "--type=merge", "-p", json.dumps({"spec": {"run": change}}))


def left_in(space: Kube) -> list[str]:
    """All objects of jobs that are still there."""
    kinds = "pods,jobs,deployments,services,configmaps,secrets,networkpolicies"
    return space.kubectl("get", kinds, "-l", "tarmill.dev/uid", "-o", "name").split()
