"""Root causes out of pods and Events as a real node (Kubernetes 1.34) gave them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.observing import NOW, ended, pod_of, resource, running, settle, started, with_job

from tarmill_operator.causes import cause_of_end
from tarmill_operator.model import Observed
from tarmill_operator.reasons import OF_ERRORS, REASONS
from tarmill_operator.reconcile import reconcile
from tarmill_operator.times import to_text

JOB, WORKERS = "digits-0a1b2c3d-r1-a1", "digits-0a1b2c3d-r1-w"


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "containerStatuses": [{"name": "x", "image": "tarmill:1", "state": state}]}


def event(reason: str, about: str, message: str) -> dict[str, Any]:
    return {"kind": "Event", "reason": reason, "involvedObject": {"name": about}, "message": message}


NOT_PULLED = (
    'Back-off pulling image "localhost/nope:1": ErrImagePull: failed to resolve reference "localhost/nope:1": '
    'failed to do request: Head "https://localhost/v2/nope/manifests/1": connection refused'
)
UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 "
            "nodes are available: 1 No preemption victims found for incoming pod.",
        }
    ],
}


@pytest.mark.parametrize(
    ("status", "reason", "part"),
    [
        (waiting("ImagePullBackOff", NOT_PULLED), "ImagePullFailed", "localhost/nope:1"),
        (waiting("ErrImagePull", "connection refused"), "ImagePullFailed", "tarmill:1: connection refused"),
        (waiting("ErrImageNeverPull"), "ImagePullFailed", "tarmill:1: ErrImageNeverPull"),
        (waiting("InvalidImageName", 'couldn\'t parse image name "UPPER CASE"'), "ImagePullFailed", "UPPER CASE"),
        (waiting("CreateContainerConfigError", 'secret "nope" not found'), "SecretMissing", "nope"),
        (waiting("CreateContainerConfigError", "couldn't find key k in Secret team/s3"), "SecretMissing", "key k"),
        (waiting("CreateContainerConfigError", 'configmap "nope" not found'), "ConfigMapMissing", "nope"),
        (
            waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
            "ContainerRefused",
            "as root",
        ),
        (UNSCHEDULABLE, "Unschedulable", "Insufficient cpu"),
    ],
)
@pytest.mark.parametrize("role", ["runner", "worker"])
def test_what_keeps_a_pod_from_starting_is_told(status: dict[str, Any], reason: str, part: str, role: str) -> None:
    observed = started()
    pods = [pod_of(observed), pod_of(observed, role, **status)]
    observed = replace(observed, pods=tuple(pods[1:] if role == "runner" else pods))
    told = reconcile(observed, NOW).status
    assert (told["phase"], told["reason"]) == ("Starting", reason)
    assert part in told["message"]
    assert told["lastFailure"]["component"] == role
    assert told["lastFailure"]["pod"] == f"{role}-1"


@pytest.mark.parametrize(
    ("about", "reason", "message", "expected", "component"),
    [
        (
            JOB,
            "FailedCreate",
            'pods "x" is forbidden: exceeded quota: none, requested: pods=1',
            "QuotaExceeded",
            "runner",
        ),
        (f"{WORKERS}-5d4f", "FailedCreate", "exceeded quota: none", "QuotaExceeded", "worker"),
        (
            JOB,
            "FailedCreate",
            'pods "x" is forbidden: violates PodSecurity "restricted:latest"',
            "PodRefused",
            "runner",
        ),
        (
            JOB,
            "FailedCreate",
            'error looking up service account team/x: serviceaccount "x" not found',
            "PodRefused",
            "runner",
        ),
    ],
)
def test_pods_that_never_come_to_be_are_told_of_by_events(
    about: str, reason: str, message: str, expected: str, component: str
) -> None:
    observed = started()
    if component == "worker":
        observed = replace(observed, pods=(pod_of(observed),))
    told = reconcile(replace(observed, events=(event(reason, about, message),)), NOW).status
    assert (told["reason"], told["lastFailure"]["component"]) == (expected, component)


def test_an_event_about_another_attempt_says_nothing() -> None:
    observed = started()
    events = (event("FailedCreate", f"{JOB}0", "exceeded quota"), event("FailedCreate", "digits-0a1b2c3d-r11-w-1", "x"))
    assert reconcile(replace(observed, events=events), NOW).status["reason"] == "StartingPods"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ('MountVolume.SetUp failed for volume "d" : secret "nope" not found', "SecretMissing"),
        ('MountVolume.SetUp failed for volume "script-0" : configmap "scripts" not found', "ConfigMapMissing"),
        ("MountVolume.SetUp failed for volume nfs: connection timed out", "VolumeMissing"),
    ],
)
def test_a_volume_that_cannot_be_mounted_is_told_of_by_an_event(message: str, expected: str) -> None:
    observed = started()
    pods = (pod_of(observed, **waiting("ContainerCreating")),)
    told = reconcile(replace(observed, pods=pods, events=(event("FailedMount", "runner-1", message),)), NOW).status
    assert told["reason"] == expected


@pytest.mark.parametrize("lag", [
    "failed to sync configmap cache: timed out waiting for the condition",
    "failed to sync secret cache: timed out waiting for the condition",
    'object "space"/"digits-0a1b2c3d-r1" not registered',
])  # fmt: skip
def test_a_kubelet_that_has_yet_to_catch_up_with_the_server_is_no_obstacle(lag: str) -> None:
    """As after an outage of the API server: it tries again by itself, and nothing is missing."""
    observed = started()
    pods = (pod_of(observed, **waiting("ContainerCreating")),)
    message = f'MountVolume.SetUp failed for volume "job" : {lag}'
    late = event("FailedMount", "runner-1", message)
    told = reconcile(replace(observed, pods=pods, events=(late,)), NOW).status
    assert told["reason"] == "StartingPods"
    missing = event("FailedMount", "runner-1", 'MountVolume.SetUp failed for volume "d" : secret "nope" not found')
    told = reconcile(replace(observed, pods=pods, events=(late, missing)), NOW).status
    assert told["reason"] == "SecretMissing"


@pytest.mark.parametrize("lag", [
    "failed to sync secret cache: timed out waiting for the condition",
    'object "space"/"store" not registered',
    "services have not yet been read at least once, cannot construct envvars",
])  # fmt: skip
def test_nor_is_one_whose_containers_take_their_environment_from_what_it_has_not_heard_of_yet(lag: str) -> None:
    observed = started()
    pods = (pod_of(observed, **waiting("CreateContainerConfigError", lag)),)
    assert reconcile(replace(observed, pods=pods), NOW).status["reason"] == "StartingPods"
    pods = (pod_of(observed, **waiting("CreateContainerConfigError", 'secret "store" not found')),)
    assert reconcile(replace(observed, pods=pods), NOW).status["reason"] == "SecretMissing"


def test_certificates_that_pods_miss_are_made_again() -> None:
    observed = started()
    message = 'MountVolume.SetUp failed for volume "tls" : secret "digits-0a1b2c3d-r1-tls" not found'
    pods = (pod_of(observed, **waiting("ContainerCreating")),)
    observed, decision = settle(replace(observed, pods=pods, events=(event("FailedMount", "runner-1", message),)))
    assert [item["kind"] for item in decision.apply] == ["Secret"]


DISRUPTED = {"type": "DisruptionTarget", "status": "True"}


@pytest.mark.parametrize(
    ("status", "reason", "disruption", "final"),
    [
        (ended(137, state_reason="OOMKilled"), "RunnerOOMKilled", False, False),
        (ended(7, state_reason="OOMKilled"), "RunnerOOMKilled", False, False),
        (ended(1, outcome="failed", reason="AccessError", message="403 for s3://b/x"), "AccessDenied", False, False),
        (ended(1, outcome="failed", reason="ValueError", message="?"), "RunnerFailed", False, False),
        (ended(2, outcome="usage", reason="SpecError", message="no such field"), "UsageError", False, True),
        (ended(143, outcome="interrupted", reason="Interrupted", message="SIGTERM"), "Disrupted", True, False),
        (ended(1), "RunnerFailed", False, False),
        (ended(128, state_reason="StartError"), "ContainerRefused", False, False),
        (
            {
                "phase": "Failed",
                "reason": "Evicted",
                "message": 'Usage of EmptyDir volume "tmp" exceeds the limit "20Mi".',
            },
            "Evicted",
            False,
            False,
        ),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."},
            "Evicted",
            True,
            False,
        ),
        (
            ended(143) | {"conditions": [DISRUPTED | {"reason": "EvictionByEvictionAPI", "message": "Eviction API"}]},
            "Disrupted",
            True,
            False,
        ),
        (
            {"phase": "Failed", "conditions": [DISRUPTED | {"reason": "DeletionByTaintManager", "message": "taint"}]},
            "Disrupted",
            True,
            False,
        ),
        ({"phase": "Failed", "reason": "NodeShutdown", "message": "node is shutting down"}, "Disrupted", True, False),
        (running(), "RunnerLost", True, False),
    ],
)
def test_the_end_of_a_runner_has_one_cause(status: dict[str, Any], reason: str, disruption: bool, final: bool) -> None:
    cause = cause_of_end(pod_of(started(), **status))
    assert (cause.reason, cause.disruption, cause.final, cause.pod) == (reason, disruption, final, "runner-1")
    assert cause.message
    assert cause.reason in REASONS


def test_a_pod_that_is_gone_without_a_word_and_one_that_someone_deleted_cost_no_retry() -> None:
    assert cause_of_end(None).disruption
    pod = pod_of(started(), **ended(137))
    pod["metadata"]["deletionTimestamp"] = to_text(NOW)
    assert (cause_of_end(pod).reason, cause_of_end(pod).disruption) == ("Disrupted", True)


def oom_worker(observed: Observed) -> dict[str, Any]:
    pod = pod_of(observed, "worker")
    ended_before = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    pod["status"]["containerStatuses"][0] |= {"lastState": ended_before, "restartCount": 1}
    return pod


def test_a_worker_out_of_memory_is_told_with_its_limit_while_the_job_goes_on() -> None:
    observed = started()
    words = {"format": 1, "phase": "running", "shards": {"total": 4, "done": 1, "failed": 0}}
    observed = replace(observed, pods=(pod_of(observed), oom_worker(observed)), progress=words)
    decision = reconcile(observed, NOW)
    assert decision.status["phase"] == "Running"
    failure = decision.status["lastFailure"]
    assert (failure["reason"], failure["pod"], failure["exitCode"]) == ("WorkerOOMKilled", "worker-1", 137)
    assert "2Gi" in failure["message"]
    assert ("WorkerOOMKilled", True) in [(notice.reason, notice.warning) for notice in decision.notices]


def test_a_shard_that_kills_its_workers_by_memory_fails_by_that() -> None:
    observed = started(resource(run={"backoffLimit": 0}))
    words = {"outcome": "failed", "reason": "WorkerDied", "message": "shard in-3.tar killed 4 workers"}
    pods = (pod_of(observed, **ended(1, **words)), oom_worker(observed))
    status = reconcile(replace(with_job(observed, "Failed"), pods=pods, fresh=True), NOW).status
    assert (status["phase"], status["lastFailure"]["reason"]) == ("Failed", "WorkerOOMKilled")
    assert "in-3.tar" in status["lastFailure"]["message"]


def test_every_reason_that_errors_lead_to_is_explained() -> None:
    assert set(OF_ERRORS.values()) <= set(REASONS)
    assert all(reason.means and reason.cure for reason in REASONS.values())
