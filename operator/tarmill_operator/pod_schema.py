"""Schemas of what a resource says of its pods: the usual fields typed, and `podTemplate` for all others (pure)."""

from __future__ import annotations

from typing import Any

from tarmill_operator.schema import MAX_ITEMS, MAX_TEXT, Schema

_TEXT = {"type": "string", "maxLength": MAX_TEXT}
_NAME = {"type": "string", "maxLength": 253}


def _object(description: str, properties: dict[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    schema: Schema = {"type": "object", "description": description, "properties": properties}
    return schema | ({"required": list(required)} if required else {})


def _list(description: str, items: Schema, limit: int = 32) -> Schema:
    return {
        "type": "array",
        "description": description,
        "maxItems": limit,
        "items": items,
        "x-kubernetes-list-type": "atomic",
    }


def _free(description: str) -> Schema:
    """Take whatever Kubernetes takes there; its API server looks at it when the pods are made."""
    return {"type": "object", "description": description, "x-kubernetes-preserve-unknown-fields": True}


def _map(description: str) -> Schema:
    return {
        "type": "object",
        "description": description,
        "maxProperties": MAX_ITEMS,
        "additionalProperties": {"type": "string", "maxLength": 1024},
    }


def _quantities(description: str) -> Schema:
    return {
        "type": "object",
        "description": description,
        "maxProperties": 16,
        "additionalProperties": {"x-kubernetes-int-or-string": True, "maxLength": 64},
    }


def key_reference(description: str) -> Schema:
    """One key of a ConfigMap in the resource's namespace."""
    properties = {
        "name": {**_NAME, "minLength": 1, "description": "Its name."},
        "key": {**_NAME, "minLength": 1, "description": "The key whose value is the text."},
    }
    return _object(description, properties, ("name", "key"))


ENV = _list(
    "Environment variables, as in a container. Credentials come by valueFrom or envFrom, never as a value.",
    _object(
        "One variable.",
        {
            "name": {**_NAME, "minLength": 1, "description": "Name of the variable."},
            "value": {**_TEXT, "description": "Its value."},
            "valueFrom": _free("Where its value is: secretKeyRef, configMapKeyRef, fieldRef, resourceFieldRef."),
        },
        ("name",),
    ),
    MAX_ITEMS,
)

ROLE: dict[str, Schema] = {
    "resources": _object(
        "What a pod asks for and may use; a worker's memory limit is also what Dask goes by.",
        {"requests": _quantities("What the scheduler keeps free."), "limits": _quantities("What it may use at most.")},
    ),
    "env": ENV,
    "envFrom": _list("Secrets and ConfigMaps whose keys become variables.", _free("secretRef or configMapRef.")),
    "volumes": _list("Volumes, as in a pod.", _free("A volume.")),
    "volumeMounts": _list("Where volumes are mounted in the container.", _free("A mount.")),
    "nodeSelector": _map("Labels of the nodes to run on."),
    "tolerations": _list("Taints that are tolerated, of spot nodes for instance.", _free("A toleration.")),
    "affinity": _free("Node and pod affinity, as in a pod."),
    "priorityClassName": {**_NAME, "description": "Priority class of the pods."},
    "serviceAccountName": {
        **_NAME,
        "description": "Service account, for workload identity; its token is mounted only where podTemplate says so.",
    },
    "labels": _map("Further labels of the pods."),
    "annotations": _map("Annotations of the pods."),
    "podTemplate": _object(
        "A pod template that is merged over what the operator makes; the operator's container is named as the role.",
        {"metadata": _free("Labels and annotations."), "spec": _free("A pod's spec; containers are merged by name.")},
    ),
}
"""What both roles, runner and workers, may say."""


def role(description: str, **more: Schema) -> Schema:
    """Make the schema of a role's pods."""
    return {"type": "object", "description": description, "default": {}, "properties": {**more, **ROLE}}


IMAGE_PULL_SECRETS = _list(
    "Secrets to pull the image with.",
    _object("One secret.", {"name": {**_NAME, "minLength": 1, "description": "Its name."}}, ("name",)),
)


def resource_reference(description: str, kinds: tuple[str, ...]) -> Schema:
    """Another resource of ours in the same namespace."""
    properties: dict[str, Any] = {
        "kind": {"type": "string", "enum": list(kinds), "description": "Its kind."},
        "name": {**_NAME, "minLength": 1, "description": "Its name."},
    }
    return _object(description, properties, ("kind", "name"))
