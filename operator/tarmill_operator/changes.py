"""What has to be applied so that a child is as it is to be (pure).

A run goes by what it began with: neither an edit nor a new version of the operator changes its spec or its pods. Only
the number of workers, and what stands between pods (Service, NetworkPolicy), follows at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import NamedTuple

from tarmill_operator.model import Resource
from tarmill_operator.names import HASH_ANNOTATION

_FOLLOWS = frozenset({"Service", "NetworkPolicy"})


def hash_of(made: Resource) -> str:
    """Give a short text that differs where an object is made from something else."""
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]


class Part(NamedTuple):
    """A child as it is to be, which is made only where that matters: most looks find all of them there.

    Attributes:
        kind, name: of it.
        make: gives it.
        replicas: how many pods it is to have, where that may change while it runs.
    """

    kind: str
    name: str
    make: Callable[[], Resource]
    replicas: int | None = None


def change_of(part: Part, there: Resource | None) -> Resource | None:
    """Give what is to be applied for a child: itself, what differs of it, or None.

    Args:
        part: as it is to be.
        there: as it was seen; None where it is missing.
    """
    if there is None:
        return part.make()
    metadata = there["metadata"]
    if part.kind in _FOLLOWS:
        wanted, annotations = part.make(), metadata.get("annotations") or {}
        same = annotations.get(HASH_ANNOTATION) == wanted["metadata"]["annotations"][HASH_ANNOTATION]
        return None if same else {**wanted, "metadata": {**wanted["metadata"], "uid": metadata["uid"]}}
    if part.replicas is None or part.replicas == _replicas(there):
        return None
    spec: Resource = {"replicas": part.replicas}
    names = {name: metadata[name] for name in ("name", "namespace", "uid")}
    spec = spec if part.kind == "Deployment" else {"worker": spec}
    return {"apiVersion": there["apiVersion"], "kind": part.kind, "metadata": names, "spec": spec}


def _replicas(workers: Resource) -> int:
    spec = workers.get("spec") or {}
    return int((spec if workers["kind"] == "Deployment" else spec.get("worker") or {}).get("replicas", 1))
