"""Files of this machine, and of whatever is mounted there.

Outputs: a temp file `.{name}.{owner}.{random}.tmp` in the same folder, written, synced, renamed, folder synced. So a
name appears whole, also after a power cut, and what a SIGKILL leaves is found by `sweep`.
"""

from __future__ import annotations

import io
import os
import re
import stat as stat_bits
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from tarmill.errors import ChangedError, StorageError
from tarmill.storage.base import Capabilities, ReadCounter, ReadStream, Stat, Store, fetch_ranges
from tarmill.storage.file_facts import must_be_regular, raise_os_error, stat_of, version_of
from tarmill.storage.file_write import DEFAULT_OWNER, TEMP_NAME, FileWriteStream
from tarmill.storage.urls import local_path

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class FileReadStream(io.FileIO, ReadStream):
    """A regular file at the kernel's speed: `readinto`, `seek`, `fileno` are those of `io.FileIO`.

    It reads one inode: a file replaced by rename is read on in its old version, whole. Bytes changed in place are
    noticed at the end of the data, by `verify`, and by `close`.
    """

    def __init__(self, url: str, path: str) -> None:
        # A FIFO would block in open() until somebody writes; O_NONBLOCK means nothing to a regular file.
        super().__init__(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY))
        self._url = url
        try:
            found = os.fstat(self.fileno())
            must_be_regular(found.st_mode, url, "read a pipe through `-` (command | tool -), a folder by its files")
        except BaseException:
            super().close()
            raise
        self.stat = stat_of(url, found)
        self.positional = FileReads(self, found.st_size)

    def readinto(self, buffer: ReadableBuffer, /) -> int:
        """Fill `buffer` from the file; 0 at the end, which is looked at twice."""
        try:
            count = super().readinto(buffer)
        except OSError as error:
            raise_os_error(error, self._url, "reading")
        if not count:
            self.verify()
        return count or 0

    def verify(self) -> None:
        """Compare the open file with what was opened. Raises ChangedError."""
        now = os.fstat(self.fileno())
        if version_of(now) != self.stat.version:
            raise ChangedError(
                f"{self._url} was changed while it was being read: {self.stat.size_bytes} bytes when it was opened, "
                f"{now.st_size} now; run again when nothing writes to it",
                url=self._url,
            )

    def close(self) -> None:
        """Close the file. Raises ChangedError when it was changed in the meantime."""
        if not self.closed:
            try:
                self.verify()
            finally:
                super().close()


class FileReads:
    """Reads at offsets of an open file."""

    def __init__(self, stream: FileReadStream, size_bytes: int) -> None:
        self._stream = stream
        self._fd = stream.fileno()
        self.size_bytes = size_bytes
        self.counter: ReadCounter | None = None

    def fileno(self) -> int:
        """Give the descriptor of the file, which stays open as long as the stream."""
        return self._fd

    def readinto_at(self, buffer: memoryview, offset: int, /) -> int:
        """Fill `buffer` from an offset; 0 at the end, which is looked at twice."""
        try:
            count = os.preadv(self._fd, (buffer,), offset)
        except OSError as error:
            raise_os_error(error, self._stream.stat.url, "reading")
        if not count:
            self._stream.verify()
        elif self.counter is not None:
            self.counter.read_bytes += count
        return count

    def read_at(self, size: int, offset: int, /) -> bytes:
        """Give the bytes from an offset; fewer at the end."""
        try:
            data = os.pread(self._fd, size, offset)
        except OSError as error:
            raise_os_error(error, self._stream.stat.url, "reading")
        if self.counter is not None:
            self.counter.read_bytes += len(data)
        return data


class FileStore(Store):
    """Plain paths and file:// URLs."""

    schemes = ("file",)
    capabilities = Capabilities(shared="host")

    def stat(self, url: str) -> Stat:
        """Look at one file."""
        try:
            found = os.stat(local_path(url))
        except OSError as error:
            raise_os_error(error, url, "looking at")
        must_be_regular(found.st_mode, url, "name the files inside, or a pattern for them")
        return stat_of(url, found)

    def open_read(self, url: str, *, version: str | None = None) -> FileReadStream:
        """Open a file for reading, from its start."""
        try:
            stream = FileReadStream(url, local_path(url))
        except OSError as error:
            raise_os_error(error, url, "opening")
        if version is not None and version != stream.stat.version:
            stream.close()
            raise ChangedError(
                f"{url} is no longer the file that was seen when the job was planned; run the command again when "
                "nothing writes to it",
                url=url,
            )
        return stream

    def read_ranges(self, url: str, ranges: Sequence[tuple[int, int]], *, version: str | None = None) -> list[bytes]:
        """Read ranges by pread; the page cache merges better than we could, so only touching ranges are joined."""
        with self.open_read(url, version=version) as stream:
            fd = stream.fileno()

            def fetch(offset: int, length: int) -> bytes:
                pieces = []
                while length and (piece := os.pread(fd, min(length, 64 << 20), offset)):
                    pieces.append(piece)
                    offset, length = offset + len(piece), length - len(piece)
                if length:
                    raise StorageError(
                        f"{url} has {stream.stat.size_bytes} bytes; a range up to {offset + length} was asked for",
                        url=url,
                    )
                return b"".join(pieces) if len(pieces) != 1 else pieces[0]

            try:
                return fetch_ranges(ranges, 1, fetch)
            except OSError as error:
                raise_os_error(error, url, "reading")

    def open_write(
        self, url: str, *, owner: str = "", exclusive: bool = False, content_type: str | None = None
    ) -> FileWriteStream:
        """Begin a file; folders above it are made."""
        return FileWriteStream(url, local_path(url), owner, exclusive)

    def list(self, prefix_url: str) -> Iterator[Stat]:
        """List regular files, also behind symbolic links; a link to nothing is listed without size, to be missed."""
        from urllib.parse import quote

        as_url = prefix_url.lower().startswith("file://")
        prefix = local_path(prefix_url) if prefix_url else ""
        folder = prefix[: prefix.rfind("/") + 1]
        found: list[tuple[str, os.stat_result | None]] = []
        try:
            _walk(folder, prefix, (), found)
        except OSError as error:
            raise_os_error(error, prefix_url, "listing")
        for path, info in sorted(found, key=lambda item: item[0]):
            url = "file://" + quote(os.path.abspath(path), errors="surrogateescape") if as_url else path
            yield stat_of(url, info) if info else Stat(url, None, "", None)

    def delete(self, url: str) -> None:
        """Remove a file; a missing one is fine."""
        try:
            os.unlink(local_path(url))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise_os_error(error, url, "deleting")

    def sweep(self, folder_url: str, owner: str, outputs: Container[str] = ()) -> int:
        """Remove temp files of `owner` in this folder; how many that were."""
        folder = local_path(folder_url)
        count = 0
        try:
            for name in os.listdir(folder):
                match = re.fullmatch(TEMP_NAME, name)
                if match and match["owner"] == (owner or DEFAULT_OWNER):
                    with suppress(FileNotFoundError):  # its writer finished, or another sweeper was faster
                        os.unlink(os.path.join(folder, name))
                        count += 1
        except FileNotFoundError:
            return count
        except OSError as error:
            raise_os_error(error, folder_url, "sweeping")
        return count


def _walk(
    folder: str, prefix: str, above: tuple[tuple[int, int], ...], found: list[tuple[str, os.stat_result | None]]
) -> None:
    """Collect files under `folder` whose path begins with `prefix`; `above` breaks circles of symbolic links."""
    try:
        here = os.stat(folder or ".")
        entries = list(os.scandir(folder or "."))
    except (FileNotFoundError, NotADirectoryError):
        return
    identity = (here.st_dev, here.st_ino)
    if identity in above:
        return
    for entry in entries:
        path = folder + entry.name
        if not path.startswith(prefix) and not prefix.startswith(path + "/"):
            continue
        if entry.is_dir():
            _walk(path + "/", prefix, (*above, identity), found)
        elif not re.fullmatch(TEMP_NAME, entry.name):
            try:
                info = entry.stat()
            except FileNotFoundError:
                if entry.is_symlink():
                    found.append((path, None))
                continue
            if stat_bits.S_ISREG(info.st_mode):
                found.append((path, info))
