"""Scratch copies of input shards: decompressed, rewritten or fetched, so that samples can be read in any order."""

from __future__ import annotations

import os
from typing import Any

from tarmill import storage
from tarmill.formats.compression import ByteInput
from tarmill.formats.tar_header import BLOCK

MEMORY = "memory:"
_held: list[int] = []
"""Descriptors of files in memory of the job that runs in this process; the first holds what `gather_memory` took."""
_PIPE_BYTES = 1 << 30


class ScratchFile:
    """A file of decompressed tar bytes in the making; gone unless it is committed.

    Args:
        folder: URL of the scratch folder with '/' at its end, or "memory:" for a file without a name in memory.
        name: of the file.
        owner: job id.
    """

    def __init__(self, folder: str, name: str, owner: str) -> None:
        self.size_bytes = 0
        self._stream: storage.WriteStream | None = None
        if folder == MEMORY:
            self._fd = os.memfd_create(name)
            _held.append(self._fd)
            self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        else:
            self._stream = storage.open_write(folder + name, owner=owner)
            self.path = folder + name

    def write(self, data: Any) -> int:
        """Append bytes; where they begin."""
        start = self.size_bytes
        view = memoryview(data)
        if self._stream is not None:
            self._stream.write(view)
        else:
            done = 0
            while done < len(view):
                done += os.write(self._fd, view[done:])
        self.size_bytes += len(view)
        return start

    def commit(self) -> None:
        """Let the file be seen under its path."""
        if self._stream is not None:
            self._stream.commit()

    def abort(self) -> None:
        """Throw it away, unless it is committed."""
        if self._stream is not None:
            self._stream.abort()


class Tee:
    """A raw input that leaves a copy of what passes in a scratch file."""

    def __init__(self, raw: ByteInput, copy: ScratchFile) -> None:
        self._raw = raw
        self._copy = copy

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer and keep what came."""
        count = self._raw.readinto(buffer) or 0
        if count:
            self._copy.write(buffer[:count])
        return count

    def drain(self) -> None:
        """Copy what nobody has read."""
        block = memoryview(bytearray(1 << 20))
        while self.readinto(block):
            pass


def gather_memory(path: str) -> tuple[str, int]:
    """Move a file in memory behind the others in one large one, since a process may hold only so many open.

    Returns:
        The path of that file, and where the moved one begins in it.
    """
    fd = int(path.rpartition("/")[2])
    first = _held[0]
    if fd == first:
        return path, 0
    start, left, done = -(-os.fstat(first).st_size // BLOCK) * BLOCK, os.fstat(fd).st_size, 0
    os.lseek(first, start, os.SEEK_SET)
    while left:
        step = os.sendfile(first, fd, done, min(left, _PIPE_BYTES))
        done, left = done + step, left - step
    os.close(fd)
    _held.remove(fd)
    return f"/proc/{os.getpid()}/fd/{first}", start


def discard(path: str) -> None:
    """Remove a committed scratch file that nothing needs any more."""
    if path.startswith(f"/proc/{os.getpid()}/fd/"):
        fd = int(path.rpartition("/")[2])
        _held.remove(fd)
        os.close(fd)
    else:
        storage.delete(path)


def release_memory() -> None:
    """Give back all files in memory of this process."""
    while _held:
        os.close(_held.pop())
