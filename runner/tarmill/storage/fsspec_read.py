"""The bytes of one version of one object of an fsspec file system, in windows that are asked for ahead.

fsspec knows no conditions, so each window's version is looked at after its bytes came, and they are given out only if
it is still the one that was opened.
"""

from __future__ import annotations

from collections import deque

from tarmill.errors import NotFoundError, StorageError
from tarmill.storage.base import Stat
from tarmill.storage.body import ResumingBody
from tarmill.storage.fsspec_call import Call
from tarmill.storage.fsspec_errors import translated
from tarmill.storage.fsspec_info import info_stat
from tarmill.storage.fsspec_mount import Mount, mount_for
from tarmill.storage.settings import StorageSettings
from tarmill.storage.urls import mask

_LEAST_WINDOW_BYTES = 256 << 10
_AHEAD = 2


def look(mount: Mount, path: str, url: str) -> Stat:
    """Ask for the stat of an object, once, past every cache.

    Raises:
        NotFoundError: there is none, or a folder.
    """

    def ask() -> Stat:
        mount.fs.invalidate_cache(path)
        info = mount.fs.info(path)
        if info.get("type") == "directory":
            raise FileNotFoundError("it is a folder")
        stat = info_stat(url, info)
        return stat if stat.version else Stat(url, stat.size_bytes, f"checksum:{mount.fs.ukey(path)}", stat.mtime_s)

    return mount.do(ask, url, "looking at")


class _Window:
    """Some bytes on their way, and the version they are of."""

    def __init__(self, mount: Mount, path: str, url: str, start: int, end: int) -> None:
        self.mount = mount
        self.start = start
        self.end = end

        def fetch() -> tuple[bytes, Stat]:
            data = mount.locked(lambda: mount.fs.cat_file(path, start=start, end=end))()
            return data, look(mount, path, url)

        self.call = Call(fetch)

    @property
    def limit_s(self) -> float:
        return self.mount.limit_s(self.end - self.start) + self.mount.limit_s()


class FsspecBody(ResumingBody):
    """The body of an object; see `ResumingBody`.

    Args:
        path: what the file system calls the object.
        window_bytes: most that is asked for at once.
    """

    def __init__(
        self,
        path: str,
        url: str,
        settings: StorageSettings,
        start: int = 0,
        end: int | None = None,
        version: str | None = None,
    ) -> None:
        super().__init__(url, settings, start, end, version)
        self._path = path
        self._most_bytes = max(_LEAST_WINDOW_BYTES, settings.read_ahead_bytes // _AHEAD)
        self._window_bytes = self._most_bytes
        self._windows: deque[_Window] = deque()
        self._mount: Mount | None = None
        self._asked = 0
        self._rest = memoryview(b"")

    @property
    def _connected(self) -> bool:
        return self._mount is not None

    def _connect(self) -> None:
        mount = mount_for(self._url, self._settings)
        try:
            stat = look(mount, self._path, self._url)
        except NotFoundError:
            if self._stat is not None:
                self._changed("nothing")
            raise
        self._agree(stat)
        if self._end is None:
            raise StorageError(
                f"reading {mask(self._url)}: the store does not tell how long it is, so that its end cannot be known; "
                "copy it to a file first",
                url=mask(self._url),
            )
        self._asked = self._offset
        self._mount = mount

    def _ask_ahead(self) -> None:
        assert self._mount is not None
        assert self._end is not None
        while len(self._windows) < _AHEAD and self._asked < self._end:
            end = min(self._asked + self._window_bytes, self._end)
            self._windows.append(_Window(self._mount, self._path, self._url, self._asked, end))
            self._asked = end

    def _read_some(self, amount: int) -> bytes:
        if not self._rest:
            self._ask_ahead()
            window = self._windows[0]  # stays there while it is waited for, so that `_hang_up` finds it
            self._rest = memoryview(self._of_one_version(window))
            self._windows.popleft()
            self._window_bytes = min(2 * self._window_bytes, self._most_bytes)
            self._ask_ahead()
        piece = self._rest[:amount]
        self._rest = self._rest[amount:]
        return bytes(piece)

    def _of_one_version(self, window: _Window) -> bytes:
        if self._stop.is_set():  # asked to stop just before `_hang_up` could find this window
            window.call.leave()
        try:
            data, stat = translated(lambda: window.call.result(window.limit_s), self._url, "reading")
        except NotFoundError:
            self._changed("nothing")
        except StorageError as error:
            window.mount.failed(error)
            self._window_bytes = _LEAST_WINDOW_BYTES  # a break loses a window: make some progress first
            raise
        self._agree(stat)
        if len(data) != window.end - window.start:
            shown = mask(self._url)
            raise StorageError(
                f"reading {shown}: {window.end - window.start} bytes from {window.start} were asked for, "
                f"{len(data)} came",
                url=shown,
                retryable=True,
                network=True,
            )
        return data

    def _hang_up(self) -> None:
        for window in list(self._windows):
            window.call.leave()

    def _drop(self) -> None:
        self._mount = None
        self._windows.clear()
        self._rest = memoryview(b"")
