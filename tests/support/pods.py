"""Pods for tests on Kubernetes, and what to wait for in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Object = Mapping[str, Any]

CONTAINER_RIGHTS = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""What Pod Security `restricted` asks of a container, and a root file system that is read-only."""


def assert_restricted(spec: Object) -> None:
    """Hold a pod's spec against Pod Security `restricted`, and its containers to a read-only root file system."""
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for container in spec["containers"]:
        assert container["securityContext"] == CONTAINER_RIGHTS


def pod(name: str, image: str, command: Sequence[str], **more: Any) -> dict[str, Any]:
    """A pod of one container that Pod Security `restricted` lets in: read-only root, /tmp an emptyDir, run once.

    `more` replaces fields of the container, or of the metadata (`labels`).
    """
    labels = more.pop("labels", {})
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "securityContext": CONTAINER_RIGHTS,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        **more,
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


def has_ended(pod: Object) -> str:
    """A pod's phase once it has run to its end, for `wait`."""
    phase = str(pod.get("status", {}).get("phase", ""))
    return phase if phase in ("Succeeded", "Failed") else ""


def is_ready(pod: Object) -> bool:
    """Whether a pod's condition Ready is true, for `wait`."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
