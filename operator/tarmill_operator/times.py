"""Kubernetes' times as text and back, and durations and counts for people (pure)."""

from __future__ import annotations

from datetime import UTC, datetime


def to_text(seconds: float) -> str:
    """Write seconds since 1970 as Kubernetes does: UTC, whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_micro_text(seconds: float) -> str:
    """Write seconds since 1970 as a Lease holds them: UTC, microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def to_seconds(text: str | None) -> float | None:
    """Read such a time; None for none.

    Raises:
        ValueError: the text is no time.
    """
    if not text:
        return None
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def for_people(seconds: float) -> str:
    """Write a duration as kubectl does: `45s`, `3m20s`, `2h5m`, `3d4h`."""
    whole = max(0, round(seconds))
    for size, unit, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size}{unit}" + (f"{rest}{small}" if rest else "")
    return f"{whole}s"


def count_of(number: int, thing: str) -> str:
    """Write how many there are: `1 shard`, `4 shards`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
