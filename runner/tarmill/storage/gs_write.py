"""Outputs on Google Cloud Storage: chunks go up while the next one is filled, and the commit makes the object appear.

The CRC32C of what was sent is compared with the server's of what it stored: a damaged object is removed again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from tarmill.errors import NotFoundError, OutputExistsError, StorageError
from tarmill.storage.base import Bytes, Stat
from tarmill.storage.gs_client import GsClient
from tarmill.storage.gs_names import generation_of, object_path, resource_stat, split_url
from tarmill.storage.gs_read import GsBody, stat_once
from tarmill.storage.gs_upload import Session, Target, crc32c_of, crc32c_text, put_whole
from tarmill.storage.pending import UploadCancelled
from tarmill.storage.retry import Retrier, with_retries
from tarmill.storage.settings import StorageSettings
from tarmill.storage.upload_stream import UploadStream
from tarmill.storage.urls import mask

CHUNK_UNIT_BYTES = 256 << 10  # the server takes only multiples of it, but for the last chunk
CHUNK_BYTES = 8 << 20
_MAX_DAMAGED = 3
_ABORT_WAIT_S = 1.0


class _Sending:
    """One chunk on its way, in a thread."""

    def __init__(self, send: Callable[[], object]) -> None:
        self._send = send
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._send()
        except BaseException as error:  # whatever it is belongs to the writer
            self._error = error

    def wait(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def ended_within(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()


class GsWriteStream(UploadStream):
    """An output of which two chunks are in memory: one on its way, one being filled."""

    def __init__(
        self,
        client: GsClient,
        url: str,
        settings: StorageSettings,
        exclusive: bool,
        content_type: str | None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        super().__init__(url)
        self._client = client
        self._settings = settings
        self._exclusive = exclusive
        self._chunk_bytes = chunk_bytes
        self._target = Target(
            client, url, settings, exclusive, content_type or "application/octet-stream", self._pause, self._stop
        )
        self._buffer = bytearray()
        self._crc = 0
        self._session: Session | None = None
        self._sending: _Sending | None = None

    def write_all(self, pieces: Iterable[Bytes], /) -> int:
        """Append many pieces, without joining them first."""
        return sum(map(self.write, pieces))

    def _write(self, data: memoryview) -> None:
        self._buffer += data
        while len(self._buffer) > self._chunk_bytes:  # the last byte stays here, for the request that ends the upload
            chunk = bytes(memoryview(self._buffer)[: self._chunk_bytes])
            del self._buffer[: self._chunk_bytes]
            self._wait_for_chunk()
            if self._session is None:
                self._session = Session(self._target)
            self._sending = _Sending(partial(self._send, self._session, chunk))

    def _send(self, session: Session, chunk: bytes) -> None:
        self._crc = crc32c_of(chunk, self._crc)
        session.send(chunk)

    def _wait_for_chunk(self) -> None:
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.wait()

    def _commit(self) -> Stat:
        self._wait_for_chunk()
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._crc = crc32c_of(rest, self._crc)
        if self._session is None:
            return self._commit_whole(rest)
        stored = self._or_ours(lambda: self._finish(rest))
        try:
            return self._looked_at(stored)
        except StorageError as error:
            self._remove_damaged(error)

    def _finish(self, rest: bytes) -> dict[str, Any]:
        assert self._session is not None
        return self._session.finish(rest, self._crc)

    def _commit_whole(self, body: bytes) -> Stat:
        retrier = self._target.retrier()
        for is_last in (False,) * (_MAX_DAMAGED - 1) + (True,):
            stored = self._or_ours(lambda: with_retries(lambda: put_whole(self._target, body, self._crc), retrier))
            try:
                return self._looked_at(stored)
            except StorageError as error:
                if is_last or not error.facts.get("damaged"):
                    self._remove_damaged(error)
                retrier.failed(error)
        raise AssertionError("the last try returns or raises")

    def _or_ours(self, upload: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Upload; where the server says that it exists, or knows nothing of it, see whether that is our own doing.

        That is so when the answer to the last byte was lost, and it was sent again.
        """
        try:
            return upload()
        except (OutputExistsError, StorageError) as error:
            in_doubt = isinstance(error, OutputExistsError) or error.facts.get("lost")
            if not in_doubt or not self._target.tried_again:
                raise
            with suppress(StorageError):
                found = stat_once(self._client, self.url)[1]
                if found.get("size") == str(self.bytes_written) and found.get("crc32c") == crc32c_text(self._crc):
                    return found
            raise

    def _looked_at(self, stored: dict[str, Any]) -> Stat:
        """Compare what the server says of the object with what was sent, as far as `verify_uploads` goes."""
        stat = resource_stat(self.url, stored)
        sent = self.bytes_written
        way = self._settings.verify_uploads
        if stat.size_bytes is None and way == "none":
            return Stat(self.url, sent, stat.version, stat.mtime_s)
        if stat.size_bytes is None:
            stat, stored = with_retries(lambda: stat_once(self._client, self.url), Retrier(self._settings, self._pause))
        theirs, ours = stored.get("crc32c"), crc32c_text(self._crc)
        if stat.size_bytes != sent or (theirs and theirs != ours):
            self._damaged(
                stat,
                f"{sent} bytes with CRC32C {ours} were sent, the server stored {stat.size_bytes} with {theirs}",
            )
        if way == "hash":
            self._read_back(stat)
        return stat

    def _read_back(self, stat: Stat) -> None:
        body = GsBody(self._client, self.url, self._settings, version=stat.version or None)
        found = 0
        try:
            body.open()
            while piece := body.read(512 << 10):
                if self._stop.is_set():
                    raise UploadCancelled
                found = crc32c_of(bytes(piece), found)
        finally:
            body.close()
        if found != self._crc:
            self._damaged(
                stat, f"what was read back has CRC32C {crc32c_text(found)}, what was sent {crc32c_text(self._crc)}"
            )

    def _damaged(self, stat: Stat, found: str) -> NoReturn:
        shown = mask(self.url)
        raise StorageError(
            f"writing {shown}: {found}; something on the way changes bytes",
            url=shown,
            retryable=True,
            damaged=True,
            generation=generation_of(stat.version),
        )

    def _remove_damaged(self, error: StorageError) -> NoReturn:
        """Remove just what was stored damaged, not what came there since: no file is better than a wrong one."""
        generation = error.facts.get("generation")
        if not error.facts.get("damaged") or not generation:
            raise error
        params = {"generation": generation, "ifGenerationMatch": generation}
        path = object_path(*split_url(self.url))
        try:
            with suppress(NotFoundError):
                with_retries(
                    lambda: self._client.call("DELETE", path, self.url, "removing", params=params),
                    Retrier(self._settings, self._pause),
                )
            after = "it was removed"
        except StorageError as refusal:
            after = f"it could not be removed ({refusal.message})"
        raise StorageError(f"{error.message}; {after}", **error.facts) from error

    def _abort(self) -> None:
        self._stop.set()
        self._buffer.clear()
        sending, self._sending = self._sending, None
        # A chunk that is still on its way publishes nothing, and ends by its own time limit.
        if self._session is not None and (sending is None or sending.ended_within(_ABORT_WAIT_S)):
            self._session.abort()
