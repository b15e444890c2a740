"""The window of a scan over a file that is mapped into memory: all of it is there, and nothing is copied to look at it.

Only for processes that may be ended by a file that becomes shorter while it is looked at (`span_sources`).
"""

from __future__ import annotations

import mmap
from typing import Protocol


class ReadCounter(Protocol):
    """Who wants to know how much was looked at."""

    read_bytes: int


class MappedWindow:
    """As `tar_window.Window`, whose names it shares: `buffer[pos:have]` is what a step looks at."""

    def __init__(self, mapped: memoryview, size_bytes: int, counter: ReadCounter | None = None) -> None:
        """Stand at the beginning.

        Args:
            mapped: the whole file, of an `mmap`.
            size_bytes: how much to look at in a step.
            counter: is told how much was looked at.
        """
        assert isinstance(mapped.obj, mmap.mmap)
        self.view = mapped
        self.buffer = mapped.obj
        self.size = size_bytes
        self.pos = self.have = self.base = 0
        self.at_end = False
        self._counter = counter
        self.buffer.madvise(mmap.MADV_SEQUENTIAL)

    def close(self) -> None:
        """Have the kernel read in any order again."""
        self.buffer.madvise(mmap.MADV_NORMAL)

    @property
    def offset(self) -> int:
        """Offset of the next byte."""
        return self.pos

    def ensure(self, want: int) -> bool:
        """Have at least `want` bytes in the window; False when the file ends before."""
        have = max(self.have, min(self.pos + want, len(self.view)))
        if self._counter is not None:
            self._counter.read_bytes += have - self.have
        self.have = have
        self.at_end = have == len(self.view)
        return have - self.pos >= want

    def peek(self, count: int) -> bytes:
        """Copy the next `count` bytes; fewer at the end."""
        self.ensure(count)
        return self.buffer[self.pos : min(self.pos + count, self.have)]
