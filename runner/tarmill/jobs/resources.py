"""What this machine has to give: memory, also under a container's limit, and disk; and how large samples are."""

from __future__ import annotations

import os

from tarmill.engine.meter import Meter
from tarmill.errors import FormatError
from tarmill.formats.tar_header import BLOCK
from tarmill.formats.tar_headers import parse_headers
from tarmill.formats.tar_rows import NotPlain
from tarmill.formats.tar_window import Window
from tarmill.jobs.shard_io import open_contents
from tarmill.planning.tasks import Shard

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_USUAL_SAMPLE = 4096


def memory_bytes() -> tuple[int, int]:
    """Give the memory that is free for us, and that there is in all, within the container's limit."""
    facts = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    free, total = (int(facts[name].split()[0]) << 10 for name in ("MemAvailable", "MemTotal"))
    for path in _LIMITS:
        try:
            limit = int(_read(path))
        except (OSError, ValueError):  # no such file, or "max"
            continue
        free, total = min(free, limit), min(total, limit)
    return free, total


def _read(path: str) -> str:
    with open(path) as file:  # without pathlib, whose import takes longer than all else here
        return file.read()


def free_bytes(folder: str) -> int:
    """Give the free disk space where a folder is or will be."""
    place = os.path.abspath(folder or ".")
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def sample_bytes(shard: Shard) -> int:
    """Estimate how large samples are, by a look at the beginning of a shard."""
    try:
        with open_contents(shard, Meter()) as (raw, _):
            window = Window(raw)
            try:
                window.ensure(window.size)
                found = parse_headers(window.buffer, 0, max(1, window.have // BLOCK), False)
            finally:
                window.close()
    except (NotPlain, FormatError):
        return _USUAL_SAMPLE
    if not found.samples:
        return window.size
    return max(row[4] for row in found.rows) // found.samples
