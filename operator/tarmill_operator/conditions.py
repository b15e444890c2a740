"""Conditions from phase and reason, as kubectl, kstatus, Argo CD and Flux understand them (pure).

kstatus (https://github.com/kubernetes-sigs/cli-utils/tree/master/pkg/kstatus): Reconciling=True is "in progress" to it,
Stalled=True "failed", Ready=True "current". A condition named Failed alone means nothing there: Stalled goes with it.
"""

from __future__ import annotations

from typing import Any

from tarmill_operator.times import to_text

MEANINGS = {
    "Accepted": "The spec can be carried out here. False: it is refused, and the reason says what to correct.",
    "Suspended": "`run.suspend` is true.",
    "Reconciling": "The operator is at it: the run waits, works or is tried again.",
    "Stalled": "Nothing goes on until a person does something: the run has failed, or its spec is refused.",
    "Ready": "The data set is complete.",
    "Complete": "The same; what `kubectl wait --for=condition=Complete` waits for.",
    "Failed": "The run has failed for good; another `run.runId` begins a new one.",
}
"""Type of a condition -> what it says when it is True."""
TYPES = tuple(MEANINGS)
TERMINAL = ("Succeeded", "Failed")
REFUSALS = frozenset({"BackendMissing", "Forbidden", "InvalidSpec", "NameConflict"})


def conditions(
    before: list[dict[str, Any]], phase: str, reason: str, message: str, generation: int, now: float
) -> list[dict[str, Any]]:
    """Give all conditions; times move only where a status changes.

    Args:
        before: as they are stored.
        phase, reason, message: of the run.
        generation: of the spec that this was decided on.
        now: seconds since 1970.
    """
    refused = reason in REFUSALS and phase not in TERMINAL
    true = {
        "Accepted": not refused,
        "Suspended": phase == "Suspended",
        "Reconciling": phase not in (*TERMINAL, "Suspended") and not refused,
        "Stalled": phase == "Failed" or refused,
        "Ready": phase == "Succeeded",
        "Complete": phase == "Succeeded",
        "Failed": phase == "Failed",
    }
    known = {condition["type"]: condition for condition in before}
    found = []
    for name in TYPES:
        status = "True" if true[name] else "False"
        old = known.get(name, {})
        since = old["lastTransitionTime"] if old.get("status") == status else to_text(now)
        found.append(
            {
                "type": name,
                "status": status,
                "reason": reason,
                "message": message,
                "observedGeneration": generation,
                "lastTransitionTime": since,
            }
        )
    return found
