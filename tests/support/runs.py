"""A world of one resource for `reconcile`: stores what it decides, makes and removes what it asks for."""

from __future__ import annotations

import copy
import json
from typing import Any

from tarmill_operator.model import Decision, Observed, Resource, Settings
from tarmill_operator.names import ATTEMPT_LABEL, ROLE_LABEL, RUN_LABEL, UID_LABEL
from tarmill_operator.reconcile import reconcile

UID = "0a1b2c3d-0000-4000-8000-000000000001"
NOW = 1_800_000_000.0


def shard_map(**spec: Any) -> Resource:
    """Give a ShardMap as the API server holds a new one, defaults filled in."""
    whole = {
        "input": "in-@4.tar",
        "output": "out-@4.tar",
        "script": "def process_sample(record):\n    return record\n",
        "runner": {},
        "workers": {"replicas": 2, "threads": 1},
        "cluster": {"engine": "native"},
        "run": {"backoffLimit": 2, "backoffBaseSeconds": 10, "backoffMaxSeconds": 300},
        "failure": {"onPoisonShard": "Continue"},
    }
    metadata = {"name": "digits", "namespace": "train", "uid": UID, "generation": 1}
    return {
        "apiVersion": "tarmill.dev/v1alpha1",
        "kind": "ShardMap",
        "metadata": metadata,
        "spec": whole | spec,
        "status": {"observedGeneration": -1},
    }


class World:
    """The resource, its children and pods, and a clock."""

    def __init__(self, resource: Resource, settings: Settings | None = None) -> None:
        self.resource = resource
        self.settings = settings or Settings("tarmill:1", namespace="operator")
        self.children: list[Resource] = []
        self.pods: list[Resource] = []
        self.input: Resource | None = None
        self.progress: dict[str, Any] | None = None
        self.now = NOW

    @property
    def status(self) -> dict[str, Any]:
        """The stored status."""
        return dict(self.resource["status"])

    def names(self, kind: str) -> list[str]:
        """Name the children of a kind."""
        return sorted(child["metadata"]["name"] for child in self.children if child["kind"] == kind)

    def look(self) -> Decision:
        """Decide on what is there, and change nothing."""
        observed = Observed(
            copy.deepcopy(self.resource),
            tuple(copy.deepcopy(self.children)),
            tuple(copy.deepcopy(self.pods)),
            progress=self.progress,
            input=self.input,
            fresh=True,
            settings=self.settings,
        )
        return reconcile(observed, self.now)

    def settle(self, seconds: float = 0.0) -> None:
        """Let time pass, then decide and do until nothing more is to be done at once."""
        self.now += seconds
        for _ in range(30):
            decision = self.look()
            self.do(decision)
            if not (decision.apply or decision.delete or decision.requeue_s == 0.0):
                return
        raise AssertionError(f"it does not come to rest: {self.status}")

    def do(self, decision: Decision) -> None:
        """Store and make what was decided."""
        self.resource["status"] = copy.deepcopy(decision.status)
        for wanted in decision.apply:
            name, kind = wanted["metadata"]["name"], wanted["kind"]
            self.children = [c for c in self.children if (c["kind"], c["metadata"]["name"]) != (kind, name)]
            made = copy.deepcopy(wanted)
            made["metadata"].setdefault("uid", f"uid-of-{kind}-{name}")
            self.children.append(made)
        for ref in decision.delete:
            self.children = [c for c in self.children if (c["kind"], c["metadata"]["name"]) != (ref.kind, ref.name)]
            if ref.kind == "Job":
                self.pods = [pod for pod in self.pods if pod["metadata"]["labels"].get("job-name") != ref.name]

    def start_runner(self) -> Resource:
        """Give the Job of this attempt its pod, at work."""
        status = self.status
        (name,) = self.names("Job")
        labels = {
            UID_LABEL: UID,
            RUN_LABEL: str(status["run"]),
            ATTEMPT_LABEL: str(status["attempt"]),
            ROLE_LABEL: "runner",
            "job-name": name,
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{name}-x", "uid": f"uid-of-{name}-x", "labels": labels, "ownerReferences": []},
            "spec": {"containers": [{"name": "runner", "resources": {"limits": {"memory": "1Gi"}}}]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "runner", "state": {"running": {}}}]},
        }
        self.pods.append(pod)
        self.progress = {"format": 1, "phase": "running", "shards": {"total": 4, "done": 1, "failed": 0, "running": 2}}
        return pod

    def end_runner(self, pod: Resource, code: int, words: dict[str, Any] | None = None, reason: str = "") -> None:
        """End the runner's pod and its Job, with last words or without."""
        ended: dict[str, Any] = {"exitCode": code, "reason": reason or ("Completed" if code == 0 else "Error")}
        if words is not None:
            ended["message"] = json.dumps({"format": 1, "exitCode": code, **words})
        pod["status"] = {
            "phase": "Succeeded" if code == 0 else "Failed",
            "containerStatuses": [{"name": "runner", "state": {"terminated": ended}}],
        }
        self.progress = None
        job = next(child for child in self.children if child["kind"] == "Job")
        job["status"] = {"conditions": [{"type": "Complete" if code == 0 else "Failed", "status": "True"}]}
