"""The bytes of one version of one remote object, read on across broken connections: what all remote stores share.

A body that ends early is never taken for complete: the rest is asked for, and only taken if it is of the same version.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import NoReturn

from tarmill.errors import ChangedError, StorageError
from tarmill.storage.base import Stat
from tarmill.storage.retry import Retrier, with_retries
from tarmill.storage.settings import StorageSettings
from tarmill.storage.urls import mask

_CAUTIOUS_BYTES = 16 << 10
ANY_BYTES = 1 << 30


class Stopped(Exception):
    """Somebody closed the stream while it was waiting."""


class ResumingBody(ABC):
    """A `Source` (see `readahead`) of the bytes [start, end) of an object; `stat` is known from the first answer on.

    A store's own class says how to ask for the bytes from `_offset` on, once, and how to take what comes.

    Args:
        url: the object.
        settings: patience and time limits.
        start, end: in bytes; end None = that of the object.
        version: read this version only.
    """

    def __init__(
        self, url: str, settings: StorageSettings, start: int = 0, end: int | None = None, version: str | None = None
    ) -> None:
        self._url = url
        self._settings = settings
        self._offset = start
        self._end = end
        self._version = version
        self._stat: Stat | None = None
        self._stop = threading.Event()
        self._step = ANY_BYTES
        self._retrier = Retrier(settings, self._pause)

    @abstractmethod
    def _connect(self) -> None:
        """Ask for the bytes from `_offset` on, once, and `_agree` to what comes. Raises StorageError."""

    @property
    @abstractmethod
    def _connected(self) -> bool:
        """Whether an answer is being read."""

    @abstractmethod
    def _read_some(self, amount: int) -> bytes | memoryview:
        """Give the next bytes of the answer; b"" only where its end is told by nothing else. Raises StorageError."""

    @abstractmethod
    def _drop(self) -> None:
        """Give up the answer, if there is one."""

    def _finished(self) -> None:
        """Let go of an answer whose last byte was read."""
        self._drop()

    @abstractmethod
    def _hang_up(self) -> None:
        """Wake a read that waits in another thread, where that can be done."""

    def open(self) -> Stat:
        """Send the first request, again where that helps.

        Raises:
            NotFoundError, AccessError, ChangedError, StorageError.
        """
        with_retries(self._connect, self._retrier)
        return self.stat

    @property
    def stat(self) -> Stat:
        """What was opened."""
        assert self._stat is not None, "open() comes first"
        return self._stat

    def read(self, amount: int) -> bytes | memoryview:
        """Give the next bytes, at most `amount`; b"" only where the last byte was given."""
        while not self._stop.is_set():
            if self._end is not None and self._offset >= self._end:
                self._finished()
                return b""
            try:
                if not self._connected:
                    self._connect()
                data = self._read_some(self._bounded(amount))
                if not data and self._end is not None:
                    self._fail_short()
            except StorageError as error:
                self._drop()
                self._step = _CAUTIOUS_BYTES  # a break loses the piece being read: make some progress first
                if self._stop.is_set():
                    break
                self._retrier.failed(error)
                continue
            if data:
                self._offset += len(data)
                self._retrier.progress()
                self._step = min(2 * self._step, ANY_BYTES)
                return data
            self._end = self._offset  # neither a length nor chunks: the end of the connection is all there is
        raise Stopped

    def read_all(self) -> bytes:
        """Give all bytes that are left."""
        pieces = []
        while piece := self.read(1 << 20):
            pieces.append(piece)
        return b"".join(pieces) if len(pieces) != 1 else bytes(pieces[0])

    def _bounded(self, amount: int) -> int:
        amount = min(amount, self._step)
        return amount if self._end is None else min(amount, self._end - self._offset)

    def _fail_short(self) -> NoReturn:
        shown = mask(self._url)
        raise StorageError(
            f"GET {shown}: the body ended at byte {self._offset} of {self._end}",
            url=shown,
            retryable=True,
            network=True,
        )

    def _agree(self, stat: Stat) -> None:
        """Take what an answer says of its object, or refuse it.

        Raises:
            ChangedError: it is of another version than was asked for, or opened.
            StorageError: the object is shorter than the range.
        """
        known, total = self._stat, stat.size_bytes
        if self._version is not None and stat.version != self._version:
            self._changed(stat.version)
        if known is not None and known.size_bytes is not None and total is not None and known.size_bytes != total:
            self._changed(f"{total} bytes")
        if self._end is not None and total is not None and self._end > total:
            shown = mask(self._url)
            raise StorageError(f"{shown} has {total} bytes; a range up to {self._end} was asked for", url=shown)
        if known is None:
            self._stat = stat
            self._version = stat.version or None
        if self._end is None:
            self._end = total

    def _changed(self, now: str) -> NoReturn:
        shown = mask(self._url)
        when = f"while it was being read, at byte {self._offset}" if self._stat else "since it was looked at"
        raise ChangedError(
            f"{shown} was replaced {when} (was {self._version}, now {now}); run again when nothing writes to it",
            url=shown,
        )

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def interrupt(self) -> None:
        """End a `read` in another thread."""
        self._stop.set()
        self._hang_up()

    def close(self) -> None:
        """Give up the connection."""
        self._stop.set()
        self._drop()
