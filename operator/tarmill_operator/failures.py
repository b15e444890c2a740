"""How failures and workers are written into a status (pure)."""

from __future__ import annotations

from typing import Any

from tarmill_operator.model import Cause
from tarmill_operator.times import to_text


def note_failure(status: dict[str, Any], cause: Cause, now: float) -> None:
    """Make a cause the last failure; its time moves only when it is another one."""
    facts = {
        "component": cause.component,
        "pod": cause.pod,
        "reason": cause.reason,
        "exitCode": cause.exit_code,
        "message": cause.message,
    }
    failure = {name: value for name, value in facts.items() if value not in (None, "")}
    known = {name: value for name, value in (status.get("lastFailure") or {}).items() if name != "time"}
    if known != failure:
        status["lastFailure"] = {**failure, "time": to_text(now)}


def note_workers(status: dict[str, Any], ready: int, desired: int) -> None:
    """Tell how many workers there are."""
    status["workers"] = {"desired": desired, "ready": ready}
    status["workersText"] = f"{ready}/{desired}"
