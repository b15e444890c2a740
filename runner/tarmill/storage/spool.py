"""An output that must be complete before its length is known: in memory first, then in an unnamed scratch file."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, NoReturn

from tarmill.errors import AccessError, NoSpaceError, StorageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE_BYTES = 512 << 10


class Spool:
    """Bytes appended once and read any number of times.

    Args:
        memory_bytes: what is kept in memory; the rest goes to the file.
        scratch_dir: where; None = the system's folder for temp files. The file has no name, so nothing can stay behind.
    """

    def __init__(self, memory_bytes: int, scratch_dir: str | None) -> None:
        self._room = memory_bytes
        self._scratch_dir = scratch_dir
        self._pieces: list[bytes] = []
        self._file: IO[bytes] | None = None
        self.size_bytes = 0

    def append(self, data: bytes) -> None:
        """Add a piece, which is kept as it is while there is room in memory.

        Raises:
            NoSpaceError, AccessError, StorageError: the scratch folder does not take it.
        """
        self.size_bytes += len(data)
        if self._file is None and len(data) <= self._room:
            self._pieces.append(data)
            self._room -= len(data)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._scratch_dir, buffering=0)  # noqa: SIM115 - close() closes it
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            self._refused(error)

    def pieces(self) -> Iterator[bytes]:
        """Give everything from the start, in pieces to send."""
        yield from self._pieces
        if self._file is None:
            return
        fd, offset = self._file.fileno(), 0
        while piece := os.pread(fd, _PIECE_BYTES, offset):
            offset += len(piece)
            yield piece

    @property
    def path(self) -> str:
        """A path to read the file by, for libraries that want one, where nothing is kept in memory and it has bytes."""
        assert self._file is not None
        assert not self._pieces
        return f"/proc/self/fd/{self._file.fileno()}"

    def reader(self) -> io.BufferedReader:
        """Give everything as a file to read and seek in; good until `close`."""
        fd = self._file.fileno() if self._file is not None else -1
        return io.BufferedReader(_Reader(b"".join(self._pieces), fd, self.size_bytes), _PIECE_BYTES)

    def close(self) -> None:
        """Forget everything."""
        self._pieces.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _refused(self, error: OSError) -> NoReturn:
        folder = self._scratch_dir or tempfile.gettempdir()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                f"the scratch folder {folder} is full: an output waits there until its upload; "
                "choose another with --scratch-dir",
                url=folder,
            ) from error
        kind = AccessError if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM) else StorageError
        raise kind(
            f"the scratch folder {folder} cannot be used: {error.strerror}; see --scratch-dir", url=folder
        ) from error


class _Reader(io.RawIOBase):
    def __init__(self, head: bytes, fd: int, size_bytes: int) -> None:
        self._head = head
        self._fd = fd
        self._size_bytes = size_bytes
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        piece = memoryview(self._head)[self._offset : self._offset + len(view)]
        count = len(piece)
        if piece:
            view[:count] = piece
        elif self._fd >= 0:
            count = os.preadv(self._fd, [view], self._offset - len(self._head))
        self._offset += count
        return count

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._offset = max(0, offset + (0, self._offset, self._size_bytes)[whence])
        return self._offset

    def tell(self) -> int:
        return self._offset
