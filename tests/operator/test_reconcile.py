"""What is decided about a resource, situation by situation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.observing import (
    NOW,
    SETTINGS,
    ended,
    pod_of,
    resource,
    running,
    see,
    settle,
    started,
    store,
    true_conditions,
    with_job,
)

from tarmill_operator.model import Cause, Observed, Ref
from tarmill_operator.reconcile import MAX_UNCOUNTED, reconcile
from tarmill_operator.times import to_text

WORKING = {"format": 1, "phase": "running", "shards": {"total": 4, "done": 1, "failed": 0}}
SCRIPT_ERROR = {"outcome": "failed", "reason": "ScriptError", "message": "map() returned None for sample 7"}


def kinds(refs: tuple[Any, ...]) -> list[str]:
    return [ref.kind if isinstance(ref, Ref) else ref["kind"] for ref in refs]


def failed_once(**run: Any) -> Observed:
    """Observe a resource whose first attempt has failed, and whose failure is stored."""
    observed = started(resource(run=run))
    observed = with_job(replace(observed, pods=(pod_of(observed, **ended(1, **SCRIPT_ERROR)),)), "Failed")
    return store(observed, reconcile(replace(observed, fresh=True), NOW))


# ---- the way of a run ------------------------------------------------------------------------------------------------


def test_a_run_and_then_an_attempt_are_stored_before_anything_is_made() -> None:
    observed = see(resource())
    first = reconcile(observed, NOW)
    assert (first.apply, first.delete, first.status["run"], first.status["attempt"]) == ((), (), 1, 1)
    assert first.requeue_s == 0.0
    second = reconcile(store(observed, first), NOW)
    assert kinds(second.apply) == ["ConfigMap", "NetworkPolicy", "Secret", "Service", "Job", "Deployment"]


def test_a_run_without_workers_is_a_config_map_and_a_job() -> None:
    observed = see(resource(workers={"replicas": 0}))
    observed = store(observed, reconcile(observed, NOW))
    assert kinds(reconcile(observed, NOW).apply) == ["ConfigMap", "Job"]


def test_what_is_there_is_not_made_again_and_waits_for_its_deadline() -> None:
    observed, decision = settle(see(resource(run={"pendingDeadlineSeconds": 100})))
    assert decision.apply == decision.delete == ()
    assert decision.requeue_s == 100
    assert decision.status == observed.resource["status"]


@pytest.mark.parametrize(
    ("pods", "progress", "phase", "reason"),
    [
        ([], None, "Starting", "StartingPods"),
        (["runner"], None, "Starting", "WaitingForWorkers"),
        (["runner"], {"format": 1, "phase": "planning", "workers": 0}, "Starting", "WaitingForWorkers"),
        (["runner", "worker"], {"format": 1, "phase": "planning", "workers": 1}, "Running", "Working"),
        (["runner", "worker"], WORKING, "Running", "Working"),
        (["runner", "worker"], WORKING | {"phase": "publishing"}, "Running", "Publishing"),
    ],
)
def test_the_phase_follows_what_the_runner_says(pods: list[str], progress: Any, phase: str, reason: str) -> None:
    observed = started()
    observed = replace(observed, pods=tuple(pod_of(observed, role) for role in pods), progress=progress)
    status = reconcile(observed, NOW).status
    assert (status["phase"], status["reason"]) == (phase, reason)
    assert true_conditions(status) == {"Accepted", "Reconciling"}


def test_a_job_without_workers_never_waits_for_them() -> None:
    observed = started(resource(workers={"replicas": 0}))
    observed = replace(observed, pods=(pod_of(observed),))
    assert reconcile(observed, NOW).status == observed.resource["status"]
    working = reconcile(replace(observed, progress={"format": 1, "phase": "planning"}), NOW).status
    assert (working["phase"], working["reason"]) == ("Running", "Working")


def test_a_runner_that_cannot_be_asked_is_taken_to_work_when_it_is_up_for_a_minute() -> None:
    observed = started(resource(run={"pendingDeadlineSeconds": 90}))
    pods = (pod_of(observed), pod_of(observed, "worker"))
    observed = replace(observed, pods=pods)
    early = reconcile(observed, NOW + 30)
    assert (early.status["phase"], early.requeue_s) == ("Starting", 30)
    late = reconcile(observed, NOW + 61)
    assert (late.status["phase"], late.status["reason"]) == ("Running", "Working")
    assert "cannot be asked" in late.status["message"]
    assert reconcile(store(observed, late), NOW + 1000).status["phase"] == "Running"


def test_success_is_recorded_before_anything_is_removed_and_leaves_what_is_worth_a_look() -> None:
    observed = started()
    words = {
        "outcome": "succeeded",
        "shards": {"total": 4, "done": 4, "failed": 0},
        "samples": {"written": 1},
        "manifest": "s3://b/m.json",
    }
    observed = with_job(replace(observed, pods=(pod_of(observed, **ended(0, **words)),)), "Complete")
    end = reconcile(observed, NOW + 50)
    assert (end.status["phase"], end.status["manifest"], end.status["percent"]) == ("Succeeded", "s3://b/m.json", 100)
    assert (end.apply, end.delete) == ((), ())
    assert end.status["message"] == "4 shards, 1 sample written"
    assert true_conditions(end.status) == {"Accepted", "Ready", "Complete"}
    after = reconcile(store(observed, end), NOW + 50)
    assert kinds(after.delete) == ["Deployment", "Service", "Secret", "NetworkPolicy"]
    assert after.status == end.status


def test_a_failure_is_tried_again_after_a_pause_that_doubles_and_counts() -> None:
    observed = failed_once(backoffLimit=2, backoffBaseSeconds=10)
    pauses = []
    for attempt in (1, 2):
        status = observed.resource["status"]
        assert (status["phase"], status["attempt"], status["restarts"]["counted"]) == ("Retrying", attempt, attempt)
        assert status["lastFailure"]["reason"] == "ScriptError"
        waiting = reconcile(observed, NOW)
        assert kinds(waiting.delete) == ["Job"]
        assert waiting.logs == (f"runner-{attempt}",)
        pauses.append(waiting.requeue_s)
        observed = replace(observed, children=tuple(one for one in observed.children if one["kind"] != "Job"), pods=())
        observed, _ = settle(observed, NOW + 20)
        observed = with_job(replace(observed, pods=(pod_of(observed, **ended(1, **SCRIPT_ERROR)),)), "Failed")
        decision = reconcile(replace(observed, fresh=True), NOW)
        observed = store(observed, decision)
    assert pauses == [10, 20]
    status = observed.resource["status"]
    assert (status["phase"], status["reason"]) == ("Failed", "BackoffLimitExceeded")
    assert "map() returned None" in status["message"]
    assert true_conditions(status) == {"Accepted", "Stalled", "Failed"}


def test_the_last_lines_of_a_failed_runner_are_kept_though_the_pause_was_over_before_anybody_looked() -> None:
    observed = failed_once(backoffBaseSeconds=1)
    observed = store(observed, reconcile(observed, NOW + 60))
    assert (observed.resource["status"]["phase"], observed.resource["status"]["attempt"]) == ("Pending", 2)
    begun = reconcile(replace(observed, fresh=True), NOW + 60)
    assert kinds(begun.delete) == ["Job"]
    assert begun.logs == ("runner-1",)
    assert begun.logs_name.endswith("-r1-logs")


def test_a_usage_error_is_never_tried_again() -> None:
    observed = started()
    words = {"outcome": "usage", "reason": "SpecError", "message": "no such option"}
    observed = with_job(replace(observed, pods=(pod_of(observed, **ended(2, **words)),)), "Failed")
    status = reconcile(replace(observed, fresh=True), NOW).status
    assert (status["phase"], status["reason"], status["message"]) == ("Failed", "UsageError", "no such option")


def test_disruptions_cost_no_retry_but_the_fourth_waits_and_the_fifty_first_counts() -> None:
    observed = started(resource(run={"backoffLimit": 0, "backoffBaseSeconds": 10}))
    phases = []
    for _ in range(5):
        disrupted = with_job(observed, "Failed")
        decision = reconcile(replace(disrupted, pods=(), fresh=True), NOW)
        phases.append(decision.status["phase"])
        after = replace(store(observed, decision), children=())
        observed, _ = settle(after, NOW + 400)
    assert phases == ["Pending", "Pending", "Pending", "Retrying", "Retrying"]
    assert observed.resource["status"]["restarts"] == {"counted": 0, "uncounted": 5}
    observed.resource["status"]["restarts"]["uncounted"] = MAX_UNCOUNTED
    status = reconcile(replace(with_job(observed, "Failed"), fresh=True), NOW).status
    assert (status["phase"], status["reason"]) == ("Failed", "BackoffLimitExceeded")


# ---- looking twice ---------------------------------------------------------------------------------------------------


def test_a_failed_job_is_not_judged_by_a_pod_that_may_be_an_old_picture() -> None:
    observed = started()
    early = with_job(replace(observed, pods=(pod_of(observed),)), "Failed")
    assert reconcile(early, NOW).look_closer
    fresh = replace(early, pods=(pod_of(observed, **ended(1, **SCRIPT_ERROR)),), fresh=True)
    assert reconcile(fresh, NOW).status["lastFailure"]["reason"] == "ScriptError"


def test_a_job_that_someone_removed_is_looked_for_and_then_made_anew_as_another_attempt() -> None:
    observed = started()
    observed = replace(
        observed,
        pods=(pod_of(observed),),
        children=tuple(one for one in observed.children if one["kind"] != "Job"),
    )
    assert reconcile(observed, NOW).look_closer
    decision = reconcile(replace(observed, fresh=True), NOW)
    assert (decision.status["attempt"], decision.status["restarts"]["uncounted"]) == (2, 1)
    assert decision.apply == ()


def test_a_later_attempt_waits_for_the_runner_of_an_earlier_one_as_the_api_server_knows_it() -> None:
    observed = failed_once(backoffBaseSeconds=0)
    old = pod_of(observed, attempt=1)
    observed = store(observed, reconcile(observed, NOW))
    assert observed.resource["status"]["attempt"] == 2
    assert reconcile(replace(observed, pods=()), NOW).look_closer
    waiting = reconcile(replace(observed, pods=(old,), fresh=True), NOW)
    assert "Job" not in kinds(waiting.apply)
    assert kinds(waiting.delete) == ["Job"]
    assert "runner-1" in waiting.status["message"]
    old["metadata"]["deletionTimestamp"] = to_text(NOW)
    assert reconcile(replace(observed, pods=(old,), fresh=True), NOW).requeue_s == 60
    assert "Job" in kinds(reconcile(replace(observed, pods=(old,), fresh=True), NOW + 61).apply)
    assert "Job" in kinds(reconcile(replace(observed, pods=(), fresh=True), NOW).apply)


# ---- deadlines -------------------------------------------------------------------------------------------------------


def test_a_pending_deadline_ends_the_run_and_tells_what_stood_in_the_way() -> None:
    observed = started(resource(run={"pendingDeadlineSeconds": 60}))
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes fit"}
    observed = replace(observed, pods=(pod_of(observed, phase="Pending", conditions=[condition]),))
    early = reconcile(observed, NOW + 59)
    assert (early.status["phase"], early.status["reason"], early.requeue_s) == ("Starting", "Unschedulable", 1)
    late = reconcile(observed, NOW + 60)
    assert (late.status["phase"], late.status["reason"]) == ("Failed", "PendingDeadline")
    assert late.status["lastFailure"]["reason"] == "Unschedulable"
    assert "Job" in kinds(reconcile(store(observed, late), NOW + 60).delete)


def test_an_attempt_without_progress_ends_as_a_counted_failure() -> None:
    observed = started(resource(run={"progressDeadlineSeconds": 100}))
    words = WORKING | {"lastProgressTime": to_text(NOW + 50)}
    observed = replace(observed, pods=(pod_of(observed), pod_of(observed, "worker")), progress=words)
    at_work = reconcile(observed, NOW + 60)
    assert (at_work.status["phase"], at_work.requeue_s) == ("Running", 100)
    late = reconcile(store(observed, at_work), NOW + 161)
    assert (late.status["phase"], late.status["restarts"]["counted"]) == ("Retrying", 1)
    assert late.status["lastFailure"]["reason"] == "ProgressDeadline"


def test_a_runner_is_not_late_for_what_it_was_not_asked_for_yet() -> None:
    observed = started(resource(run={"progressDeadlineSeconds": 100}))
    words = WORKING | {"lastProgressTime": to_text(NOW + 50)}
    observed = replace(observed, pods=(pod_of(observed), pod_of(observed, "worker")), progress=words, asked_every_s=40)
    at_work = reconcile(observed, NOW + 60)
    assert at_work.requeue_s == 140
    observed = store(observed, at_work)
    assert reconcile(observed, NOW + 199).status["phase"] == "Running"
    assert reconcile(observed, NOW + 200).status["phase"] == "Retrying"


def test_the_active_deadline_counts_all_attempts_but_no_pauses() -> None:
    observed = failed_once(activeDeadlineSeconds=100, backoffBaseSeconds=50, backoffMaxSeconds=50)
    status = observed.resource["status"]
    assert status["activeSeconds"] == 0
    status["activeSeconds"] = 70
    second, decision = settle(replace(observed, children=(), pods=()), NOW + 500)
    assert decision.requeue_s == 30
    assert reconcile(second, NOW + 529).status["phase"] == "Starting"
    late = reconcile(second, NOW + 531).status
    assert (late["phase"], late["reason"], late["activeSeconds"]) == ("Failed", "DeadlineExceeded", 101)


def test_an_end_is_kept_for_its_time_to_live_and_then_all_children_go() -> None:
    observed = started(resource(run={"ttlSecondsAfterFinished": 600, "deleteWhenExpired": True}))
    observed = with_job(replace(observed, pods=(pod_of(observed, **ended(0, outcome="succeeded")),)), "Complete")
    observed = store(observed, reconcile(observed, NOW))
    early = reconcile(observed, NOW + 100)
    assert early.requeue_s == 500
    kept = replace(observed, children=tuple(one for one in observed.children if one["kind"] in ("ConfigMap", "Job")))
    assert reconcile(kept, NOW + 100).delete == ()
    assert kinds(reconcile(kept, NOW + 600).delete) == ["Job", "ConfigMap"]
    gone = reconcile(replace(kept, children=()), NOW + 600)
    assert gone.delete_resource
    assert gone.status["cleanedTime"] == to_text(NOW + 600)


@pytest.mark.parametrize("ttl", [-1, 0])
def test_a_time_to_live_may_be_none_or_for_ever(ttl: int) -> None:
    observed = started(resource(run={"ttlSecondsAfterFinished": ttl}))
    observed = with_job(replace(observed, pods=(pod_of(observed, **ended(0, outcome="succeeded")),)), "Complete")
    observed = store(observed, reconcile(observed, NOW))
    removed = kinds(reconcile(observed, NOW + 10**9 if ttl else NOW).delete)
    assert ("ConfigMap" in removed) == (ttl == 0)
    assert "Deployment" in removed


# ---- what people change ----------------------------------------------------------------------------------------------


def test_suspension_is_stored_then_the_pods_go_and_going_on_costs_no_retry() -> None:
    observed = started()
    for attempt in (2, 3):
        observed.resource["spec"]["run"] = {"suspend": True}
        decision = reconcile(observed, NOW)
        assert (decision.status["phase"], decision.delete) == ("Suspended", ())
        assert true_conditions(decision.status) == {"Accepted", "Suspended"}
        observed = store(observed, decision)
        decision = reconcile(observed, NOW)
        assert kinds(decision.delete) == ["Job", "Deployment"]
        workloads = ("Job", "Deployment")
        observed = replace(observed, children=tuple(one for one in observed.children if one["kind"] not in workloads))
        observed.resource["spec"]["run"] = {"suspend": False}
        observed, decision = settle(observed)
        status = observed.resource["status"]
        assert (status["phase"], status["attempt"]) == ("Starting", attempt)
        assert status["restarts"] == {"counted": 0, "uncounted": 0}


def test_another_run_id_starts_a_new_run_and_what_the_earlier_one_left_goes() -> None:
    observed = failed_once()
    observed.resource["spec"]["run"] = {"runId": "two"}
    planned = reconcile(observed, NOW)
    assert (planned.status["run"], planned.status["attempt"], planned.delete) == (2, 1, ())
    assert "lastFailure" not in planned.status
    observed = store(observed, planned)
    decision = reconcile(replace(observed, pods=(), fresh=True), NOW)
    assert {ref.name for ref in decision.delete} == {
        "digits-0a1b2c3d-r1",
        "digits-0a1b2c3d-r1-a1",
        "digits-0a1b2c3d-r1-tls",
        "digits-0a1b2c3d-r1-w",
    }
    assert {item["metadata"]["name"].split("-r")[1][0] for item in decision.apply} == {"2"}


def test_an_earlier_run_stops_also_while_the_new_one_waits_for_its_input() -> None:
    item = resource()
    observed = started(item)
    del item["spec"]["input"]
    spec = item["spec"] | {"run": {"runId": "two"}, "inputFrom": {"kind": "ShardUpload", "name": "raw"}}
    observed = replace(observed, resource={**observed.resource, "spec": spec})
    observed = store(observed, reconcile(observed, NOW))
    decision = reconcile(observed, NOW)
    assert decision.status["phase"] == "WaitingForInput"
    assert {"Job", "Deployment"} <= set(kinds(decision.delete))


def test_workers_are_scaled_by_their_number_alone() -> None:
    observed = started()
    observed.resource["spec"]["workers"] = {"replicas": 5, "podTemplate": {"spec": {"hostname": "x"}}}
    (change,) = reconcile(observed, NOW).apply
    assert change["spec"] == {"replicas": 5}
    assert change["metadata"] == {
        "name": "digits-0a1b2c3d-r1-w",
        "namespace": "team",
        "uid": "uid of digits-0a1b2c3d-r1-w",
    }


def test_another_image_of_the_operator_s_own_does_not_touch_a_run() -> None:
    observed = replace(started(), settings=replace(SETTINGS, image="tarmill:2", image_pull_policy="Always"))
    assert reconcile(observed, NOW).apply == ()
    observed = replace(observed, children=())
    job = next(one for one in reconcile(replace(observed, fresh=True), NOW).apply if one["kind"] == "Job")
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "tarmill:1"


def test_a_resource_that_is_held_back_from_its_deletion_works_no_more() -> None:
    observed = started()
    observed.resource["metadata"]["deletionTimestamp"] = to_text(NOW)
    decision = reconcile(observed, NOW)
    assert kinds(decision.delete) == ["Job", "Deployment"]
    assert (decision.status, decision.apply) == (observed.resource["status"], ())


# ---- inputs, engines, refusals ---------------------------------------------------------------------------------------


def source(phase: str, generation: int = 1, **status: Any) -> dict[str, Any]:
    told = {"observedGeneration": 1, "phase": phase, "output": "s3://b/raw-@4.tar", **status}
    return {"metadata": {"generation": generation}, "status": told}


@pytest.mark.parametrize(
    ("there", "phase"),
    [
        (None, "WaitingForInput"),
        (source("Running"), "WaitingForInput"),
        (source("Succeeded", generation=2), "WaitingForInput"),
        (source("Failed", message="no such bucket"), "Failed"),
        (source("Succeeded"), "Starting"),
    ],
    ids=["missing", "running", "just changed", "failed", "complete"],
)
def test_a_run_waits_for_its_input_without_any_deadline(there: Any, phase: str) -> None:
    item = resource(run={"pendingDeadlineSeconds": 1, "activeDeadlineSeconds": 1000})
    del item["spec"]["input"]
    item["spec"]["inputFrom"] = {"kind": "ShardUpload", "name": "raw"}
    observed, _ = settle(see(item))
    observed, decision = settle(replace(observed, input=there), NOW + 10_000)
    assert decision.status["phase"] == phase
    if phase == "Starting":
        assert decision.status["input"] == "s3://b/raw-@4.tar"
        config = next(child for child in observed.children if child["kind"] == "ConfigMap")
        assert '"input": "s3://b/raw-@4.tar"' in config["data"]["job.json"]
    if phase == "Failed":
        assert decision.status["reason"] == "InputFailed"
        assert "no such bucket" in decision.status["message"]


def test_the_dask_engine_without_its_operator_is_refused_at_once_and_goes_on_when_it_comes() -> None:
    item = resource(cluster={"engine": "dask-kubernetes"})
    observed, decision = settle(see(item))
    assert (decision.status["phase"], decision.status["reason"], decision.apply) == ("Pending", "BackendMissing", ())
    assert true_conditions(decision.status) == {"Stalled"}
    observed, decision = settle(replace(observed, settings=replace(SETTINGS, dask_operator=True)), NOW + 5)
    assert "DaskCluster" in {child["kind"] for child in observed.children}
    assert "Deployment" not in {child["kind"] for child in observed.children}


def test_an_attempt_at_work_does_not_mind_that_the_dask_operator_goes() -> None:
    observed = started(resource(cluster={"engine": "dask-kubernetes"}), settings=replace(SETTINGS, dask_operator=True))
    observed = replace(observed, pods=(pod_of(observed), pod_of(observed, "worker")), progress=WORKING)
    assert reconcile(replace(observed, settings=SETTINGS), NOW).status["phase"] == "Running"


def test_a_refusal_while_shards_are_worked_on_is_told_without_ending_them() -> None:
    observed = started()
    pods = (pod_of(observed), pod_of(observed, "worker", **running()))
    observed.resource["spec"]["workers"] = {"replicas": 50}
    refusal = Cause("QuotaExceeded", "Deployment x: exceeded quota")
    decision = reconcile(replace(observed, pods=pods, progress=WORKING, refusal=refusal), NOW)
    assert (decision.status["phase"], decision.status["lastFailure"]["reason"]) == ("Running", "QuotaExceeded")
    assert kinds(decision.apply) == ["Deployment"]
    assert decision.requeue_s == 30


def test_changes_are_told_once_as_events() -> None:
    assert reconcile(see(resource()), NOW).notices == ()
    observed = started()
    observed = with_job(replace(observed, pods=(pod_of(observed, **ended(1, **SCRIPT_ERROR)),)), "Failed")
    decision = reconcile(replace(observed, fresh=True), NOW)
    assert [(notice.reason, notice.warning) for notice in decision.notices] == [
        ("BackingOff", True),
        ("ScriptError", True),
    ]
    assert reconcile(store(observed, decision), NOW).notices == ()
