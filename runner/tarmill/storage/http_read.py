"""The body of one version of one web object, read on across broken connections.

A body that ends early is never taken for complete: the rest is asked for by Range, and only taken if it is of the same
version. Versions are ETags; without one Last-Modified and size. nginx makes its ETags from whole seconds and the size,
so two bodies of one size stored within one second look alike to it, and to us: write shards once, or verify by hash.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime

from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from tarmill.errors import ChangedError, StorageError
from tarmill.storage.base import Stat
from tarmill.storage.http_client import exchange
from tarmill.storage.http_errors import raise_network_error
from tarmill.storage.retry import Retrier, with_retries
from tarmill.storage.settings import StorageSettings
from tarmill.storage.urls import mask

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_UNSATISFIED = re.compile(r"bytes \*/(\d+)")
_CAUTIOUS_BYTES = 16 << 10
_ANY_BYTES = 1 << 30
_BODY = frozenset({200, 206, 416})


class Stopped(Exception):
    """Somebody closed the stream while it was waiting."""


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


class HttpBody:
    """A `Source` of the bytes [start, end) of an object; `stat` is known from the first answer on.

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
        self._response: BaseHTTPResponse | None = None
        self._stop = threading.Event()
        self._step = _ANY_BYTES
        self._retrier = Retrier(settings, self._pause)

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

    def read(self, amount: int) -> bytes:
        """Give the next bytes, at most `amount`; b"" only where the last byte was given."""
        while not self._stop.is_set():
            if self._end is not None and self._offset >= self._end:
                self._release()
                return b""
            try:
                if self._response is None:
                    self._connect()
                data = self._read_some(amount)
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
                self._step = min(2 * self._step, _ANY_BYTES)
                return data
            if self._end is None:  # neither Content-Length nor chunks: the end of the connection is all there is
                self._end = self._offset
        raise Stopped

    def _read_some(self, amount: int) -> bytes:
        assert self._response is not None
        amount = min(amount, self._step)
        if self._end is not None:
            amount = min(amount, self._end - self._offset)
        try:
            data = self._response.read(amount, decode_content=False)
        except (HTTPError, OSError) as error:
            raise_network_error(error, "GET", self._url)
        if not data and self._end is not None:
            self._fail_short()
        return data

    def _fail_short(self) -> None:
        shown = mask(self._url)
        raise StorageError(
            f"GET {shown}: the body ended at byte {self._offset} of {self._end}",
            url=shown,
            retryable=True,
            network=True,
        )

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
        stat = header_stat(self._url, response.headers, total)
        known = self._stat
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
        self._response = response
        while skip:  # the server has no ranges: what is known already passes by once more
            try:
                data = response.read(min(skip, 256 << 10), decode_content=False)
            except (HTTPError, OSError) as error:
                raise_network_error(error, "GET", self._url)
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

    def _changed(self, now: str) -> None:
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
        response = self._response
        if response is not None:
            with suppress(ValueError, OSError, RuntimeError):  # it ended by itself a moment ago
                response.shutdown()

    def close(self) -> None:
        """Give up the connection."""
        self._stop.set()
        self._drop()

    def _release(self) -> None:
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
