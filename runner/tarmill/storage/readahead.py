"""Remote bytes are fetched by a thread while the caller works on those that came before.

A bounded queue of pieces; the thread blocks when it is full. Sources know nothing of threads but `interrupt`.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Protocol

from tarmill.errors import StorageError
from tarmill.storage.base import ReadStream, Stat
from tarmill.storage.urls import mask

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PIECE_BYTES = 512 << 10  # larger pieces wake the threads less often; a connection that breaks loses one at most
_JOIN_S = 2.0


class Source(Protocol):
    """Bytes in order, from one thread at a time."""

    def read(self, amount: int) -> bytes | memoryview:
        """Give the next bytes, at most `amount`; b"" only at the true end. Raises StorageError."""

    def interrupt(self) -> None:
        """Make a `read` that is under way in another thread end soon, and all later ones at once."""

    def close(self) -> None:
        """Give up connections; no `read` is under way."""


class _Pump:
    """The thread's side. Holds no reference to the stream, so that a forgotten stream ends its thread."""

    def __init__(self, source: Source, buffer_bytes: int) -> None:
        self.source = source
        self.room = buffer_bytes
        self.pieces: deque[bytes | memoryview] = deque()
        self.changed = threading.Condition()
        self.finished = False
        self.stopped = False
        self.error: BaseException | None = None

    def run(self) -> None:
        error: BaseException | None = None
        try:
            while piece := self.source.read(PIECE_BYTES):
                with self.changed:
                    self.pieces.append(piece)
                    self.room -= len(piece)
                    self.changed.notify()
                    while self.room < PIECE_BYTES and not self.stopped:
                        self.changed.wait()
                    if self.stopped:
                        return
        except BaseException as caught:  # whatever it is belongs to the reader, a thread has nobody to tell
            error = caught
        finally:
            with self.changed:
                self.error = error
                self.finished = True
                self.changed.notify()

    def take(self) -> bytes | memoryview:
        with self.changed:
            while not self.pieces and not self.finished:
                self.changed.wait()
            if self.pieces:
                piece = self.pieces.popleft()
                self.room += len(piece)
                self.changed.notify()
                return piece
            if self.error is not None:
                raise self.error
            return b""

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.pieces.clear()
            self.changed.notify()
        self.source.interrupt()


class ReadAhead(ReadStream):
    """A stream over a source, read ahead from the first `readinto` on. Not seekable.

    Args:
        source: closed with the stream.
        stat: what was opened; small objects are read without a thread.
        buffer_bytes: bound of what is fetched but not read yet.
    """

    def __init__(self, source: Source, stat: Stat, buffer_bytes: int) -> None:
        self.stat = stat
        self._source = source
        self._pump: _Pump | None = None
        self._thread: threading.Thread | None = None
        self._buffer_bytes = max(buffer_bytes, 2 * PIECE_BYTES)
        self._rest = memoryview(b"")
        self._at_end = False
        self._pid = os.getpid()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill the start of `buffer` with what has arrived, waiting for at least one byte; 0 at the end."""
        if self.closed:
            raise ValueError("read of a closed stream")
        view = memoryview(buffer).cast("B")
        if not self._rest and len(view):
            self._rest = memoryview(self._next())
        count = min(len(self._rest), len(view))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _next(self) -> bytes | memoryview:
        if self._at_end:
            return b""
        if self._pid != os.getpid():
            raise StorageError(
                f"{mask(self.stat.url)} was opened before a fork; open it again in this process",
                url=mask(self.stat.url),
            )
        if self._pump is None and self.stat.size_bytes is not None and self.stat.size_bytes <= PIECE_BYTES:
            piece = self._source.read(PIECE_BYTES)
        else:
            piece = self._pumped().take()
        self._at_end = not piece
        return piece

    def _pumped(self) -> _Pump:
        if self._pump is None:
            self._pump = _Pump(self._source, self._buffer_bytes)
            self._thread = threading.Thread(target=self._pump.run, name="read-ahead", daemon=True)
            self._thread.start()
        return self._pump

    def close(self) -> None:
        """End the thread and give up the connection, also in the middle."""
        if self.closed:
            return
        super().close()
        if self._pid != os.getpid():
            return
        if self._pump is not None and self._thread is not None:
            self._pump.stop()
            self._thread.join(_JOIN_S)
            if self._thread.is_alive():
                return  # it is still connecting somewhere; it ends by its own time limit and touches nothing of ours
        self._source.close()
