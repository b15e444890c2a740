"""Names, labels, ports and paths that the operator, its children and its tests agree on (pure)."""

from __future__ import annotations

from typing import Any

from tarmill.spec import API_VERSION

GROUP, VERSION = API_VERSION.split("/")
CATEGORY = "shards"
MANAGER = "tarmill-operator"
"""Field manager of everything that the operator applies."""

LABEL = f"{GROUP}/"
UID_LABEL = f"{LABEL}uid"
KIND_LABEL = f"{LABEL}kind"
NAME_LABEL = f"{LABEL}name"
RUN_LABEL = f"{LABEL}run"
ATTEMPT_LABEL = f"{LABEL}attempt"
ROLE_LABEL = f"{LABEL}role"
DASK_COMPONENT = "dask.org/component"
"""A label of the Dask operator."""
RUNNER, WORKER = "runner", "worker"
HASH_ANNOTATION = f"{LABEL}hash"
"""Of what a child was made from, so that it is applied again only when that changes."""
HOSTS_ANNOTATION = f"{LABEL}hosts"
"""The host names that the certificate in a Secret is for, with commas between."""
SCRIPTS_ANNOTATION = f"{LABEL}scripts"
"""Where the scripts of a run's ConfigMap are taken from, as JSON: its key -> name and key of another ConfigMap."""
MANAGED_BY = {"app.kubernetes.io/managed-by": MANAGER}

MAX_NAME = 40
"""Longest name of a resource: its children's names and labels stay within 63 characters."""

DASK_PORT = 8786
STATUS_PORT = 8788
SPEC_FOLDER = "/etc/tarmill"
TLS_FOLDER = "/etc/tarmill-tls"
SCRIPTS_FOLDER = "/etc/tarmill-scripts"


def plural(kind: str) -> str:
    """`ShardMap` -> `shardmaps`, `NetworkPolicy` -> `networkpolicies`."""
    if kind.endswith("y"):
        return f"{kind.lower()[:-1]}ies"
    return f"{kind.lower()}es" if kind.endswith(("s", "x", "ch")) else f"{kind.lower()}s"


def base_name(name: str, uid: str) -> str:
    """Name what belongs to one resource, and to no later one of the same name: `<name>-<8 hex digits of its uid>`."""
    return f"{name}-{uid.replace('-', '')[:8]}"


def run_name(base: str, run: int) -> str:
    """Name what belongs to one run of a resource."""
    return f"{base}-r{run}"


def job_name(base: str, run: int, attempt: int) -> str:
    """Name the runner Job of one attempt."""
    return f"{base}-r{run}-a{attempt}"


def workers_name(base: str, run: int) -> str:
    """Name the workers' Deployment or DaskCluster of one run."""
    return f"{base}-r{run}-w"


def tls_name(base: str, run: int) -> str:
    """Name the Secret with the certificates of one run."""
    return tls_name_of(run_name(base, run))


def tls_name_of(name: str) -> str:
    """Name that Secret by the run's own name."""
    return f"{name}-tls"


def labels_of(kind: str, name: str, uid: str, run: int) -> dict[str, str]:
    """Give the labels of every child of one run; never those of other operators (`dask.org/...` above all)."""
    return {KIND_LABEL: kind, NAME_LABEL: name, UID_LABEL: uid, RUN_LABEL: str(run), **MANAGED_BY}


def owner_reference(resource: dict[str, Any]) -> dict[str, Any]:
    """Make children go with their resource, also while no operator runs.

    `blockOwnerDeletion` stays off, since setting it needs rights on the owner's finalizers.
    """
    return {
        "apiVersion": resource["apiVersion"],
        "kind": resource["kind"],
        "name": resource["metadata"]["name"],
        "uid": resource["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }


def is_owned_by(child: dict[str, Any], uid: str) -> bool:
    """Tell whether a child is controlled by the resource with that uid; nothing else is ever adopted."""
    references = child.get("metadata", {}).get("ownerReferences") or []
    return any(reference.get("controller") and reference.get("uid") == uid for reference in references)
