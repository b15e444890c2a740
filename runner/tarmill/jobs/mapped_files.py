"""Local files mapped into memory, to copy samples from: pages stay mapped from task to task."""

from __future__ import annotations

import mmap

from tarmill.planning.span_tasks import Source

_Version = tuple[str, str]


class MappedFiles:
    """Files that are mapped, each in one version."""

    def __init__(self) -> None:
        self._files: dict[_Version, memoryview] = {}

    def __len__(self) -> int:
        return len(self._files)

    def map(self, source: Source, fd: int) -> memoryview | None:
        """Give a whole file; None where it is empty, cannot be mapped, or there is no more room for addresses.

        Args:
            source: says which file in which version.
            fd: of it.
        """
        name = source.path, source.version
        found = self._files.get(name)
        if found is None:
            try:
                found = self._files[name] = memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ))
            except (OSError, ValueError):
                return None
        return found

    def release(self) -> None:
        """Unmap all, as soon as nobody holds a piece of them."""
        self._files.clear()


kept = MappedFiles()
"""What tasks of the job in hand mapped in this process. Each of them copies from all inputs, and mapping a page once
more costs as much as reading what is in it."""
