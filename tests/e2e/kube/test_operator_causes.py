"""What a resource's status says of what stands in its way, on a real cluster: the cause, in words, and soon."""

from __future__ import annotations

from typing import Any

import pytest
from support.gates import HANGING, Gate
from support.kube import Kube, KubectlError
from support.maps import UPPER
from support.operated import System, condition, is_over, phase
from support.pods import is_ready, pod
from support.shards_in_store import SHARDS, Data
from support.told_times import assert_told_soon

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("kube"), pytest.mark.timeout(400)]

BROKEN = """
def process_sample(record):
    if record["__key__"] == "k2-007":
        raise ValueError("no such caption")
    return record
"""
GREEDY = """
def process_sample(record):
    if record["__key__"] == "k1-003":
        record["txt"] = b"".join(bytearray(b"x" * (1 << 20)) for _ in range(4096))
    return record
"""

POISON = """
import os

def process_sample(record):
    if record["__key__"] == "k1-003":
        os._exit(7)
    return record
"""


def job(system: System, data: Data, script: str = UPPER, **spec: Any) -> dict[str, Any]:
    output = f"{data.url}/mapped/out-@.tar.gz"
    return system.resource("ShardMap", "upper", input=data.input, output=output, script=script, **spec)


def stands_in_the_way(found: Any) -> tuple[str, str] | None:
    """Reason and message of a resource that cannot go on for now, or has failed."""
    status = found.get("status", {})
    last = status.get("lastFailure") or {}
    if phase(found) in ("Failed", "Retrying") and last:
        return last["reason"], last["message"]
    usual = ("", "Planned", "StartingPods", "WaitingForWorkers", "Working", "WaitingForInput", "Publishing")
    return (status["reason"], status["message"]) if status.get("reason", "") not in usual else None


def told(space: Kube) -> tuple[str, str]:
    found: tuple[str, str] = space.wait("shardmap", "upper", stands_in_the_way, what="the cause of the trouble")
    return found


def failure_told_soon(space: Kube) -> dict[str, Any]:
    """The last failure, which was in the status within the time that is promised."""
    failure: dict[str, Any] = space.get("shardmap", "upper")["status"]["lastFailure"]
    assert_told_soon(space, failure)
    return failure


def last_reason(found: Any) -> str | None:
    last = found.get("status", {}).get("lastFailure")
    return last["reason"] if last else None


def kept_logs(space: Kube, count: int) -> dict[str, str]:
    """What is kept of the logs of pods that failed, by file name; they come soon after the end."""

    def maps() -> list[dict[str, str]]:
        found = [one["data"] for one in space.all("configmap") if one["metadata"]["name"].endswith("-logs")]
        return found if sum(map(len, found)) >= count else []

    [kept] = space.wait_for(maps, what=f"{count} logs that are kept")
    return kept


QUOTA = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "nothing"},
    "spec": {"hard": {"pods": "0"}},
}


@pytest.mark.parametrize(("spec", "reason", "words"), [
    ({"image": "localhost/none:1", "imagePullPolicy": "Never"}, "ImagePullFailed", "localhost/none:1"),
    ({"runner": {"envFrom": [{"secretRef": {"name": "gone"}}]}}, "SecretMissing", 'secret "gone" not found'),
    ({"runner": {"resources": {"requests": {"cpu": "900"}}}}, "Unschedulable", "Insufficient cpu"),
    ({"runner": {"serviceAccountName": "nobody"}}, "PodRefused", "nobody"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_what_keeps_pods_from_running_is_told(
    system: System, data: Data, spec: dict[str, Any], reason: str, words: str
) -> None:
    with system.namespace() as space:
        space.apply(job(system, data, **spec))
        found, message = told(space)
        assert found == reason, message
        assert words in message
        assert failure_told_soon(space)["reason"] == reason


def test_a_quota_without_room_is_told_and_the_job_runs_once_there_is(system: System, data: Data) -> None:
    with system.namespace() as space:
        space.apply(QUOTA)
        space.wait("resourcequota", "nothing", lambda found: found.get("status", {}).get("hard"), what="its effect")
        space.apply(job(system, data))
        reason, message = told(space)
        assert reason == "QuotaExceeded", message
        assert failure_told_soon(space)["reason"] == reason
        space.delete("resourcequota", "nothing")
        assert phase(space.wait("shardmap", "upper", is_over, 120, "the end")) == "Succeeded"
    assert system.bytes_of(f"{data.name}/mapped") == data.mapped()


def test_an_error_of_the_script_is_told_in_its_words_and_the_other_shards_are_done(system: System, data: Data) -> None:
    with system.namespace() as space:
        space.apply(job(system, data, BROKEN, run={"backoffLimit": 1}))
        done = space.wait("shardmap", "upper", is_over, 120, "the end")
        status = done["status"]
        assert phase(done) == "Failed"
        assert status["reason"] == "BackoffLimitExceeded"
        assert status["attempt"] == 2
        assert status["lastFailure"]["reason"] == "ScriptError"
        assert "no such caption" in status["lastFailure"]["message"]
        assert "k2-007" in status["lastFailure"]["message"]
        assert status["shards"] == {"total": SHARDS, "done": SHARDS - 1, "failed": 1}
        failure_told_soon(space)
        logs = kept_logs(space, 2)
        assert [name.split("-")[-2] for name in sorted(logs)] == ["a1", "a2"]
        assert all("no such caption" in text for text in logs.values())


@pytest.mark.parametrize("workers", [0, 2], ids=["runner", "worker"])
def test_who_used_too_much_memory_is_told_with_the_limit(system: System, data: Data, workers: int) -> None:
    with system.namespace() as space:
        space.apply(job(system, data, GREEDY, workers={"replicas": workers}, run={"backoffLimit": 0}))
        reason = "WorkerOOMKilled" if workers else "RunnerOOMKilled"
        space.wait("shardmap", "upper", lambda found: last_reason(found) == reason, 120, reason)
        failure_told_soon(space)
        done = space.wait("shardmap", "upper", is_over, 180, "the end")
        last = done["status"]["lastFailure"]
        assert (phase(done), last["reason"]) == ("Failed", reason), done["status"]
        assert "400Mi" in last["message"]
        assert f"{last['pod']}.log" in kept_logs(space, 1)


def test_a_shard_that_kills_its_worker_each_time_is_told_and_the_others_are_done(system: System, data: Data) -> None:
    with system.namespace() as space:
        space.apply(job(system, data, POISON, workers={"replicas": 2}, run={"backoffLimit": 0}))
        done = space.wait("shardmap", "upper", is_over, 240, "the end")
        status = done["status"]
        assert phase(done) == "Failed"
        assert status["lastFailure"]["reason"] in ("WorkerDied", "WorkerFailed"), status["lastFailure"]
        assert status["shards"] == {"total": SHARDS, "done": SHARDS - 1, "failed": 1}


def test_the_dask_operators_absence_is_told_at_once_with_the_cure(system: System, data: Data) -> None:
    with system.namespace() as space:
        space.apply(job(system, data, workers={"replicas": 1}, cluster={"engine": "dask-kubernetes"}))
        reason, message = told(space)
        assert reason == "BackendMissing"
        assert "Dask operator" in message
        assert condition(space.get("shardmap", "upper"), "Accepted") == "False"


@pytest.mark.parametrize(("run", "image", "reason", "last"), [
    ({"activeDeadlineSeconds": 5}, "", "DeadlineExceeded", None),
    ({"pendingDeadlineSeconds": 25}, "localhost/none:1", "PendingDeadline", "ImagePullFailed"),
    ({"progressDeadlineSeconds": 4, "backoffLimit": 0}, "", "BackoffLimitExceeded", "ProgressDeadline"),
], ids=["active", "pending", "progress"])  # fmt: skip
def test_a_deadline_ends_a_run(
    system: System, data: Data, run: dict[str, int], image: str, reason: str, last: str | None
) -> None:
    spec = {"image": image, "imagePullPolicy": "Never"} if image else {}
    with system.namespace() as space:
        space.apply(job(system, data, HANGING, run=run, **spec))
        done = space.wait("shardmap", "upper", is_over, 120, "the end")
        assert (phase(done), done["status"]["reason"], last_reason(done)) == ("Failed", reason, last), done["status"]
        space.wait_for(lambda: not space.names("pod", "tarmill.dev/role=runner"), what="the end of the pods")


def test_what_may_not_change_is_refused_and_another_run_id_runs_it_anew(system: System, data: Data) -> None:
    with system.namespace() as space:
        space.apply(job(system, data))
        assert phase(space.wait("shardmap", "upper", is_over, 120, "the end")) == "Succeeded"
        with pytest.raises(KubectlError, match="immutable"):
            space.apply(job(system, data, "def process_sample(record):\n    return record\n"))
        script = "def process_sample(record):\n    return record\n"
        space.apply(job(system, data, script, exists="overwrite", run={"runId": "two"}))
        space.wait(
            "shardmap", "upper", lambda found: found["status"].get("runId") == "two" and is_over(found), 120, "its end"
        )
        assert space.get("shardmap", "upper")["status"]["phase"] == "Succeeded"
    assert system.bytes_of(f"{data.name}/mapped") != data.mapped()


LISTENING = """
rows = [line.split() for name in ("tcp", "tcp6") for line in list(open("/proc/net/" + name))[1:]]
listening = [row[1].split(":") for row in rows if row[3] == "0A"]
print(*{int(port, 16) for address, port in listening if address != "0100007F"})
"""
REACHED = """
import socket, sys
for address in sys.argv[1:]:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
        print(address)
    except OSError:
        pass
"""


def reached(space: Kube, pod: str, addresses: list[str]) -> list[str]:
    """Those of the addresses (host:port) to which a pod can connect."""
    return space.exec(pod, "python", "-c", REACHED, *addresses).split()


def test_strangers_reach_neither_scheduler_nor_workers_nor_runner(system: System, data: Data) -> None:
    gate = Gate(system, data.name)
    with system.namespace() as space, system.namespace() as elsewhere:
        space.apply(job(system, data, gate.script, workers={"replicas": 1}))
        space.wait("shardmap", "upper", lambda found: phase(found) == "Running", what="work")
        pods = {found["metadata"]["name"]: found["status"]["podIP"] for found in space.all("pod", "tarmill.dev/uid")}
        addresses = [
            f"{address}:{port}"
            for name, address in pods.items()
            for port in space.exec(name, "python", "-c", LISTENING).split()
        ]
        assert {address.rpartition(":")[2] for address in addresses} >= {"8786", "8788"}
        assert len(addresses) >= 3, "no worker listens"
        for where in (space, elsewhere):
            where.apply(pod("stranger", where.image("runner"), ["sleep", "1000"]))
            where.wait("pod", "stranger", is_ready, what="readiness")
            # A cluster enforces a policy some moments after it and the pods have come.
            where.wait_for(
                lambda space=where: not reached(space, "stranger", addresses), what="refusals of the stranger"
            )
        inside = next(name for name in pods if "-w-" in name)
        space.wait_for(lambda: reached(space, inside, addresses) == addresses, what="answers to the job's own pod")
        gate.open()
        assert phase(space.wait("shardmap", "upper", is_over, 120, "the end")) == "Succeeded"
