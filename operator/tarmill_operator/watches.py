"""Which objects the operator watches, and what of them it remembers (pure)."""

from __future__ import annotations

from typing import Any, NamedTuple

from tarmill.spec import API_VERSION, KINDS
from tarmill_operator.children import DASK_API
from tarmill_operator.model import Resource
from tarmill_operator.names import HASH_ANNOTATION, UID_LABEL

OUR_KINDS = frozenset(kind.name for kind in KINDS)
TOLD_BY_EVENTS = frozenset({"FailedCreate", "FailedMount", "FailedAttachVolume"})
"""Reasons of Events about things that nothing else tells."""


class Watch(NamedTuple):
    """A kind of objects, and which of them, as the API server selects them."""

    api_version: str
    kind: str
    labels: str = ""
    fields: str = ""


RESOURCES = tuple(Watch(API_VERSION, kind.name) for kind in KINDS)
DASK_CLUSTERS = Watch(DASK_API, "DaskCluster", UID_LABEL)
EVENTS = Watch("v1", "Event", fields="type=Warning")
PODS = Watch("v1", "Pod", UID_LABEL)
JOBS = Watch("batch/v1", "Job", UID_LABEL)
WATCHES = (
    *RESOURCES,
    JOBS,
    Watch("apps/v1", "Deployment", UID_LABEL),
    Watch("v1", "Service", UID_LABEL),
    Watch("networking.k8s.io/v1", "NetworkPolicy", UID_LABEL),
    Watch("v1", "ConfigMap", UID_LABEL),
    PODS,
    EVENTS,
)
"""Without Secrets: the operator has no right to read any."""

_MORE_COMES_S = 0.5
"""News of children come several at a time: a pod is made, bound, started. One look at all of them is enough."""
_HEAD_START_S = 10.0
"""A resource that has no status yet goes before those that go on: somebody waits to see that it was taken."""


def pause_after(item: Resource) -> float:
    """Tell how long a look at a resource waits after news of an object; less than nothing is a head start."""
    if item["kind"] not in OUR_KINDS:
        return _MORE_COMES_S
    return 0.0 if (item.get("status") or {}).get("phase") else -_HEAD_START_S


_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "labels",
    "ownerReferences",
)


def slim(item: Resource) -> Resource:
    """Give what is remembered of an object: thousands of them are to fit into a small container."""
    kind, known = item["kind"], item["metadata"]
    if kind in OUR_KINDS:
        metadata = {name: value for name, value in known.items() if name not in ("managedFields", "annotations")}
        return {**item, "metadata": metadata}
    metadata = {name: known[name] for name in _METADATA if name in known}
    if mark := (known.get("annotations") or {}).get(HASH_ANNOTATION):
        metadata["annotations"] = {HASH_ANNOTATION: mark}
    made: Resource = {"apiVersion": item["apiVersion"], "kind": kind, "metadata": metadata}
    return made | _rest_of(item)


def _rest_of(item: Resource) -> dict[str, Any]:
    match item["kind"]:
        case "Pod":
            containers = [
                {"name": container.get("name"), "resources": container.get("resources") or {}}
                for container in item.get("spec", {}).get("containers", [])
            ]
            return {"spec": {"containers": containers}, "status": item.get("status") or {}}
        case "Job":
            return {"status": {"conditions": (item.get("status") or {}).get("conditions") or []}}
        case "Deployment":
            return {"spec": {"replicas": item.get("spec", {}).get("replicas", 1)}}
        case "DaskCluster":
            worker = item.get("spec", {}).get("worker") or {}
            return {"spec": {"worker": {"replicas": worker.get("replicas", 1)}}}
        case "ConfigMap":
            return {"data": dict.fromkeys(item.get("data") or {}, "")}
        case "Event":
            return {name: item[name] for name in ("reason", "message", "involvedObject") if name in item}
    return {}
