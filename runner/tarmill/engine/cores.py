"""How many cores there are for us."""

from __future__ import annotations

import os

_CGROUP = "/sys/fs/cgroup"


def usable_cores(cgroup: str = _CGROUP) -> int:
    """Count the cores that this process may use: the affinity mask and a container's CPU limit, not the machine's size.

    Args:
        cgroup: where the limits of control groups are, of version 2 (cpu.max) or 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _limit(cgroup)
    return cores if limit is None else max(1, min(cores, limit))


def _limit(cgroup: str) -> int | None:
    """The CPU limit in whole cores, rounded up; None without one."""
    try:
        quota, period = _read(f"{cgroup}/cpu.max").split()
    except (OSError, ValueError):
        try:
            quota, period = _read(f"{cgroup}/cpu/cpu.cfs_quota_us"), _read(f"{cgroup}/cpu/cpu.cfs_period_us")
        except OSError:
            return None
    return -(-int(quota) // int(period)) if quota.isdigit() and int(period) else None


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()
