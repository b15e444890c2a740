"""Resources that write to one output: one after the other, since each would undo what the other does (pure)."""

from __future__ import annotations

from collections.abc import Iterable

from tarmill_operator.conditions import TERMINAL
from tarmill_operator.model import Resource

Place = tuple[str, str, str]
"""Namespace, output as it is written in the spec, and endpoint."""
_ABOUT_TO_BEGIN = (None, "Planned", "OutputInUse")


def place_of(resource: Resource) -> Place:
    """Tell where a resource writes."""
    spec = resource["spec"]
    endpoint = (spec.get("options") or {}).get("s3Endpoint", "")
    return resource["metadata"]["namespace"], str(spec.get("output", "")), str(endpoint)


def first_writer(resource: Resource, others: Iterable[Resource]) -> Resource | None:
    """Find who writes to the output of a resource, or is about to, and comes before it.

    Args:
        resource: whose run has not begun.
        others: that write to the same place.
    """
    before = [other for other in others if _begins_before(other, resource)]
    return min(before, key=_age, default=None)


def _begins_before(other: Resource, ours: Resource) -> bool:
    status = other.get("status") or {}
    if other["metadata"]["uid"] == ours["metadata"]["uid"] or status.get("phase") in TERMINAL:
        return False
    if status.get("attempt"):
        return True
    waits = other["spec"].get("run", {}).get("suspend") or status.get("reason") not in _ABOUT_TO_BEGIN
    return not waits and _age(other) < _age(ours)


def _age(resource: Resource) -> tuple[str, str]:
    metadata = resource["metadata"]
    return metadata.get("creationTimestamp", ""), metadata["uid"]
