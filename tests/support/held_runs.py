"""A map on two workers that is held in the middle, what tests do to it there, and what must be true in the end."""

from __future__ import annotations

from typing import Any

from support.gates import Gate
from support.kube import Kube
from support.operated import System, is_over, phase
from support.shards_in_store import SHARDS, Data

WORKERS = 2
"""So many shards can be in work at a time."""
BRIEF = {"podTemplate": {"spec": {"terminationGracePeriodSeconds": 1}}}
"""Of runner or workers: pods that are told to go have gone a second later, whatever their script does meanwhile."""


def job(system: System, data: Data, name: str = "upper", **spec: Any) -> dict[str, Any]:
    """A map of the data to `mapped` on two workers; `spec` goes over that."""
    output = f"{data.url}/mapped/out-@.tar.gz"
    spec["workers"] = {"replicas": WORKERS, **spec.get("workers", {})}
    return system.resource("ShardMap", name, **{"input": data.input, "output": output, **spec})


def held(system: System, space: Kube, data: Data, gate: Gate, **spec: Any) -> None:
    """Begin a map on two workers, and return when one shard is done and the others wait at the gate."""
    script = {} if "scriptFrom" in spec else {"script": gate.script}
    space.apply(job(system, data, **script, **spec))

    def is_held(found: Any) -> bool:
        assert phase(found) != "Failed", found["status"]
        return bool(found.get("status", {}).get("shards", {}).get("done") == 1)

    space.wait("shardmap", "upper", is_held, 180, "one shard that is done")


def ends_well(space: Kube, data: Data, gate: Gate, lost: int | None = 0) -> dict[str, Any]:
    """Wait for success, and make sure that all is as if nothing had been; the status.

    Args:
        space, data, gate: of the run.
        lost: how many shards that were in work may have been begun again; None where that is not bounded.
    """
    done = space.wait("shardmap", "upper", is_over, 180, "the end")
    status: dict[str, Any] = done["status"]
    assert status["phase"] == "Succeeded", status
    assert status["shards"] == {"total": SHARDS, "done": SHARDS, "failed": 0}
    assert data.system.bytes_of(f"{data.name}/mapped") == data.mapped()
    names = data.system.names(f"{data.name}/mapped")
    assert all(name.endswith((".tar.gz", ".json")) for name in names), f"scratch is left: {names}"
    if lost is not None:
        begun = gate.begun()
        assert begun["k0-001"] == 1, begun
        assert SHARDS <= begun.total() <= SHARDS + lost, begun
    return status


def lose_the_runner(system: System, space: Kube) -> None:
    """Kill the runner of the first attempt, and wait for the second."""
    [pod] = pods_of(space, "runner")
    space.delete("pod", pod, force=True)
    space.wait("shardmap", "upper", lambda found: attempt(found) == 2, what="another attempt")


def attempt(found: Any) -> int:
    return int(found.get("status", {}).get("attempt", 0))


def pods_of(space: Kube, role: str) -> list[str]:
    return list(space.names("pod", f"tarmill.dev/role={role}"))


def left_in(space: Kube) -> list[str]:
    """All objects of jobs that are still there."""
    kinds = "pods,jobs,deployments,services,configmaps,secrets,networkpolicies"
    return space.kubectl("get", kinds, "-l", "tarmill.dev/uid", "-o", "name").split()
