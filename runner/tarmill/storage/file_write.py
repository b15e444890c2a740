"""Files that appear whole: written under a temp name in the same folder, synced, renamed, the folder synced."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from tarmill.errors import OutputExistsError, SpecError, StorageError
from tarmill.storage.base import Bytes, Stat, WriteStream
from tarmill.storage.direct_write import DirectWriter, lies_on_a_disk
from tarmill.storage.file_facts import must_be_regular, raise_os_error, stat_of
from tarmill.storage.settings import current_settings

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

DEFAULT_OWNER = "tarmill"
TEMP_NAME = r"(?s)\..*\.(?P<owner>[A-Za-z0-9_-]+)\.[0-9a-f]{16}\.tmp"
_OWNER = r"[A-Za-z0-9_-]+"
_NAME_MAX = 255
_PIECES_PER_CALL = 1024  # IOV_MAX of Linux


class FileWriteStream(WriteStream):
    """A temp file beside its target."""

    def __init__(self, url: str, path: str, owner: str, exclusive: bool) -> None:
        super().__init__(url)
        self._path = os.path.realpath(path) if os.path.islink(path) else path
        self._exclusive = exclusive
        self._folder, name = os.path.split(self._path)
        self._folder = self._folder or "."
        self._fd = -1
        self._direct: DirectWriter | None = None
        self._temp = os.path.join(self._folder, temp_name(name, owner))
        try:
            self._open(url, name)
        except OSError as error:
            self._abort()
            raise_os_error(error, url, "creating")

    def _open(self, url: str, name: str) -> None:
        with suppress(FileNotFoundError):
            must_be_regular(os.stat(self._path).st_mode, url, "write to standard output as `-`, into a folder by name")
        if not name:
            raise SpecError(f"{url!r} names a folder; expected a file name at its end", field="url", value=url)
        os.makedirs(self._folder, exist_ok=True)
        self._fd = os.open(self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        if current_settings().fsync and lies_on_a_disk(self._fd):
            self._direct = DirectWriter(self._fd)

    def write(self, data: ReadableBuffer, /) -> int:
        """Append all of `data`; returns its length."""
        self._must_be_open()
        view = memoryview(data)
        size = view.nbytes
        try:
            if self._direct is not None:
                self._direct.append(view.cast("B"))
            else:
                done = os.write(self._fd, view)
                while done < size:  # the kernel takes at most 2 GiB at once, and less on a full disk
                    done += os.write(self._fd, view.cast("B")[done:])
        except OSError as error:
            raise_os_error(error, self.url, "writing")
        self.bytes_written += size
        return size

    def write_all(self, pieces: Iterable[Bytes], /) -> int:
        """Append many pieces by gathering writes, without joining them where nothing else does."""
        self._must_be_open()
        rest = list(pieces)
        total = sum(map(len, rest))
        try:
            if self._direct is not None:
                for piece in rest:
                    self._direct.append(memoryview(piece))
            else:
                self._gather(rest, total)
        except OSError as error:
            raise_os_error(error, self.url, "writing")
        self.bytes_written += total
        return total

    def _gather(self, rest: list[Bytes], left: int) -> None:
        at = 0
        while left:
            done = os.writev(self._fd, rest[at : at + _PIECES_PER_CALL])
            left -= done
            while left and done >= len(rest[at]):
                done -= len(rest[at])
                at += 1
            if left and done:
                rest[at] = memoryview(rest[at])[done:]

    def _write(self, data: memoryview) -> None:
        raise AssertionError("write and write_all do it themselves")

    def _commit(self) -> Stat:
        sync = current_settings().fsync
        try:
            if self._direct is not None:
                self._direct.finish()
            if sync:
                os.fsync(self._fd)
            receipt = stat_of(self.url, os.fstat(self._fd))
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
        if self._direct is not None:
            self._direct.release()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(OSError):
                os.close(fd)
        with suppress(OSError):
            os.unlink(self._temp)


def temp_name(name: str, owner: str) -> str:
    """Make the name of an unfinished output, which says whose it is."""
    owner = owner or DEFAULT_OWNER
    if not re.fullmatch(_OWNER, owner) or len(owner) > 100:
        raise SpecError(
            f"{owner!r} cannot own outputs; expected at most 100 of letters, digits, `_` and `-`",
            field="owner",
            value=owner,
        )
    tail = f".{owner}.{os.urandom(8).hex()}.tmp"
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
