"""Local files mapped into memory, to copy samples from: pages stay mapped from task to task."""

from __future__ import annotations

import mmap
import resource
from contextlib import suppress

from tarmill.planning.span_tasks import Source

_Version = tuple[str, str]


class MappedFiles:
    """Files that are mapped, each in one version."""

    def __init__(self) -> None:
        self._files: dict[_Version, memoryview] = {}
        self._most = 0

    def __len__(self) -> int:
        return len(self._files)

    def map(self, source: Source, fd: int) -> memoryview | None:
        """Give a whole file; None where it is empty or cannot be mapped, or where very many are.

        Args:
            source: says which file in which version.
            fd: of it.
        """
        name = source.path, source.version
        found = self._files.get(name)
        if found is None:
            self._most = self._most or max_open() // 2  # each holds a descriptor of its own
            if len(self._files) >= self._most:
                return None
            try:
                found = self._files[name] = memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ))
            except (OSError, ValueError):
                return None
        return found

    def release(self) -> None:
        """Unmap all, as soon as nobody holds a piece of them."""
        self._files.clear()


def max_open() -> int:
    """Tell how many files a process may keep open, after asking for as many as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 16384 if hard == resource.RLIM_INFINITY else min(hard, 16384)
    if wanted > soft:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(64, soft // 2)


kept = MappedFiles()
"""What tasks of the job in hand mapped in this process. Each of them copies from all inputs, and mapping a page once
more costs as much as reading what is in it."""
