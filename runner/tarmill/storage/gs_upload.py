"""How bytes get into an object of Google Cloud Storage: in one request, or in chunks of a resumable session.

Either way the object appears with the last byte, or not at all. A chunk whose answer was lost is sent again: the server
ignores what it has already (https://cloud.google.com/storage/docs/performing-resumable-uploads).
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import google_crc32c

from tarmill.errors import ChangedError, NotFoundError, OutputExistsError, StorageError
from tarmill.storage.gs_client import GsClient
from tarmill.storage.gs_names import split_url, upload_path
from tarmill.storage.retry import Retrier, with_retries
from tarmill.storage.settings import StorageSettings
from tarmill.storage.urls import mask

_TAKEN = frozenset({200, 201, 308})
_STORED = frozenset({200, 201})
_CANCELLED = frozenset({200, 204, 404, 410, 499})
_KEPT = re.compile(r"bytes=0-(\d+)")
_GOODBYE_S = 5.0
_DOING = "writing"


def crc32c_text(crc: int) -> str:
    """Write a CRC32C as the server does (pure)."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def crc32c_of(data: bytes, before: int = 0) -> int:
    """Give the CRC32C of `data` after bytes whose CRC32C was `before` (pure)."""
    return int(google_crc32c.extend(before, data))


class Target:
    """What an upload needs to know: where, as what, under which condition.

    Args:
        client: sends.
        url: the object.
        settings: patience.
        exclusive: only if it does not exist.
        content_type: is kept with it.
        pause: sleeps between tries; may raise to end the upload.
        stop: when it is set, `pause` raises.
    """

    def __init__(
        self,
        client: GsClient,
        url: str,
        settings: StorageSettings,
        exclusive: bool,
        content_type: str,
        pause: Callable[[float], object],
        stop: threading.Event,
    ) -> None:
        self.client = client
        self.stop = stop
        self.url = url
        self.content_type = content_type
        self.bucket, self.name = split_url(url)
        self._exclusive = exclusive
        self._settings = settings
        self._pause = pause
        self.tried_again = False

    @property
    def params(self) -> dict[str, str]:
        """The condition, as the server reads it."""
        return {"ifGenerationMatch": "0"} if self._exclusive else {}

    def resource(self, **more: str) -> bytes:
        """What the server is told of the object."""
        return json.dumps({"name": self.name, "contentType": self.content_type, **more}).encode()

    def retrier(self) -> Retrier:
        """Patience for one request."""
        return Retrier(self._settings, self._before_next_try)

    def _before_next_try(self, seconds: float) -> None:
        self.tried_again = True
        self._pause(seconds)

    def exists(self) -> OutputExistsError:
        """The error of an exclusive upload that came too late."""
        shown = mask(self.url)
        return OutputExistsError(
            f"{shown} exists already and was to be created; remove it, or allow overwriting", url=shown
        )


def put_whole(target: Target, body: bytes, crc: int) -> dict[str, Any]:
    """Send a small object in one request, once, with its checksum, which the server compares; gives what it stored.

    Raises:
        OutputExistsError: it was to be created, and exists. StorageError.
    """
    boundary = os.urandom(16).hex()
    head = (
        f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n".encode()
        + target.resource(crc32c=crc32c_text(crc))
        + f"\r\n--{boundary}\r\nContent-Type: {target.content_type}\r\n\r\n".encode()
    )
    try:
        _, _, stored = target.client.call(
            "POST",
            upload_path(target.bucket),
            target.url,
            _DOING,
            params={"uploadType": "multipart", **target.params},
            headers={"Content-Type": f'multipart/related; boundary="{boundary}"'},
            body=(head, body, f"\r\n--{boundary}--\r\n".encode()),
            accept=_STORED,
            stop=target.stop,
        )
    except NotFoundError as error:
        raise _no_bucket(error, target) from error
    except ChangedError:
        raise target.exists() from None
    return stored


class Session:
    """A resumable upload: chunks in order, all but the last of a multiple of 256 KiB."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._address = ""
        self._offset = 0

    def send(self, chunk: bytes) -> None:
        """Send the next chunk, again until the server has it all."""
        with _for_who_has_the_bytes():
            self._begin()
            self._put_all(chunk, None, {})

    def finish(self, rest: bytes, crc: int) -> dict[str, Any]:
        """Send the last chunk (not empty) with the checksum of everything; gives what the server stored."""
        with _for_who_has_the_bytes():
            self._begin()
            total = self._offset + len(rest)
            return self._put_all(rest, total, {"X-Goog-Hash": f"crc32c={crc32c_text(crc)}"})

    def abort(self) -> None:
        """Tell the server to forget it, as far as it listens; it does so by itself in a week."""
        if self._address:
            address, self._address = self._address, ""
            with suppress(StorageError):
                self._target.client.call(
                    "DELETE", address, self._target.url, _DOING, accept=_CANCELLED, silence_s=_GOODBYE_S
                )

    def _begin(self) -> None:
        if not self._address:
            self._address = with_retries(self._ask_for_address, self._target.retrier())

    def _ask_for_address(self) -> str:
        target = self._target
        body = target.resource()
        try:
            _, headers, _ = target.client.call(
                "POST",
                upload_path(target.bucket),
                target.url,
                _DOING,
                params={"uploadType": "resumable", "name": target.name, **target.params},
                headers={"Content-Type": "application/json", "X-Upload-Content-Type": target.content_type},
                body=(body,),
                accept=_STORED,
            )
        except NotFoundError as error:
            raise _no_bucket(error, target) from error
        except ChangedError:
            raise target.exists() from None
        address = headers.get("Location", "")
        if not address:
            shown = mask(target.url)
            raise StorageError(f"writing {shown}: the server began an upload without saying where", url=shown)
        if target.client.is_emulator:  # these name themselves as others may not reach them
            parts = urlsplit(address)
            address = f"{parts.path}?{parts.query}"
        return address

    def _put_all(self, chunk: bytes, total: int | None, headers: Mapping[str, str]) -> dict[str, Any]:
        end = self._offset + len(chunk)
        retrier = self._target.retrier()
        while True:
            stored = with_retries(lambda: self._put(chunk[-(end - self._offset) :], total, headers), retrier)
            if stored is not None and total is not None:
                return stored
            if stored is not None:
                self._lost("it ended the upload before the last chunk")
            if self._offset == end and total is None:
                return {}
            if self._offset == end:
                self._lost("it has all bytes, and does not end the upload")
            retrier.failed(_incomplete(self._target.url, self._offset, end))

    def _put(self, chunk: bytes, total: int | None, headers: Mapping[str, str]) -> dict[str, Any] | None:
        """Send what is left of a chunk, once; gives what was stored if that was the end."""
        start = self._offset
        whole = "*" if total is None else str(total)
        try:
            status, answered, stored = self._target.client.call(
                "PUT",
                self._address,
                self._target.url,
                _DOING,
                headers={"Content-Range": f"bytes {start}-{start + len(chunk) - 1}/{whole}", **headers},
                body=(chunk,),
                accept=_TAKEN,
                stop=self._target.stop,
            )
        except ChangedError:
            raise self._target.exists() from None
        except NotFoundError as error:
            self._lost(f"it no longer knows the upload ({error.message})")
        except StorageError as error:
            if error.facts.get("status") == 410:
                self._lost("it gave up the upload")
            raise
        if status != 308:
            return stored
        match = _KEPT.fullmatch(answered.get("Range", ""))
        kept = int(match[1]) + 1 if match else 0
        if not start <= kept <= start + len(chunk):
            self._lost(f"it kept {kept} bytes of {start} that it had said to have")
        self._offset = kept
        return None

    def _lost(self, why: str) -> Any:
        shown = mask(self._target.url)
        self._address = ""
        raise StorageError(
            f"writing {shown}: the server answered something unexpected at byte {self._offset}: {why}; the output has "
            "to be written once more",
            url=shown,
            lost=True,
        )


@contextmanager
def _for_who_has_the_bytes() -> Iterator[None]:
    """Let an upload that was lost be tried again, but only by who can begin it anew."""
    try:
        yield
    except StorageError as error:
        if not error.facts.get("lost"):
            raise
        raise StorageError(error.message, **{**error.facts, "retryable": True}) from error


def _no_bucket(error: NotFoundError, target: Target) -> NotFoundError:
    return NotFoundError(
        f"writing {mask(target.url)}: there is no bucket {target.bucket!r}; make it, or mend its name", **error.facts
    )


def _incomplete(url: str, kept: int, sent: int) -> StorageError:
    shown = mask(url)
    return StorageError(
        f"writing {shown}: the server kept the bytes up to {kept} of {sent}", url=shown, retryable=True, network=True
    )
