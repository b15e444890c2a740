"""`inputFrom`: whether the resource that a run waits for is complete, and what it has written (pure)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from tarmill_operator.conditions import TERMINAL
from tarmill_operator.model import Observed, Resource


class Input(NamedTuple):
    """What a run reads."""

    state: Literal["ready", "waiting", "failed", "never"]
    """`never`: what is waited for waits for us."""
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
    if observed.input_cycle:
        circle = " -> ".join(observed.input_cycle)
        return Input("never", message=f"inputFrom leads in a circle, in which each waits for the next: {circle}")
    return Input("waiting", message=f"{name} is not complete: {status.get('phase', 'Pending')}")


def cycle_from(resource: Resource, input_of: Callable[[Resource], Resource | None]) -> tuple[str, ...]:
    """Name the resources that wait for each other, if ours is one of them.

    Args:
        resource: ours.
        input_of: finds what the `inputFrom` of a resource names; None where that is nothing or not there.
    """
    names = [_name_of(resource)]
    found: Resource | None = resource
    while found is not None and _waits(found):
        found = input_of(found)
        if found is None or _name_of(found) in names[1:]:  # a circle further on is for those in it to tell of
            return ()
        names.append(_name_of(found))
        if names[-1] == names[0]:
            return tuple(names)
    return ()


def _waits(resource: Resource) -> bool:
    """Tell whether a run has still to find out what it reads."""
    status = resource.get("status") or {}
    return status.get("phase") not in TERMINAL and not status.get("attempt")


def _name_of(resource: Resource) -> str:
    return f"{resource['kind']} {resource['metadata']['name']}"
