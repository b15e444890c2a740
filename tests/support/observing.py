"""Resources, children and pods as values, for tests of what the operator decides about them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from tarmill_operator.children import Children
from tarmill_operator.model import Decision, Observed, Resource, Settings
from tarmill_operator.reconcile import reconcile
from tarmill_operator.times import to_text

NOW = 1_800_000_000.0
UID = "0a1b2c3d-0000-4000-8000-000000000000"
SETTINGS = Settings("tarmill:1", namespace="tarmill-system")


def resource(*, run: dict[str, Any] | None = None, kind: str = "ShardMap", **spec: Any) -> Resource:
    """Make a resource that nobody has looked at yet."""
    body = {"input": "s3://b/in-@4.tar", "output": "s3://b/out-@4.tar", "workers": {"replicas": 2}} | spec
    return {
        "apiVersion": "tarmill.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "digits", "namespace": "team", "uid": UID, "generation": 1, "resourceVersion": "1"},
        "spec": body | {"run": run or {}},
        "status": {"observedGeneration": -1},
    }


def see(item: Resource, **seen: Any) -> Observed:
    """Observe a resource."""
    return Observed(item, settings=seen.pop("settings", SETTINGS), **seen)


def store(observed: Observed, decision: Decision) -> Observed:
    """Observe it again when a decision's status has been stored, and its objects made."""
    made = [
        {**item, "metadata": {**item["metadata"], "uid": f"uid of {item['metadata']['name']}"}}
        for item in decision.apply
        if item["kind"] != "Secret" and observed.child(item["kind"], item["metadata"]["name"]) is None
    ]
    item = {**observed.resource, "status": decision.status}
    return replace(observed, resource=item, children=(*observed.children, *made), fresh=False)


def settle(observed: Observed, now: float = NOW) -> tuple[Observed, Decision]:
    """Decide and store until nothing more is to be stored."""
    for _ in range(10):
        decision = reconcile(observed, now)
        if decision.look_closer:
            decision = reconcile(replace(observed, fresh=True), now)
        after = store(observed, decision)
        if after.resource == observed.resource:
            return after, decision
        observed = after
    raise AssertionError("it finds no rest")


def started(item: Resource | None = None, **seen: Any) -> Observed:
    """Observe a resource whose first attempt has all its objects."""
    observed, _ = settle(see(item or resource(), **seen))
    return observed


def pod_of(observed: Observed, role: str = "runner", *, attempt: int | None = None, **status: Any) -> Resource:
    """Make a pod of a resource's run; it runs unless a status is given."""
    run = observed.resource["status"]["run"]
    number = attempt or observed.resource["status"]["attempt"]
    labels = {"tarmill.dev/role": role, "tarmill.dev/run": str(run), "tarmill.dev/uid": UID}
    if role == "runner":
        labels["tarmill.dev/attempt"] = str(number)
    limits = {"resources": {"limits": {"memory": "2Gi"}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{role}-{number}", "namespace": "team", "uid": f"{role}-{number}", "labels": labels},
        "spec": {"containers": [{"name": role, **limits}]},
        "status": status or running(),
    }


def running(since: float = NOW) -> dict[str, Any]:
    """Make the status of a pod that is up."""
    state = {"running": {"startedAt": to_text(since)}}
    ready = [{"type": "Ready", "status": "True"}]
    return {"phase": "Running", "conditions": ready, "containerStatuses": [{"name": "x", "state": state}]}


def ended(code: int, *, state_reason: str = "Error", **words: Any) -> dict[str, Any]:
    """Make the status of a pod whose container has ended, with last words where there are any."""
    message = json.dumps({"format": 1, **words}) if words else ""
    state = {"terminated": {"exitCode": code, "reason": state_reason, "message": message}}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [{"name": "x", "state": state}]}


def with_job(observed: Observed, condition: str) -> Observed:
    """Let the Job of the current attempt have ended."""
    status = observed.resource["status"]
    name = Children(observed.resource, SETTINGS, status["run"]).job_ref(status["attempt"]).name
    conditions = {"status": {"conditions": [{"type": condition, "status": "True"}]}}
    children = [{**child, **conditions} if child["metadata"]["name"] == name else child for child in observed.children]
    return replace(observed, children=tuple(children))


def true_conditions(status: dict[str, Any]) -> set[str]:
    """Name the conditions that hold."""
    return {one["type"] for one in status["conditions"] if one["status"] == "True"}
