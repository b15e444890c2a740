"""From the first to the last of a resource on a real cluster: what is removed when, and what never is."""

from __future__ import annotations

from typing import Any

import pytest
from support.held_runs import BRIEF, left_in
from support.maps import UPPER
from support.operated import System, phase
from support.shards_in_store import Data

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("kube"), pytest.mark.timeout(400)]

BROKEN = "def process_sample(record):\n    raise ValueError(record)\n"
LONGEST = "a" * 40


def test_children_of_an_ended_run_go_in_time_and_the_resource_only_where_it_says_so(system: System, data: Data) -> None:
    def expiring(name: str, **run: Any) -> dict[str, Any]:
        run = {"ttlSecondsAfterFinished": 2, **run}
        output = f"{data.url}/{name}/out-@.tar.gz"
        return system.resource("ShardMap", name, input=data.input, output=output, script=UPPER, run=run)

    with system.namespace() as space:
        space.apply(expiring(LONGEST), expiring("passing", deleteWhenExpired=True))
        cleaned = space.wait("shardmap", LONGEST, lambda found: cleaned_time(found) and found, 120, "a clean end")
        assert phase(cleaned) == "Succeeded"
        assert cleaned["status"]["completionTime"] < cleaned_time(cleaned)
        space.wait_gone("shardmap", "passing")
        space.wait_for(lambda: not left_in(space), what="the end of all children")
        assert space.get("shardmap", LONGEST)["status"] == cleaned["status"]
    for name in (LONGEST, "passing"):
        assert system.bytes_of(f"{data.name}/{name}") == data.mapped()


def test_a_resource_leaves_nothing_whichever_phase_it_is_deleted_in(system: System, data: Data) -> None:
    def job(name: str, script: str = UPPER, **spec: Any) -> dict[str, Any]:
        source = {} if "inputFrom" in spec else {"input": data.input}
        output = f"{data.url}/{name}/out-@.tar.gz"
        return system.resource("ShardMap", name, output=output, script=script, **source, **spec)

    with system.namespace() as space:
        phases = {
            "done": ("Succeeded", job("done")),
            "failed": ("Failed", job("failed", BROKEN, run={"backoffLimit": 0})),
            "retrying": (
                "Retrying",
                job("retrying", BROKEN, run={"backoffBaseSeconds": 600, "backoffMaxSeconds": 600}),
            ),
            "starting": (
                "Starting",
                job("starting", image="localhost/none:1", workers={"replicas": 2}, run={"pendingDeadlineSeconds": 600}),
            ),
            "suspended": ("Suspended", job("suspended", run={"suspend": True})),
            "waiting": ("WaitingForInput", job("waiting", inputFrom={"kind": "ShardUpload", "name": "none"})),
        }
        space.apply(*(resource for _, resource in phases.values()))
        for name, (expected, _) in phases.items():
            space.wait("shardmap", name, lambda found, expected=expected: phase(found) == expected, what=expected)  # type: ignore[misc]
        space.apply(job("new", workers={"replicas": 2, **BRIEF}, runner=BRIEF))
        space.kubectl("delete", "shards", "--all", "--wait")
        space.wait_for(lambda: not left_in(space), what="the end of all that they consisted of")


def cleaned_time(found: Any) -> str:
    return str(found.get("status", {}).get("cleanedTime", ""))
