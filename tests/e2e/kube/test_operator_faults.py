"""Faults in the middle of a run on a real cluster; it then ends with the bytes of a run without."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from support.gates import Gate
from support.held_runs import BRIEF, WORKERS, attempt, ends_well, held, job, left_in, lose_the_runner, pods_of
from support.kube import Kube
from support.operated import System, phase
from support.pods import is_ready
from support.shards_in_store import Data

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("kube"), pytest.mark.timeout(400)]

Fault = Callable[[System, Kube], None]


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


def lose_the_api_server_for_a_minute(system: System, space: Kube) -> None:
    """An outage that lasts: its length is the fault, and there is nobody to ask meanwhile."""
    with system.home.without("apiserver"):
        time.sleep(60)


def lose_the_kubelet_until_the_node_is_given_up(system: System, space: Kube) -> None:
    [node] = system.home.names("node")
    with system.home.without("kubelet"):
        system.home.wait("node", node, lambda found: not is_ready(found), 120, "a node that does not answer")
    system.home.wait("node", node, is_ready, what="the node")
    [operator] = system.pods()
    system.home.kubectl("wait", f"pod/{operator}", "--for=condition=Ready", "--timeout=60s", timeout_s=70)


def evict_the_runner(system: System, space: Kube) -> None:
    [pod] = pods_of(space, "runner")
    evict(space, pod)
    found = space.wait("shardmap", "upper", lambda found: attempt(found) == 2 and found, what="another attempt")
    assert found["status"]["lastFailure"]["reason"] == "Disrupted"
    assert found["status"]["restarts"] == {"counted": 0, "uncounted": 1}


def evict_a_worker(system: System, space: Kube) -> None:
    gone = pods_of(space, "worker")[0]
    evict(space, gone)
    space.wait_for(lambda: len({*pods_of(space, "worker")} - {gone}) == 2, what="another worker")


def evict(space: Kube, pod: str) -> None:
    """As a drain of the node does."""
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": space.space}}
    path = f"/api/v1/namespaces/{space.space}/pods/{pod}/eviction"
    space.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(eviction))


def lose_operator_and_runner(system: System, space: Kube) -> None:
    with system.stopped():
        [runner] = pods_of(space, "runner")
        space.delete("pod", runner, force=True)
    space.wait("shardmap", "upper", lambda found: attempt(found) == 2, what="another attempt")


# With each how many shards that were in work may have to be begun again.
FAULTS: list[tuple[Fault, int]] = [
    (lose_the_runner, WORKERS),
    (lose_a_worker, 1),
    (lose_the_operator, 0),
    (lose_the_api_server, 0),
    (evict_the_runner, WORKERS),
]
RARER: list[tuple[Fault, int]] = [
    (lose_all_workers, WORKERS),
    (lose_operator_and_runner, WORKERS),
    (lose_the_api_server_for_a_minute, 0),
    (lose_the_kubelet_until_the_node_is_given_up, 0),
    (evict_a_worker, 1),
]
CASES = [
    *(pytest.param(*case, id=case[0].__name__) for case in FAULTS),
    *(pytest.param(*case, id=case[0].__name__, marks=pytest.mark.long) for case in RARER),
]


@pytest.mark.parametrize(("fault", "lost"), CASES)
def test_a_run_outlasts_a_loss(system: System, data: Data, fault: Fault, lost: int) -> None:
    gate = Gate(system, data.name)
    with system.namespace() as space:
        held(system, space, data, gate)
        fault(system, space)
        gate.open()
        status = ends_well(space, data, gate, lost)
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
            space.wait("shardmap", "upper", lambda found: phase(found) == "Running", what="the next part")
        gate.open()
        status = ends_well(space, data, gate, lost=2 * WORKERS)
        assert status["restarts"]["counted"] == 0


def test_workers_are_scaled_while_a_job_runs(system: System, data: Data) -> None:
    gate = Gate(system, data.name)
    with system.namespace() as space:
        held(system, space, data, gate)
        for count in (3, 1):
            change = {"spec": {"workers": {"replicas": count}}}
            space.kubectl("patch", "shardmap", "upper", "--type=merge", "-p", json.dumps(change))
            space.wait_for(lambda count=count: len(pods_of(space, "worker")) == count, what=f"{count} workers")  # type: ignore[misc]
        gate.open()
        ends_well(space, data, gate, lost=WORKERS)


def test_what_is_deleted_in_mid_run_leaves_nothing_with_and_without_the_operator(system: System, data: Data) -> None:
    gate = Gate(system, data.name)
    with system.namespace() as space:
        for context in (nullcontext(), system.stopped()):
            held(system, space, data, gate, runner=BRIEF, workers=BRIEF)
            with context:
                space.delete("shardmap", "upper")
                space.wait_for(lambda: not left_in(space), what="the end of all that the job consists of")
        # one of the same name is another one, and goes on with what is finished
        gate.open()
        space.apply(job(system, data, script=gate.script))
        ends_well(space, data, gate, lost=2 * WORKERS)


def test_what_is_deleted_while_the_operator_alone_is_cut_off_is_seen_afterwards(system: System, data: Data) -> None:
    gate = Gate(system, data.name)
    with system.namespace() as space:
        held(system, space, data, gate)
        other = {"input": data.input, "output": f"{data.url}/other/out-@.tar.gz", "script": gate.script}
        space.apply(system.resource("ShardMap", "other", **other))
        space.wait("shardmap", "other", lambda found: phase(found) == "Running", what="work")
        with cut_off(system):
            space.delete("shardmap", "other")
            [job] = space.names("job", "tarmill.dev/name=upper")
            space.delete("job", job)
            space.wait_for(lambda: len(pods_of(space, "runner")) == 0, what="the end of both runners")
        gate.open()
        status = ends_well(space, data, gate, lost=None)
        assert status["attempt"] == 2
        space.wait_for(lambda: not space.names("pod,configmap", "tarmill.dev/name=other"), what="the end of the other")


def test_a_job_goes_on_while_the_kubelet_is_away(system: System, data: Data) -> None:
    gate = Gate(system, data.name)
    with system.namespace() as space:
        held(system, space, data, gate)
        with system.home.without("kubelet"):
            assert phase(space.get("shardmap", "upper")) == "Running"
        [operator] = system.pods()
        system.home.wait_for(lambda: system.home.logs(operator), what="a kubelet that answers")
        gate.open()
        assert ends_well(space, data, gate)["attempt"] == 1


@contextmanager
def cut_off(system: System) -> Iterator[None]:
    """The operator, and nobody else, gets no word from the API server in the block."""
    node = system.home.local_node()
    [operator] = system.pods()
    address = system.home.get("pod", operator)["status"]["podIP"]
    rule = ["-s", address, "-p", "tcp", "--dport", "6443", "-j", "DROP"]
    node.command("exec", "iptables", "-I", "INPUT", *rule)
    try:
        yield
    finally:
        node.command("exec", "iptables", "-D", "INPUT", *rule)


def set_run(space: Kube, **change: Any) -> None:
    space.kubectl("patch", "shardmap", "upper", "--type=merge", "-p", json.dumps({"spec": {"run": change}}))
