"""What else goes on in a cluster, for tests of the operator: controllers of Jobs and Deployments, garbage collection,
kubelets, runners that do shards and keep them, and all that may befall these."""

from __future__ import annotations

import json
from typing import Any

from support.fakeapi import FakeApi
from tarmill_operator.model import Resource
from tarmill_operator.names import UID_LABEL
from tarmill_operator.times import to_text

SHARDS = 4


class FakeCluster:
    """Moves things on, a step at a time."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now
        self.api = FakeApi(lambda: self.now)
        self.finished: dict[str, set[int]] = {}
        """Output of a resource -> its shards in the store, which outlive every pod."""
        self.errors: list[str] = []
        self.script_is_wrong = False
        self.last_shard_takes_long = False
        self._grace: dict[str, int] = {}
        self._pods = 0

    # ---- resources --------------------------------------------------------------------------------------------------

    def make(self, name: str = "digits", kind: str = "ShardMap", **spec: Any) -> Resource:
        """Make a resource as a person does, with the defaults that the API server fills in."""
        run = {"backoffBaseSeconds": 10, "ttlSecondsAfterFinished": 600} | spec.pop("run", {})
        spec = {"input": "s3://b/in-@4.tar", "output": f"s3://b/{name}-@4.tar", "workers": {"replicas": 2}} | spec
        return self.api.add(
            {
                "apiVersion": "tarmill.dev/v1alpha1",
                "kind": kind,
                "metadata": {"name": name, "namespace": "team"},
                "spec": spec | {"run": run},
                "status": {"observedGeneration": -1},
            }
        )

    def edit(self, resource: Resource, field: str, **values: Any) -> None:
        """Change fields of a part of a resource's spec."""
        self.api.change(resource, lambda item: item["spec"].setdefault(field, {}).update(values))

    def is_there(self, resource: Resource) -> bool:
        """Tell whether a resource has not been deleted."""
        metadata = resource["metadata"]
        return self.api.objects.get((resource["kind"], "team", metadata["name"])) is resource

    # ---- the cluster's own controllers ------------------------------------------------------------------------------

    def step(self) -> None:
        """Let every controller and kubelet do what it would do next, once."""
        self.collect_garbage()
        self.run_jobs()
        self.run_deployments()
        self.run_kubelets()
        self.run_runners()
        self.judge_jobs()
        self.check()

    def check(self) -> None:
        """Note where two runners of a resource were at work at once."""
        at_work: dict[str, list[str]] = {}
        for pod in self.runners():
            if pod["status"]["phase"] == "Running":
                at_work.setdefault(pod["metadata"]["labels"][UID_LABEL], []).append(pod["metadata"]["name"])
        self.errors += [f"two runners at once: {names}" for names in at_work.values() if len(names) > 1]

    def collect_garbage(self) -> None:
        uids = {item["metadata"]["uid"] for item in self.api.objects.values()}
        for item in list(self.api.objects.values()):
            owners = item["metadata"].get("ownerReferences")
            if owners and not any(owner["uid"] in uids for owner in owners):
                self.api.remove(item)

    def run_jobs(self) -> None:
        for job in self.api.of("Job"):
            if not self._pods_of(job) and not _conditions(job) and not job.get("status", {}).get("made"):
                self._make_pod(job, job["spec"]["template"])
                job.setdefault("status", {})["made"] = True  # its controller knows, nobody else looks

    def judge_jobs(self) -> None:
        for job in self.api.of("Job"):
            pods = self._pods_of(job)
            if _conditions(job) or not job.get("status", {}).get("made"):
                continue
            phases = {pod["status"]["phase"] for pod in pods}
            if "Succeeded" in phases:
                self._end_job(job, "Complete")
            elif "Failed" in phases or not pods:
                self._end_job(job, "Failed")

    def run_deployments(self) -> None:
        for deployment in self.api.of("Deployment"):
            pods = [pod for pod in self._pods_of(deployment) if "deletionTimestamp" not in pod["metadata"]]
            for _ in range(deployment["spec"]["replicas"] - len(pods)):
                self._make_pod(deployment, deployment["spec"]["template"])
            for pod in pods[deployment["spec"]["replicas"] :]:
                self.api.remove(pod)

    def run_kubelets(self) -> None:
        for pod in self.api.of("Pod"):
            if "deletionTimestamp" in pod["metadata"]:
                uid = pod["metadata"]["uid"]
                self._grace[uid] = self._grace.get(uid, 3) - 1
                if self._grace[uid]:  # it runs on for a while
                    continue
                if pod["metadata"]["labels"]["tarmill.dev/role"] == "runner" and pod["status"]["phase"] == "Running":
                    self.end_runner(pod, 143, outcome="interrupted", reason="Interrupted")
                    self._grace[uid] = 1
                else:
                    self.api.remove(pod, by_force=True)
            elif pod["status"]["phase"] == "Pending":
                self.api.change(pod, lambda item: item.update(status=_running(self.now)))

    def run_runners(self) -> None:
        """Let each runner finish a shard, or end when none is left."""
        for pod in self.runners():
            if pod["status"]["phase"] != "Running" or "deletionTimestamp" in pod["metadata"]:
                continue
            done = self.done_by(pod)
            if self.script_is_wrong:
                self.end_runner(pod, 1, outcome="failed", reason="ScriptError", message="it returned no sample")
            elif self.last_shard_takes_long and len(done) == SHARDS - 1:
                continue
            elif len(done) == SHARDS:
                self.end_runner(pod, 0, outcome="succeeded")
            else:
                done.add(len(done))

    # ---- what may befall it -----------------------------------------------------------------------------------------

    def runners(self) -> list[Resource]:
        return [pod for pod in self.api.of("Pod") if pod["metadata"]["labels"]["tarmill.dev/role"] == "runner"]

    def workers(self) -> list[Resource]:
        return [pod for pod in self.api.of("Pod") if pod["metadata"]["labels"]["tarmill.dev/role"] == "worker"]

    def running_runners(self) -> list[Resource]:
        return [pod for pod in self.runners() if pod["status"]["phase"] == "Running"]

    def end_runner(self, pod: Resource, code: int, *, state_reason: str = "Error", **words: Any) -> None:
        """Let a runner's container end, with its last words where there are any."""
        shards = {"total": SHARDS, "done": len(self.done_by(pod)), "failed": 0}
        message = json.dumps({"format": 1, "exitCode": code, "shards": shards, **words}) if words else ""
        terminated = {"exitCode": code, "reason": state_reason if code else "Completed", "message": message}
        status = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [{"name": "runner", "state": {"terminated": terminated}}],
        }
        self.api.change(pod, lambda item: item.update(status=status))

    def out_of_memory(self, pod: Resource) -> None:
        """Let a worker's container be killed, and started again."""
        ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
        self.api.change(pod, lambda item: item["status"]["containerStatuses"][0].update(lastState=ended))

    def lose_node(self, pod: Resource) -> None:
        """Let a node go: its pod has failed by a disruption."""
        reason = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "taint"}
        self.api.change(pod, lambda item: item.update(status={"phase": "Failed", "conditions": [reason]}))

    def done_by(self, pod: Resource) -> set[int]:
        """Give the shards in the store that a runner writes to."""
        return self.finished.setdefault(pod["metadata"]["labels"][UID_LABEL], set())

    # ---- pieces -----------------------------------------------------------------------------------------------------

    def _pods_of(self, owner: Resource) -> list[Resource]:
        uid = owner["metadata"]["uid"]
        return [pod for pod in self.api.of("Pod") if pod["metadata"]["ownerReferences"][0]["uid"] == uid]

    def _make_pod(self, owner: Resource, template: Resource) -> None:
        self._pods += 1
        metadata = {
            "name": f"{owner['metadata']['name']}-{self._pods:05d}",
            "namespace": "team",
            "labels": template["metadata"]["labels"],
            "ownerReferences": [{"uid": owner["metadata"]["uid"], "controller": True}],
        }
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        self.api.add({**body, "status": {"phase": "Pending"}})

    def _end_job(self, job: Resource, type_: str) -> None:
        conditions = [{"type": type_, "status": "True"}]
        self.api.change(job, lambda item: item["status"].update(conditions=conditions))


def _conditions(job: Resource) -> list[Any]:
    return job.get("status", {}).get("conditions") or []


def _running(now: float) -> dict[str, Any]:
    return {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "container", "state": {"running": {"startedAt": to_text(now)}}}],
    }
