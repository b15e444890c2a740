"""Objects in this process's memory: `mem://any/name`. A whole store, with versions, for tests and small jobs.

Only threads of one process share it (`Capabilities.shared`), so process and Dask engines refuse it.
"""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tarmill.errors import ChangedError, NotFoundError, OutputExistsError, StorageError
from tarmill.storage.base import Capabilities, ReadStream, Stat, Store, WriteStream, fetch_ranges

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_lock = threading.Lock()
_objects: dict[str, tuple[bytes, Stat]] = {}
_versions = itertools.count(1)


def clear() -> None:
    """Forget every object (tests)."""
    with _lock:
        _objects.clear()


class MemReadStream(ReadStream):
    """Reads a snapshot: objects are replaced, never changed."""

    def __init__(self, data: bytes, stat: Stat) -> None:
        self.stat = stat
        self._data = io.BytesIO(data)  # shares the bytes until written to

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill `buffer`; 0 at the end."""
        return self._data.readinto(buffer)

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move as files do."""
        return self._data.seek(offset, whence)

    def tell(self) -> int:
        """Give the offset of the next byte."""
        return self._data.tell()


class MemWriteStream(WriteStream):
    """Collects pieces; the object appears when they are joined."""

    def __init__(self, url: str, exclusive: bool) -> None:
        super().__init__(url)
        self._pieces: list[bytes] = []
        self._exclusive = exclusive

    def _write(self, data: memoryview) -> None:
        self._pieces.append(bytes(data))

    def _commit(self) -> Stat:
        data = b"".join(self._pieces)
        self._pieces.clear()
        with _lock:
            if self._exclusive and self.url in _objects:
                raise OutputExistsError(f"{self.url} exists already and was to be created", url=self.url)
            stat = Stat(self.url, len(data), str(next(_versions)), time.time())
            _objects[self.url] = (data, stat)
        return stat

    def _abort(self) -> None:
        self._pieces.clear()


class MemStore(Store):
    """mem:// URLs."""

    schemes = ("mem",)
    capabilities = Capabilities(shared="process")

    def _find(self, url: str, version: str | None = None) -> tuple[bytes, Stat]:
        with _lock:
            found = _objects.get(url)
        if found is None:
            raise NotFoundError(f"{url} does not exist in this process's memory", url=url)
        if version is not None and found[1].version != version:
            raise ChangedError(f"{url} is no longer the version that was seen when the job was planned", url=url)
        return found

    def stat(self, url: str) -> Stat:
        """Look at one object."""
        return self._find(url)[1]

    def open_read(self, url: str, *, version: str | None = None) -> MemReadStream:
        """Open an object from its start."""
        return MemReadStream(*self._find(url, version))

    def read_ranges(self, url: str, ranges: Sequence[tuple[int, int]], *, version: str | None = None) -> list[bytes]:
        """Copy ranges out of one version."""
        data, _ = self._find(url, version)

        def fetch(offset: int, length: int) -> bytes:
            if offset + length > len(data):
                raise StorageError(
                    f"{url} has {len(data)} bytes; a range up to {offset + length} was asked for", url=url
                )
            return data[offset : offset + length]

        return fetch_ranges(ranges, 0, fetch)

    def open_write(
        self, url: str, *, owner: str = "", exclusive: bool = False, content_type: str | None = None
    ) -> MemWriteStream:
        """Begin an object."""
        return MemWriteStream(url, exclusive)

    def list(self, prefix_url: str) -> Iterator[Stat]:
        """List what begins with the prefix, sorted."""
        with _lock:
            found = [stat for url, (_, stat) in _objects.items() if url.startswith(prefix_url)]
        return iter(sorted(found, key=lambda stat: stat.url))

    def delete(self, url: str) -> None:
        """Forget an object."""
        with _lock:
            _objects.pop(url, None)
