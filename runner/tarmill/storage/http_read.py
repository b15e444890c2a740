"""The body of one version of one web object, read on across broken connections.

A body that ends early is never taken for complete: the rest is asked for by Range, and only taken if it is of the same
version. Versions are ETags; without one Last-Modified and size. nginx makes its ETags from whole seconds and the size,
so two bodies of one size stored within one second look alike to it, and to us: write shards once, or verify by hash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime

from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from tarmill.errors import ChangedError, StorageError
from tarmill.storage.base import Stat
from tarmill.storage.body import ResumingBody
from tarmill.storage.http_client import exchange
from tarmill.storage.http_errors import raise_network_error
from tarmill.storage.urls import mask

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_UNSATISFIED = re.compile(r"bytes \*/(\d+)")
_BODY = frozenset({200, 206, 416})


def header_stat(url: str, headers: Mapping[str, str], size_bytes: int | None) -> Stat:
    """Make a stat of an answer's headers (pure)."""
    etag = headers.get("ETag", "").strip()
    modified = headers.get("Last-Modified", "").strip()
    mtime_s = None
    if modified:
        try:
            mtime_s = parsedate_to_datetime(modified).timestamp()
        except (ValueError, TypeError):
            modified = ""
    version = f"etag:{etag}" if etag else f"modified:{modified};{size_bytes}" if modified else ""
    return Stat(url, size_bytes, version, mtime_s)


def length_of(headers: Mapping[str, str]) -> int | None:
    """Read Content-Length; None where the body's end is told otherwise (pure)."""
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def conditions(version: str) -> dict[str, str]:
    """Give the headers that make a server refuse (412) another version, as far as it can tell (pure).

    Weak ETags never match under If-Match (RFC 9110, 13.1.1): there the answer's headers are all there is to compare.
    """
    if version.startswith("etag:") and not version.startswith("etag:W/"):
        return {"If-Match": version[len("etag:") :]}
    if version.startswith("modified:"):
        return {"If-Unmodified-Since": version[len("modified:") :].rpartition(";")[0]}
    return {}


class HttpBody(ResumingBody):
    """The body of a web object; see `ResumingBody`."""

    _response: BaseHTTPResponse | None = None

    @property
    def _connected(self) -> bool:
        return self._response is not None

    def _read_some(self, amount: int) -> bytes:
        assert self._response is not None
        try:
            return self._response.read(amount, decode_content=False)
        except (HTTPError, OSError) as error:
            raise_network_error(error, "GET", self._url)

    def _connect(self) -> None:
        """Ask for the bytes from `_offset` on and make sure that they are what comes."""
        headers = conditions(self._version or "")
        if self._offset or self._end is not None:
            last = "" if self._end is None else str(self._end - 1)
            headers["Range"] = f"bytes={self._offset}-{last}"
            if self._offset and self._stat is not None and not self._stat.version:
                raise StorageError(
                    f"GET {mask(self._url)}: the connection broke at byte {self._offset}, and reading cannot go on "
                    "there: the server gives neither ETag nor Last-Modified, so the rest might be of another version",
                    url=mask(self._url),
                )
        try:
            response = exchange("GET", self._url, self._settings, headers=headers, accept=_BODY)
        except ChangedError:
            self._changed("another version")
        try:
            self._take_over(response)
        except BaseException:
            response.close()
            raise

    def _take_over(self, response: BaseHTTPResponse) -> None:
        skip, total = self._layout(response)
        self._agree(header_stat(self._url, response.headers, total))
        self._response = response
        while skip:  # the server has no ranges: what is known already passes by once more
            data = self._read_some(min(skip, 256 << 10))
            if not data:
                self._fail_short()
            skip -= len(data)

    def _layout(self, response: BaseHTTPResponse) -> tuple[int, int | None]:
        """Where the body begins: (bytes to pass over, size of the object or None)."""
        if response.status == 200:
            return self._offset, length_of(response.headers)
        text = response.headers.get("Content-Range", "")
        shown = mask(self._url)
        if response.status == 416:
            match = _UNSATISFIED.fullmatch(text)
            size = int(match[1]) if match else "fewer"
            if self._stat is not None:
                self._changed(f"{size} bytes")
            raise StorageError(f"{shown} has {size} bytes; a range from {self._offset} was asked for", url=shown)
        match = _CONTENT_RANGE.fullmatch(text)
        if not match or int(match[1]) != self._offset:
            raise StorageError(
                f"GET {shown}: bytes from {self._offset} were asked for, the server sent {text or 'an unnamed part'}",
                url=shown,
                status=206,
            )
        return 0, None if match[3] == "*" else int(match[3])

    def _hang_up(self) -> None:
        response = self._response
        if response is not None:
            with suppress(ValueError, OSError, RuntimeError):  # it ended by itself a moment ago
                response.shutdown()

    def _finished(self) -> None:
        """Give back a connection whose answer was read to its end; close one that would still send."""
        response = self._response
        if response is not None and response.closed:
            response.release_conn()
            self._response = None
        self._drop()

    def _drop(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()
