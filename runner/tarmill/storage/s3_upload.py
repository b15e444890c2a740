"""A multipart upload that goes on while the output is filled: blocks in, parts out, in a thread.

The thread waits for the network instead of the caller, who can be interrupted. Nothing appears before `finish`.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import partial
from typing import Any

from tarmill.storage.log import log
from tarmill.storage.pending import UploadCancelled, pause
from tarmill.storage.retry import Retrier, with_retries
from tarmill.storage.s3_client import S3Client
from tarmill.storage.s3_options import PARTS_IN_FLIGHT
from tarmill.storage.urls import mask

_QUEUE_BYTES = 2 << 20
_STOP_WAIT_S = 10.0


class PartsUpload:
    """One multipart upload.

    Args:
        client, key, url: of the object.
        attributes: content type and metadata.
        first: what is written already, more than one part: it is kept until the server has begun the upload.
        stop: is set to abort it, as long as it is not being completed.
    """

    def __init__(
        self,
        client: S3Client,
        key: str,
        url: str,
        attributes: dict[str, str],
        first: bytes,
        stop: threading.Event,
    ) -> None:
        self._client = client
        self._key = key
        self._url = url
        self._attributes = attributes
        self._first = first
        self._stop = stop
        self._changed = threading.Condition()
        self._blocks: deque[bytes] = deque()
        self._queued_bytes = 0
        self._complete = False
        self._over = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    def put(self, block: bytes) -> None:
        """Add a block; waits while enough is on its way. Raises StorageError of what was put before."""
        with self._changed:
            while self._queued_bytes >= _QUEUE_BYTES and not self._over:
                self._changed.wait()
            self._raise_error()
            self._blocks.append(block)
            self._queued_bytes += len(block)
            self._changed.notify_all()

    def finish(self) -> None:
        """Complete the object, and wait until it is stored. Raises StorageError."""
        with self._changed:
            self._complete = True
            self._changed.notify_all()
            while not self._over:
                self._changed.wait()
            self._raise_error()

    def stop(self) -> None:
        """Abort the upload; its parts go."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(_STOP_WAIT_S)
        if self._thread.is_alive():
            log().warning("%s: the store does not answer; parts of an unfinished upload may stay", mask(self._url))

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._send()
        except BaseException as caught:  # whatever it is belongs to the writer, a thread has nobody to tell
            error = caught
        with self._changed:
            self._error = error
            self._over = True
            self._blocks.clear()
            self._changed.notify_all()

    def _send(self) -> None:
        writer = with_retries(self._begin, Retrier(self._client.settings, partial(pause, self._stop)))
        self._first = b""
        try:
            while (block := self._next()) is not None:
                self._client.ask("PUT", self._url, writer.write, block)
            self._client.ask("PUT", self._url, writer.close)
        except BaseException:
            self._abort(writer)
            raise

    def _begin(self) -> Any:
        """Open an upload and give it the first bytes; as long as that fails, nothing is lost."""
        import obstore

        client = self._client
        writer = obstore.open_writer(
            client.uploading,
            self._key,
            attributes=self._attributes,
            buffer_size=client.options.part_bytes,
            max_concurrency=PARTS_IN_FLIGHT,
        )
        try:
            client.ask("PUT", self._url, writer.write, self._first)
        except BaseException:
            self._abort(writer)
            raise
        return writer

    def _next(self) -> bytes | None:
        """Wait for the next block; None when the object is complete."""
        with self._changed:
            while not (self._blocks or self._complete or self._stop.is_set()):
                self._changed.wait()
            if self._stop.is_set():
                raise UploadCancelled
            if not self._blocks:
                return None
            block = self._blocks.popleft()
            self._queued_bytes -= len(block)
            self._changed.notify_all()
            return block

    def _abort(self, writer: Any) -> None:
        try:
            writer.__exit__(UploadCancelled, UploadCancelled(), None)
        except Exception as error:  # closed already: obstore has aborted it itself
            log().debug("%s: abort: %s", mask(self._url), error)
