"""What all remote stores do alike: streams that are read ahead, ranges of one version, several in flight."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from tarmill.storage.base import Store, fetch_ranges
from tarmill.storage.body import ResumingBody
from tarmill.storage.readahead import ReadAhead
from tarmill.storage.settings import StorageSettings, current_settings

_FEW_RANGES = 3


class RemoteStore(Store):
    """A store whose objects are reached over a network, in requests for parts of one version."""

    @abstractmethod
    def _body(
        self, url: str, settings: StorageSettings, start: int = 0, end: int | None = None, version: str | None = None
    ) -> ResumingBody:
        """Make the source of the bytes [start, end) of an object, not opened yet."""

    def open_read(self, url: str, *, version: str | None = None) -> ReadAhead:
        """Open an object; the first answer is waited for, the body is read ahead."""
        settings = current_settings()
        body = self._body(url, settings, version=version or None)
        return ReadAhead(body, body.open(), settings.read_ahead_bytes)

    def read_ranges(self, url: str, ranges: Sequence[tuple[int, int]], *, version: str | None = None) -> list[bytes]:
        """Read ranges by range requests, neighbours merged, several in flight, all of one version."""
        settings = current_settings()
        pinned = version or None

        def fetch(offset: int, length: int) -> bytes:
            nonlocal pinned
            body = self._body(url, settings, offset, offset + length, pinned)
            try:
                stat = body.open()
                pinned = pinned or stat.version or None
                return body.read_all()
            finally:
                body.close()

        if settings.parallel_requests < 2 or len(ranges) < _FEW_RANGES:
            return fetch_ranges(ranges, settings.merge_gap_bytes, fetch)
        if pinned is None:
            pinned = self.stat(url).version or None  # the requests in flight must agree from the first one on
        from concurrent.futures import ThreadPoolExecutor  # dear, and streams alone need none

        with ThreadPoolExecutor(settings.parallel_requests, thread_name_prefix="ranges") as pool:
            return fetch_ranges(ranges, settings.merge_gap_bytes, fetch, pool.map)
