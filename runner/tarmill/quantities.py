"""Sizes and durations as people write them, on command lines and in spec files (pure)."""

from __future__ import annotations

_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SECONDS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def read_bytes(text: str) -> int:
    """Read a size such as 500MB, 1.5GiB or 4096; `ValueError` for anything else."""
    import re

    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text, re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is no size; write it as 500MB, 1.5GiB or 4096")
    unit = _BYTES[(match[2] or "").lower()]
    return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def read_seconds(text: str) -> float:
    """Read a duration such as 90s, 5m or 1.5h; `ValueError` for anything else."""
    import re

    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*", text)
    if not match:
        raise ValueError(f"{text!r} is no duration; write it as 90s, 5m or 1.5h")
    return float(match[1]) * _SECONDS[match[2] or ""]


def show_bytes(size: int) -> str:
    """Write a size as `read_bytes` reads it, short where it can be."""
    if not size:
        return "0"
    return f"{size >> 30}GiB" if size % (1 << 30) == 0 else f"{size}"


def show_seconds(duration_s: float) -> str:
    """Write a duration as `read_seconds` reads it, short where it can be."""
    for unit in ("h", "m"):
        if duration_s and duration_s % _SECONDS[unit] == 0:
            return f"{int(duration_s // _SECONDS[unit])}{unit}"
    return f"{duration_s:f}".rstrip("0").rstrip(".") + "s" if duration_s else "0"
