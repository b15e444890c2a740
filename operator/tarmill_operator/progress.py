"""A runner's own account of itself, folded into the status (pure)."""

from __future__ import annotations

from typing import Any

from tarmill_operator.times import for_people

_MAX_FAILURES = 5
_NUMBERS = {
    "shards": ("total", "done", "failed"),
    "samples": ("read", "written", "dropped"),
    "bytes": ("read", "written", "total"),
}
AT_WORK = frozenset({"running", "publishing", "done"})


def fold(status: dict[str, Any], told: dict[str, Any]) -> None:
    """Put what a runner tells (progress, or its last words) into a status."""
    for name, parts in _NUMBERS.items():
        numbers = told.get(name)
        if isinstance(numbers, dict):
            status[name] = {part: numbers[part] for part in parts if isinstance(numbers.get(part), int)}
    if isinstance(told.get("dropped"), dict):
        status.setdefault("samples", {})["dropped"] = sum(told["dropped"].values())
    shards = status.get("shards", {})
    if shards.get("total"):
        status["shardsText"] = f"{shards.get('done', 0)}/{shards['total']}"
    status["percent"] = percent_of(status)
    eta = told.get("etaSeconds")
    if isinstance(eta, int | float):
        status["etaSeconds"], status["eta"] = int(eta), for_people(eta)
    else:
        status.pop("etaSeconds", None)
        status.pop("eta", None)
    if told.get("lastProgressTime"):
        status["lastProgressTime"] = told["lastProgressTime"]
    if told.get("failures"):
        status["failures"] = [
            {part: str(failure.get(part, "")) for part in ("shard", "reason", "message")}
            for failure in told["failures"][:_MAX_FAILURES]
        ]
    for name in ("manifest", "report"):
        if told.get(name):
            status[name] = told[name]


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
