"""A runner's own account of itself, folded into the status (pure).

The pod that tells it runs a person's code, so nothing that it says is taken on trust but as numbers and short texts.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

from tarmill_operator.times import for_people, to_seconds, to_text

_MAX_FAILURES = 5
_MAX_NUMBER = 2**62
_TEXTS = {"shard": 512, "reason": 64, "message": 1024}
_MAX_URL = 4096
_NUMBERS = {
    "shards": ("total", "done", "failed"),
    "samples": ("read", "written", "dropped"),
    "bytes": ("read", "written", "total"),
}
AT_WORK = ("running", "publishing", "done")


def fold(status: dict[str, Any], told: dict[str, Any]) -> None:
    """Put what a runner tells (progress, or its last words) into a status."""
    for name, parts in _NUMBERS.items():
        numbers = told.get(name)
        if isinstance(numbers, dict):
            status[name] = {part: int(numbers[part]) for part in parts if _is_number(numbers.get(part))}
    dropped = told.get("dropped")
    if isinstance(dropped, dict):
        counts = [int(count) for count in dropped.values() if _is_number(count)]
        status.setdefault("samples", {})["dropped"] = min(sum(counts), _MAX_NUMBER)
    shards = status.get("shards", {})
    if shards.get("total"):
        status["shardsText"] = f"{shards.get('done', 0)}/{shards['total']}"
    status["percent"] = percent_of(status)
    eta = told.get("etaSeconds")
    if _is_number(eta):
        status["etaSeconds"], status["eta"] = int(eta), for_people(eta)
    else:
        status.pop("etaSeconds", None)
        status.pop("eta", None)
    if (time := _time(told.get("lastProgressTime"))) is not None:
        status["lastProgressTime"] = time
    failures = told.get("failures")
    if isinstance(failures, list) and failures:
        known = [failure for failure in failures if isinstance(failure, dict)]
        status["failures"] = [
            {part: str(failure.get(part, ""))[:length] for part, length in _TEXTS.items()}
            for failure in known[:_MAX_FAILURES]
        ]
    for name in ("output", "manifest", "report"):
        if isinstance(told.get(name), str) and told[name]:
            status[name] = told[name][:_MAX_URL]


def percent_of(status: dict[str, Any]) -> int:
    """Tell how much is done, by bytes where they are known, else by shards; 100 only when all shards are."""
    shards, size = status.get("shards", {}), status.get("bytes", {})
    done, total = shards.get("done", 0), shards.get("total", 0)
    if total and done >= total:
        return 100
    share = done / total if total else 0.0
    if size.get("total"):
        share = max(share, size.get("read", 0) / size["total"])
    return min(99, int(100 * share))


def is_at_work(told: dict[str, Any] | None, replicas: int) -> bool:
    """Tell whether a runner says that work goes on: it plans with a worker at hand, reads and writes, or publishes."""
    told = told or {}
    phase, workers = told.get("phase"), told.get("workers")
    if phase == "planning":
        return not replicas or (_is_number(workers) and workers > 0)
    return phase in AT_WORK


def _is_number(value: Any) -> TypeGuard[float]:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and 0 <= value <= _MAX_NUMBER
    )


def _time(value: Any) -> str | None:
    try:
        seconds = to_seconds(value)
        return None if seconds is None else to_text(seconds)
    except (TypeError, ValueError, OverflowError):
        return None
