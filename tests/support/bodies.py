"""Bodies of objects in which every offset is told apart, and whole reads as a job does them."""

from __future__ import annotations

import mmap
import random
from functools import cache

from tarmill import storage

_STEP_BYTES = 64 << 20  # randbytes makes one number of it, which may have 2^31 bits at most


@cache
def body_of(size: int, seed: int = 0) -> bytes:
    """Give random bytes, the same for the same size and seed."""
    source = random.Random(f"{seed}/{size}")
    return b"".join(source.randbytes(min(_STEP_BYTES, size - done)) for done in range(0, size, _STEP_BYTES))


def read_whole(url: str, version: str | None = None) -> bytes:
    """Read to the end through one page-aligned window."""
    pieces = []
    window = memoryview(mmap.mmap(-1, 1 << 20))
    with storage.open_read(url, version=version) as stream:
        while count := stream.readinto(window):
            pieces.append(bytes(window[:count]))
    return b"".join(pieces)
