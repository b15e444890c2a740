"""Memory for buffers that are used again and again."""

from __future__ import annotations

import mmap
from functools import cache

_LARGEST_KEPT_BYTES = 4 << 20


def own_memory(size_bytes: int) -> mmap.mmap:
    """Get memory that begins with a page; reading into anything else costs several times as much.

    It is this process's own: `mmap` gives memory that a copy of the process (fork) shares by default, so that workers
    which take over a buffer of their driver would read into one and the same.
    """
    return mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE)


@cache
def keep_freed_memory() -> None:
    """Have glibc keep what a sample's contents took for those of the next; does nothing in other C libraries.

    By default glibc gives the end of its heap back to the kernel as soon as 128 KiB of it are free, and fetches it
    again for the next image: page by page, each zeroed, a sixth of the CPU time of copying images. Freeing a block
    that had a mapping of its own raises that limit to twice the block's size (mallopt(3), M_MMAP_THRESHOLD, "dynamic").
    The block is never touched, so it takes no memory.
    """
    bytes(_LARGEST_KEPT_BYTES)
