"""What has to be applied so that a child is as it is to be (pure).

A run goes by what it began with: neither an edit nor a new version of the operator changes its spec or its pods. Only
the number of workers, and what stands between pods (Service, NetworkPolicy), follows at once.
"""

from __future__ import annotations

import hashlib
import json

from tarmill_operator.model import Resource
from tarmill_operator.names import HASH_ANNOTATION

_FOLLOWS = frozenset({"Service", "NetworkPolicy"})


def hash_of(made: Resource) -> str:
    """Give a short text that differs where an object is made from something else."""
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]


def change_of(wanted: Resource, there: Resource | None) -> Resource | None:
    """Give what is to be applied for a child: itself, the part that differs, or None.

    Args:
        wanted: as it is to be.
        there: as it was seen; None where it is missing.
    """
    if there is None:
        return wanted
    metadata = there["metadata"]
    if wanted["kind"] in _FOLLOWS:
        annotations = metadata.get("annotations") or {}
        same = annotations.get(HASH_ANNOTATION) == wanted["metadata"]["annotations"][HASH_ANNOTATION]
        return None if same else {**wanted, "metadata": {**wanted["metadata"], "uid": metadata["uid"]}}
    replicas = _replicas(wanted)
    if replicas is None or replicas == _replicas(there):
        return None
    spec = {"replicas": replicas} if wanted["kind"] == "Deployment" else {"worker": {"replicas": replicas}}
    names = {name: metadata[name] for name in ("name", "namespace", "uid")}
    return {"apiVersion": wanted["apiVersion"], "kind": wanted["kind"], "metadata": names, "spec": spec}


def _replicas(workers: Resource) -> int | None:
    spec = workers.get("spec") or {}
    match workers["kind"]:
        case "Deployment":
            return int(spec.get("replicas", 1))
        case "DaskCluster":
            return int((spec.get("worker") or {}).get("replicas", 1))
    return None
