"""Files of this machine, and of whatever is mounted there.

Outputs: a temp file `.{name}.{owner}.{random}.tmp` in the same folder, written, synced, renamed, folder synced. So a
name appears whole, also after a power cut, and what a SIGKILL leaves is found by `sweep`.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import stat as stat_bits
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote

from tarmill.errors import (
    AccessError,
    ChangedError,
    NoSpaceError,
    NotFoundError,
    OutputExistsError,
    SpecError,
    StorageError,
)
from tarmill.storage.base import Capabilities, ReadStream, Stat, Store, WriteStream, fetch_ranges
from tarmill.storage.settings import current_settings
from tarmill.storage.urls import local_path

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

DEFAULT_OWNER = "tarmill"
_OWNER = re.compile(r"[A-Za-z0-9_-]+")
_TEMP = re.compile(r"\..*\.(?P<owner>[A-Za-z0-9_-]+)\.[0-9a-f]{16}\.tmp", re.DOTALL)
_NAME_MAX = 255
_PIECES_PER_CALL = 1024  # IOV_MAX of Linux
_KINDS = (
    (stat_bits.S_ISDIR, "a directory"),
    (stat_bits.S_ISFIFO, "a FIFO"),
    (stat_bits.S_ISSOCK, "a socket"),
    (stat_bits.S_ISCHR, "a character device"),
    (stat_bits.S_ISBLK, "a block device"),
)


def raise_os_error(error: OSError, url: str, doing: str) -> NoReturn:
    """Tell an OSError as the StorageError it means, with the file and what was being done."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise NoSpaceError(f"no space left while {doing} {url}: {reason}; free some, or choose another folder", url=url)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        raise AccessError(f"not allowed: {doing} {url}: {reason}", url=url) from error
    if error.errno == errno.EISDIR:
        raise StorageError(f"{url} is a directory; expected a regular file: name the files inside", url=url) from error
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        raise NotFoundError(f"{url} does not exist ({doing}): {reason}", url=url) from error
    retryable = error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)
    raise StorageError(f"{doing} {url} failed: {reason}", url=url, retryable=retryable) from error


def _must_be_regular(mode: int, url: str, cure: str) -> None:
    if not stat_bits.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
        raise StorageError(f"{url} is {kind}; expected a regular file: {cure}", url=url)


def _stat_of(url: str, found: os.stat_result) -> Stat:
    # no device number: one file of a shared file system must have one version on all hosts
    version = f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"
    return Stat(url, found.st_size, version, found.st_mtime_ns / 1e9)


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
            _must_be_regular(found.st_mode, url, "read a pipe through `-` (command | tool -), a folder by its files")
        except BaseException:
            super().close()
            raise
        self.stat = _stat_of(url, found)

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
        now = _stat_of(self._url, os.fstat(self.fileno()))
        if now.version != self.stat.version:
            raise ChangedError(
                f"{self._url} was changed while it was being read: {self.stat.size_bytes} bytes when it was opened, "
                f"{now.size_bytes} now; run again when nothing writes to it",
                url=self._url,
            )

    def close(self) -> None:
        """Close the file. Raises ChangedError when it was changed in the meantime."""
        if not self.closed:
            try:
                self.verify()
            finally:
                super().close()


class FileWriteStream(WriteStream):
    """A temp file beside its target."""

    def __init__(self, url: str, path: str, owner: str, exclusive: bool) -> None:
        super().__init__(url)
        self._path = os.path.realpath(path) if os.path.islink(path) else path
        self._exclusive = exclusive
        self._folder, name = os.path.split(self._path)
        self._folder = self._folder or "."
        self._fd = -1
        self._temp = os.path.join(self._folder, _temp_name(name, owner))
        try:
            self._open(url, name)
        except OSError as error:
            self._abort()
            raise_os_error(error, url, "creating")

    def _open(self, url: str, name: str) -> None:
        with suppress(FileNotFoundError):
            _must_be_regular(os.stat(self._path).st_mode, url, "write to standard output as `-`, into a folder by name")
        if not name:
            raise SpecError(f"{url!r} names a folder; expected a file name at its end", field="url", value=url)
        os.makedirs(self._folder, exist_ok=True)
        self._fd = os.open(self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def write(self, data: ReadableBuffer, /) -> int:
        """Append all of `data`; returns its length."""
        self._must_be_open()
        view = memoryview(data)
        size = view.nbytes
        try:
            done = os.write(self._fd, view)
            while done < size:  # the kernel takes at most 2 GiB at once, and less on a full disk
                done += os.write(self._fd, view.cast("B")[done:])
        except OSError as error:
            raise_os_error(error, self.url, "writing")
        self.bytes_written += size
        return size

    def write_all(self, pieces: Iterable[ReadableBuffer], /) -> int:
        """Append many pieces by gathering writes, without joining them."""
        self._must_be_open()
        rest = [memoryview(piece).cast("B") for piece in pieces]
        total = sum(map(len, rest))
        at = 0
        try:
            while at < len(rest):
                done = os.writev(self._fd, rest[at : at + _PIECES_PER_CALL])
                while at < len(rest) and done >= len(rest[at]):
                    done -= len(rest[at])
                    at += 1
                if done:
                    rest[at] = rest[at][done:]
        except OSError as error:
            raise_os_error(error, self.url, "writing")
        self.bytes_written += total
        return total

    def _write(self, data: memoryview) -> None:
        raise AssertionError("write and write_all do it themselves")

    def _commit(self) -> Stat:
        sync = current_settings().fsync
        try:
            if sync:
                os.fsync(self._fd)
            receipt = _stat_of(self.url, os.fstat(self._fd))
            fd, self._fd = self._fd, -1
            os.close(fd)  # network file systems tell of a full disk here
            if self._exclusive:
                self._link()
            else:
                os.rename(self._temp, self._path)
            if sync:
                _sync_folder(self._folder)
        except OSError as error:
            raise_os_error(error, self.url, "publishing")
        return receipt

    def _link(self) -> None:
        try:
            os.link(self._temp, self._path)  # rename() replaces; link() refuses: the only exclusive publish there is
        except FileExistsError:
            raise OutputExistsError(
                f"{self.url} exists already and was to be created; remove it, or allow overwriting", url=self.url
            ) from None
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise StorageError(
                    f"{self.url} cannot be created exclusively: this file system has no hard links; "
                    "use another folder, or allow overwriting",
                    url=self.url,
                ) from error
            raise
        os.unlink(self._temp)

    def _abort(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(OSError):
                os.close(fd)
        with suppress(OSError):
            os.unlink(self._temp)


def _temp_name(name: str, owner: str) -> str:
    owner = owner or DEFAULT_OWNER
    if not _OWNER.fullmatch(owner) or len(owner) > 100:
        raise SpecError(
            f"{owner!r} cannot own outputs; expected at most 100 of letters, digits, `_` and `-`",
            field="owner",
            value=owner,
        )
    tail = f".{owner}.{secrets.token_hex(8)}.tmp"
    room = _NAME_MAX - len(tail) - 1
    return "." + os.fsdecode(os.fsencode(name)[:room]) + tail


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):  # some network file systems sync no folders
            raise
    finally:
        os.close(fd)


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
        _must_be_regular(found.st_mode, url, "name the files inside, or a pattern for them")
        return _stat_of(url, found)

    def open_read(self, url: str, *, version: str | None = None) -> FileReadStream:
        """Open a file for reading, from its start."""
        try:
            stream = FileReadStream(url, local_path(url))
        except OSError as error:
            raise_os_error(error, url, "opening")
        if version is not None and version != stream.stat.version:
            stream.close()
            raise ChangedError(f"{url} is no longer the file that was seen when the job was planned", url=url)
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
            yield _stat_of(url, info) if info else Stat(url, None, "", None)

    def delete(self, url: str) -> None:
        """Remove a file; a missing one is fine."""
        try:
            os.unlink(local_path(url))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise_os_error(error, url, "deleting")

    def sweep(self, folder_url: str, owner: str) -> int:
        """Remove temp files of `owner` in this folder; how many that were."""
        folder = local_path(folder_url)
        count = 0
        try:
            for name in os.listdir(folder):
                match = _TEMP.fullmatch(name)
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
        elif not _TEMP.fullmatch(entry.name):
            try:
                info = entry.stat()
            except FileNotFoundError:
                if entry.is_symlink():
                    found.append((path, None))
                continue
            if stat_bits.S_ISREG(info.st_mode):
                found.append((path, info))
