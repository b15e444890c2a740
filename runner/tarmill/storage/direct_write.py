"""Files written past the kernel's page cache.

What has to be on the disk before a file gets its name gains nothing by lying in the cache on its way: to put it there,
page by page, costs several times what the disk takes of the processor. Writes are gathered in a block of memory, which
goes to the disk as it is (O_DIRECT); where a file system cannot do that they go through the cache as ever.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from contextlib import suppress

from tarmill.heap import own_memory

BLOCK_BYTES = 2 << 20
"""Of one write; a huge page, which the kernel need not look up piece by piece."""
ALIGNMENT = 4096
"""Of memory, offset and length: no disk asks for more."""
DIRECT = getattr(os, "O_DIRECT", 0)

_MOST_SPARE = 4
_spare: list[mmap.mmap] = []
"""Blocks of files that are finished: to get memory anew costs as much as to fill it."""
os.register_at_fork(after_in_child=_spare.clear)


class DirectWriter:
    """Gathers what is appended to a new file, and writes it in large blocks.

    Args:
        fd: of the file, which is empty; stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._memory: mmap.mmap | None = None
        self._block = memoryview(bytearray())
        self._filled = 0
        self._is_direct: bool | None = None
        """None until something is written."""

    def append(self, data: memoryview) -> None:
        """Take bytes; OSError as a write does."""
        if self._memory is None:
            self._memory = _take_block()
            self._block = memoryview(self._memory)
        at, size = 0, len(data)
        while size - at >= (room := BLOCK_BYTES - self._filled):
            self._block[self._filled :] = data[at : at + room]
            self._filled = BLOCK_BYTES
            at += room
            if self._is_direct is None:
                self._is_direct = set_direct(self._fd, True)
            self._write(BLOCK_BYTES)
        self._block[self._filled : self._filled + size - at] = data[at:]
        self._filled += size - at

    def finish(self) -> None:
        """Write what is left, the end of it, which may fill no page, through the cache."""
        if self._is_direct:
            self._write(self._filled // ALIGNMENT * ALIGNMENT)
            set_direct(self._fd, False)
        self._write(self._filled)
        self.release()

    def release(self) -> None:
        """Give the memory back for the next file."""
        self._block.release()
        if self._memory is not None and len(_spare) < _MOST_SPARE:
            _spare.append(self._memory)
        self._memory = None

    def _write(self, size: int) -> None:
        """Write the begin of the block, and move the rest there."""
        done = 0
        while done < size:
            try:
                done += os.write(self._fd, self._block[done:size])
            except OSError as error:
                if not (self._is_direct and error.errno == errno.EINVAL):
                    raise
                self._is_direct = False  # it said that it could, or it took a part that ends within a page
                set_direct(self._fd, False)
        self._filled -= size
        self._block[: self._filled] = self._block[size : size + self._filled]


def lies_on_a_disk(file: int | str) -> bool:
    """Tell whether a file is on a block device of this machine: memory gains nothing, and networks have own caches."""
    return bool(DIRECT) and os.major(os.stat(file).st_dev) != 0


def _take_block() -> mmap.mmap:
    with suppress(IndexError):  # several threads may take some
        return _spare.pop()
    return new_memory(BLOCK_BYTES)


def new_memory(size_bytes: int) -> mmap.mmap:
    """Get memory that disks may write to and read from: it begins with a page, and has large ones where there are."""
    made = own_memory(size_bytes)
    with suppress(OSError, AttributeError):
        made.madvise(mmap.MADV_HUGEPAGE)
    return made


def set_direct(fd: int, on: bool) -> bool:
    """Switch it for an open file; False where its file system has none."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | DIRECT if on else flags & ~DIRECT)
    except OSError:
        return False
    return on
