"""Outputs on a web server: spooled, then one PUT with its length, then looked at.

nginx, Apache and object stores publish such a body when its last byte has arrived; a broken PUT leaves what was there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tarmill.errors import ChangedError, NotFoundError, StorageError
from tarmill.storage.base import Stat
from tarmill.storage.http_client import drain, exchange
from tarmill.storage.http_objects import STORED, head, head_once, remove, server_age_s
from tarmill.storage.http_read import HttpBody
from tarmill.storage.pending import UploadCancelled
from tarmill.storage.retry import Retrier
from tarmill.storage.settings import StorageSettings
from tarmill.storage.spool import Spool
from tarmill.storage.uploads import RemoteWriteStream, exists_already

_MAX_DAMAGED = 3
_SLOW_STORE_BYTES_PER_S = 20e6


class HttpWriteStream(RemoteWriteStream):
    """An output that waits in a `Spool`; `commit` uploads it."""

    def __init__(self, url: str, settings: StorageSettings, exclusive: bool, content_type: str | None) -> None:
        super().__init__(url, settings, content_type)
        self._exclusive = exclusive
        self._spool = Spool(settings.spool_memory_bytes, settings.scratch_dir)

    def _take(self, block: bytes) -> None:
        self._spool.append(block)

    def _commit(self) -> Stat:
        try:
            return _Upload(self, time.monotonic).run()
        finally:
            self._spool.close()

    def _abort(self) -> None:
        self._spool.close()


class _Upload:
    """Puts one spool until the server has it, or refuses."""

    def __init__(self, stream: HttpWriteStream, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._url = stream.url
        self._settings = stream._settings
        self._clock = clock
        self._retrier = Retrier(self._settings, self._stream._pause)
        self._damaged = 0
        self._all_sent = False

    def run(self) -> Stat:
        if self._stream._exclusive:
            self._must_not_exist()
        while True:
            started = self._clock()
            try:
                self._put()
                return self._looked_at()
            except StorageError as error:
                if self._all_sent and self._is_ours(error, self._clock() - started):
                    return self._looked_at()
                self._give_up_on_damage(error)
                self._retrier.failed(error)

    def _put(self) -> None:
        self._all_sent = False
        size = self._stream.bytes_written
        headers = {"Content-Length": str(size), "Content-Type": self._stream._content_type}
        if self._stream._exclusive:
            headers["If-None-Match"] = "*"
        # nginx answers after it has moved the body, which may be a copy to another disk
        patience = self._settings.read_timeout_s + size / _SLOW_STORE_BYTES_PER_S
        try:
            response = exchange(
                "PUT",
                self._url,
                self._settings,
                headers=headers,
                body=self._pieces,
                accept=STORED,
                answer_timeout_s=patience,
            )
        except ChangedError:  # 412: If-None-Match
            raise exists_already(self._url) from None
        drain(response)

    def _pieces(self) -> Iterator[bytes]:
        for piece in self._stream._spool.pieces():
            if self._stream._stop.is_set():
                raise UploadCancelled
            yield piece
        self._all_sent = True

    def _must_not_exist(self) -> None:
        try:
            head(self._url, self._settings)
        except NotFoundError:
            return
        raise exists_already(self._url)

    def _is_ours(self, error: StorageError, elapsed_s: float) -> bool:
        """After an answer that was lost: is what the server has now what we sent, by size and by the server's clock?

        Where that is in doubt the body is sent again, which does no harm.
        """
        if not error.facts.get("network") and error.facts.get("status") not in (408, 502, 504):
            return False
        try:
            stat, headers = head_once(self._url, self._settings)
        except StorageError:
            return False
        age = server_age_s(headers)
        # both times are cut to whole seconds, so the true age may be almost one second more
        return stat.size_bytes == self._stream.bytes_written and age is not None and age + 1 <= elapsed_s

    def _looked_at(self) -> Stat:
        """Make sure that the server has what was sent, as far as `verify_uploads` goes."""
        if self._settings.verify_uploads == "none":
            return Stat(self._url, self._stream.bytes_written, "", None)
        stat = head(self._url, self._settings, Retrier(self._settings, self._stream._pause))
        self._stream._must_be_what_was_sent(stat)
        self._stream._must_read_back(HttpBody(self._url, self._settings, version=stat.version or None))
        return stat

    def _give_up_on_damage(self, error: StorageError) -> None:
        """After a few damaged copies remove the last one: no file is better than a wrong one."""
        if not error.facts.get("damaged"):
            return
        self._damaged += 1
        if error.retryable and self._damaged < _MAX_DAMAGED:
            return
        try:
            remove(self._url, self._settings)
            after = "it was removed"
        except StorageError as refusal:
            after = f"it could not be removed ({refusal.message})"
        raise StorageError(
            f"{error.message}; tried {self._damaged} times, {after}", **{**error.facts, "retryable": False}
        ) from error
