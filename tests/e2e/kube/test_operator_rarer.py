"""What rarely happens to a job on a real cluster, one story each; see also the faults of test_operator_faults.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from support.gates import HANGING, Gate
from support.held_runs import BRIEF, WORKERS, ends_well, held, job, lose_the_runner
from support.operated import OPERATORS, System, is_over, phase, reason
from support.shards_in_store import SHARDS, Data
from support.told_times import assert_told_soon

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("kube"), pytest.mark.timeout(400)]

Story = Callable[[System, Data], None]
LARGE = """
import time

def process_sample(record):
    with open("/tmp/large", "wb") as file:
        file.write(bytes(64 << 20))
    time.sleep(1000)
"""


def a_sample_that_hangs_is_given_up_and_the_other_shards_are_done(system: System, data: Data) -> None:
    with system.namespace() as space:
        options = {"taskTimeout": "3s"}
        space.apply(job(system, data, script=HANGING, options=options, run={"backoffLimit": 0}))
        status = space.wait("shardmap", "upper", is_over, 120, "the end")["status"]
        assert (status["phase"], status["lastFailure"]["reason"]) == ("Failed", "TaskTimeout"), status
        assert "in-1.tar" in status["lastFailure"]["message"]
        assert status["shards"] == {"total": SHARDS, "done": SHARDS - 1, "failed": 1}
        assert_told_soon(space, status["lastFailure"])


def a_runner_that_outgrows_its_own_volume_is_evicted_and_that_counts(system: System, data: Data) -> None:
    volume = {"volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "16Mi"}}], **BRIEF}
    with system.namespace() as space:
        space.apply(job(system, data, script=LARGE, runner=volume, workers={"replicas": 0}, run={"backoffLimit": 0}))
        status = space.wait("shardmap", "upper", is_over, 180, "the end")["status"]
        assert (status["phase"], status["lastFailure"]["reason"]) == ("Failed", "Evicted"), status
        assert "16Mi" in status["lastFailure"]["message"]


def a_script_that_is_changed_in_mid_run_is_for_the_next_run(system: System, data: Data) -> None:
    gate = Gate(system, data.name)

    def scripts(text: str) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "scripts"}, "data": {"map.py": text}}

    with system.namespace() as space:
        space.apply(scripts(gate.script))
        held(system, space, data, gate, scriptFrom={"configMap": {"name": "scripts", "key": "map.py"}})
        space.apply(scripts("def process_sample(record):\n    return None\n"))
        lose_the_runner(system, space)
        gate.open()
        ends_well(space, data, gate, lost=WORKERS)


def of_two_resources_that_write_to_one_output_the_older_is_first(system: System, data: Data) -> None:
    gate = Gate(system, data.name)
    other = "def process_sample(record):\n    return record\n"
    with system.namespace() as space:
        held(system, space, data, gate)
        space.apply(job(system, data, "younger", script=other, workers={"replicas": 0}))
        space.wait("shardmap", "younger", lambda found: reason(found) == "OutputInUse", what="its wait")
        gate.open()
        ends_well(space, data, gate)
        status = space.wait("shardmap", "younger", is_over, 120, "the end")["status"]
        assert (status["phase"], status["reason"]) == ("Failed", "UsageError"), status
        assert "exist already" in status["message"]
    assert system.bytes_of(f"{data.name}/mapped") == data.mapped()


def a_namespace_that_is_deleted_in_mid_run_goes_without_any_complaint(system: System, data: Data) -> None:
    with system.namespace() as space:
        space.apply(job(system, data, script=HANGING, runner=BRIEF, workers=BRIEF))
        space.wait("shardmap", "upper", lambda found: phase(found) == "Running", what="work")
        system.home.kubectl("delete", "namespace", space.space, "--timeout=100s", timeout_s=110)
        [operator] = system.pods()
        complaints = ("WARNING", "ERROR", "Traceback")
        lines = [line for line in system.home.logs(operator).splitlines() if space.space in line]
        assert [line for line in lines if any(word in line for word in complaints)] == []


SELECTORS = {"runner": "tarmill.dev/role=runner", "worker": "tarmill.dev/role=worker", "operator": OPERATORS}


def is_lost(who: str, when: str, system: System, data: Data) -> None:
    gate = Gate(system, data.name)
    with system.namespace() as space:
        where = system.home if who == "operator" else space
        if when == "at the end":
            held(system, space, data, gate)
            gate.open()
            space.wait("shardmap", "upper", lambda found: shards_done(found) >= SHARDS - 1, what="most shards")
        else:
            gate.open()
            space.apply(job(system, data, script=gate.script))
        if when == "as pods start":
            space.wait_for(lambda: where.names("pod", SELECTORS[who]), what=f"a pod of the {who}")
        for pod in where.names("pod", SELECTORS[who]):
            where.kubectl("delete", "pod", pod, "--force", "--grace-period=0", "--ignore-not-found")
        assert ends_well(space, data, gate, lost=None)["restarts"]["counted"] == 0
    system.home.kubectl("rollout", "status", "deployment/tarmill", timeout_s=90)


def shards_done(found: Any) -> int:
    return int(found.get("status", {}).get("shards", {}).get("done", 0))


def losses() -> Iterator[Any]:
    """Whoever is lost, whenever: the run ends well (in the middle it is told in test_operator_faults.py)."""
    for when, those in (("at once", ["operator"]), ("as pods start", SELECTORS), ("at the end", SELECTORS)):
        for who in those:
            yield pytest.param(partial(is_lost, who, when), id=f"{who} lost {when}")


STORIES = (
    a_sample_that_hangs_is_given_up_and_the_other_shards_are_done,
    a_runner_that_outgrows_its_own_volume_is_evicted_and_that_counts,
    a_script_that_is_changed_in_mid_run_is_for_the_next_run,
    of_two_resources_that_write_to_one_output_the_older_is_first,
    a_namespace_that_is_deleted_in_mid_run_goes_without_any_complaint,
)


@pytest.mark.long
@pytest.mark.parametrize("story", [*(pytest.param(story, id=story.__name__) for story in STORIES), *losses()])
def test_that(system: System, data: Data, story: Story) -> None:
    story(system, data)
