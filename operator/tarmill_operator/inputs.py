"""`inputFrom`: whether the resource that a run waits for is complete, and what it has written (pure)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from tarmill_operator.model import Observed


class Input(NamedTuple):
    """What a run reads."""

    state: Literal["ready", "waiting", "failed"]
    shards: str = ""
    """Shard pattern, where another resource wrote it."""
    message: str = ""


def look_at_input(observed: Observed) -> Input:
    """Look whether what `inputFrom` names is there, complete, and of its present spec."""
    reference = observed.resource["spec"].get("inputFrom")
    if not reference:
        return Input("ready")
    name = f"{reference['kind']} {reference['name']}"
    source = observed.input
    if source is None:
        return Input("waiting", message=f"{name} does not exist yet")
    status: dict[str, Any] = source.get("status") or {}
    if status.get("observedGeneration", -1) != source["metadata"].get("generation"):
        return Input("waiting", message=f"{name} was changed a moment ago")
    if status.get("phase") == "Succeeded":
        return Input("ready", status.get("output", ""))
    if status.get("phase") == "Failed":
        return Input("failed", message=f"{name} has failed: {status.get('message', '')}; mend it, then start a new run")
    return Input("waiting", message=f"{name} is not complete: {status.get('phase', 'Pending')}")
