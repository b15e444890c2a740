"""The bytes of one generation of one object of Google Cloud Storage, in one request as long as nothing breaks.

One answer flows for the whole of a stream, so that a distant server's latency is paid once; what has arrived waits in
the buffers of `ReadAhead` and aiohttp. Every request names the generation, so a replaced object is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from tarmill.errors import NotFoundError, StorageError
from tarmill.storage.base import Stat
from tarmill.storage.body import ResumingBody, Stopped
from tarmill.storage.gs_client import GsClient
from tarmill.storage.gs_names import generation_of, object_path, resource_stat, split_url, version_of
from tarmill.storage.settings import StorageSettings
from tarmill.storage.urls import mask

if TYPE_CHECKING:
    from aiohttp import ClientResponse

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_BODY = frozenset({200, 206, 416})
STAT_FIELDS = "name,size,generation,updated,crc32c"


def stat_once(client: GsClient, url: str, generation: str | None = None) -> tuple[Stat, dict[str, Any]]:
    """Ask for what is known of an object, once: its stat, and the server's words."""
    params = {"fields": STAT_FIELDS}
    if generation:
        params["generation"] = generation
    _, _, resource = client.call("GET", object_path(*split_url(url)), url, "looking at", params=params)
    return resource_stat(url, resource), resource


class GsBody(ResumingBody):
    """The body of an object; see `ResumingBody`."""

    def __init__(
        self,
        client: GsClient,
        url: str,
        settings: StorageSettings,
        start: int = 0,
        end: int | None = None,
        version: str | None = None,
    ) -> None:
        super().__init__(url, settings, start, end, version)
        self._client = client
        self._path = object_path(*split_url(url))
        self._response: ClientResponse | None = None
        self._waiting: Future[Any] | None = None

    @property
    def _connected(self) -> bool:
        return self._response is not None

    def _connect(self) -> None:
        """Ask for the bytes from `_offset` on, of the generation that was seen first."""
        params = {"alt": "media"}
        generation = generation_of(self._version)
        if generation:
            params["generation"] = generation
        headers = {}
        if self._offset or self._end is not None:
            last = "" if self._end is None else str(self._end - 1)
            headers["Range"] = f"bytes={self._offset}-{last}"
        try:
            response = self._client.open(self._path, self._url, params=params, headers=headers, accept=_BODY)
        except NotFoundError:
            if generation:
                self._gone()
            raise
        try:
            self._take_over(response)
        except BaseException:
            self._client.close(response)
            raise

    def _take_over(self, response: ClientResponse) -> None:
        if response.status == 416:
            size = stat_once(self._client, self._url)[0].size_bytes
            if self._stat is not None:
                self._changed(f"{size} bytes")
            shown = mask(self._url)
            raise StorageError(f"{shown} has {size} bytes; a range from {self._offset} was asked for", url=shown)
        self._agree(_header_stat(self._url, response.headers, self._total(response)))
        self._response = response

    def _total(self, response: ClientResponse) -> int | None:
        """Read the size of the object, and make sure that the answer begins where it should."""
        text = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(text)
        begins = int(match[1]) if match else 0
        if begins != self._offset or (match is None) != (response.status == 200):
            shown = mask(self._url)
            raise StorageError(
                f"reading {shown}: bytes from {self._offset} were asked for, the server sent "
                f"{text or 'all of them'}; is something in between that does not know ranges?",
                url=shown,
                status=response.status,
            )
        if match:
            return None if match[3] == "*" else int(match[3])
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdigit() else None

    def _gone(self) -> None:
        """After a 404 for a generation: tell what is there instead; returns where there is nothing and never was."""
        try:
            now = stat_once(self._client, self._url)[0].version
        except NotFoundError:
            if self._stat is None:
                return
            now = "nothing"
        self._changed(now)

    def _read_some(self, amount: int) -> bytes:
        assert self._response is not None
        try:
            return self._client.read(self._response, amount, self._url, self._wait_for)
        except CancelledError:
            raise Stopped from None

    def _wait_for(self, future: Future[Any]) -> None:
        self._waiting = future
        if self._stop.is_set():  # asked to stop just before there was something to cancel
            future.cancel()

    def _hang_up(self) -> None:
        waiting = self._waiting
        if waiting is not None:
            waiting.cancel()

    def _drop(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            self._client.close(response)


def _header_stat(url: str, headers: Mapping[str, str], size_bytes: int | None) -> Stat:
    mtime_s = None
    with suppress(ValueError, TypeError):
        mtime_s = parsedate_to_datetime(headers.get("Last-Modified", "")).timestamp()
    return Stat(url, size_bytes, version_of(headers.get("X-Goog-Generation")), mtime_s)
