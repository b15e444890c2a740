"""What is removed when, and what of it is kept first (pure)."""

from __future__ import annotations

from collections.abc import Iterable

from tarmill_operator.model import Observed, Ref, Resource
from tarmill_operator.names import ATTEMPT_LABEL, ROLE_LABEL, RUN_LABEL, RUNNER, tls_name_of
from tarmill_operator.times import to_seconds

WORKLOADS = frozenset({"Job", "Deployment", "DaskCluster"})
_ORDER = ("Job", "Deployment", "DaskCluster", "Service", "ConfigMap", "Secret", "NetworkPolicy")
_LEAVING_S = 60.0
"""How long past its grace period a pod is waited for: a node that is gone never tells of the end of its pods."""
MAX_LOGS = 10
"""Pods whose last lines are kept in one run: a ConfigMap holds 1 MiB."""


def refs_of(children: Iterable[Resource]) -> tuple[Ref, ...]:
    """Name children in the order of their removal.

    The operator may make Secrets, but not read any; so where a NetworkPolicy is, which is made before the Secret of a
    run and removed after it, the Secret is taken to be.
    """
    found = []
    for child in children:
        metadata = child["metadata"]
        found.append(Ref(child["apiVersion"], child["kind"], metadata["name"], metadata.get("uid", "")))
        if child["kind"] == "NetworkPolicy":
            found.append(Ref("v1", "Secret", tls_name_of(metadata["name"])))
    return tuple(sorted(found, key=lambda ref: _ORDER.index(ref.kind)))


def is_record(child: Resource) -> bool:
    """Tell whether a child of an ended run is worth a look: its spec, kept logs, and a Job whose pod has ended."""
    ended = {one["type"] for one in child.get("status", {}).get("conditions") or [] if one.get("status") == "True"}
    return child["kind"] == "ConfigMap" or (child["kind"] == "Job" and bool(ended & {"Complete", "Failed"}))


def run_of(item: Resource) -> str:
    """Give the number of the run to which a child or pod belongs, as its label says."""
    return str(item["metadata"].get("labels", {}).get(RUN_LABEL))


def earlier_runners(pods: Iterable[Resource], run: int, attempt: int) -> list[Resource]:
    """Find the runners of other attempts that may still write: two at once would do the same work twice."""
    found = []
    for pod in pods:
        labels = pod["metadata"].get("labels", {})
        ours = (labels.get(RUN_LABEL), labels.get(ATTEMPT_LABEL)) == (str(run), str(attempt))
        if labels.get(ROLE_LABEL) == RUNNER and not ours and not has_ended(pod):
            found.append(pod)
    return found


def has_ended(pod: Resource) -> bool:
    """Tell whether nothing of a pod runs any more."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def waited_for_until(pod: Resource) -> float | None:
    """Tell until when the end of a pod is waited for; None where nobody has told it to go yet."""
    leaving = to_seconds(pod["metadata"].get("deletionTimestamp"))
    return None if leaving is None else leaving + _LEAVING_S


def pods_to_keep(observed: Observed, run: int, logs_name: str) -> tuple[str, ...]:
    """Name the pods of a run whose last lines people will ask for, if they are not kept yet."""
    kept = set((observed.child("ConfigMap", logs_name) or {}).get("data") or {})
    failed = []
    for pod in observed.pods:
        if run_of(pod) != str(run):
            continue
        ends = pod.get("status", {}).get("containerStatuses") or []
        states = [state for item in ends for state in (item.get("state"), item.get("lastState")) if state]
        if any((state.get("terminated") or {}).get("exitCode") for state in states):
            failed.append(pod)
    # a runner tells more than a worker
    failed.sort(key=lambda pod: (pod["metadata"].get("labels", {}).get(ROLE_LABEL) != RUNNER, pod["metadata"]["name"]))
    names = [pod["metadata"]["name"] for pod in failed]
    return tuple(name for name in names if f"{name}.log" not in kept)[: max(0, MAX_LOGS - len(kept))]
