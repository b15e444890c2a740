"""The local files of samples as they are read: nothing but whole files that nobody wrote to meanwhile.

A file that was looked at when it was listed must still be what it was then. Of one that was listed by name alone it
counts what it is when it is read; what that was is kept in a hash, to know it again when the job is taken up later.
"""

from __future__ import annotations

import errno
import marshal
import os
import stat
from collections.abc import Iterator

from xxhash import xxh3_128

from tarmill.errors import ChangedError, StorageError, TarmillError
from tarmill.heap import own_memory
from tarmill.planning.upload_listing import Part
from tarmill.storage.file_facts import raise_os_error

# A FIFO that has taken a file's place must not block; a terminal must not become ours.
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

CALM_NS = 60 * 10**9
"""A file that was written so long before a job began is not written while the job reads it, whosever clock is wrong."""

SINCE_LISTED = "since it was listed"
WHILE_READ = "while it was read"
_BLOCK_BYTES = 1 << 20
MANY_NUMBERS = 1 << 14
"""`Seen` hashes so many at once."""
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What is wrong with this process, not with the file."""


class Large(Exception):
    """A sample is too large to be held, which turned out when its fields were read."""


class SampleTrouble(Exception):
    """A sample cannot be had; the shard may do without it."""

    def __init__(self, error: TarmillError) -> None:
        super().__init__(error.message)
        self.error = error


class Folder:
    """Where the last sample's files lie; open from its second sample on, to spare the kernel a walk for each file."""

    __slots__ = ("fd", "path", "tried")

    def __init__(self) -> None:
        self.path: str | None = None
        self.fd: int | None = None
        self.tried = False

    def leave(self, path: str) -> None:
        """Go on in another folder, of which nothing is open yet: in random order it may be left at once."""
        if self.fd is not None:
            os.close(self.fd)
        self.path, self.fd, self.tried = path, None, False

    def open(self) -> None:
        """Open the folder; where that cannot be, `fd` stays None and whole paths tell why."""
        self.tried = True
        self.fd = open_folder(f"{self.path}/")

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.leave("")


def open_folder(folder: str) -> int | None:
    """Open a folder, for its files to be named relative to it; None where that cannot be: whole paths tell why."""
    try:
        return os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None


class Seen:
    """A hash of what files were when they were read: size, time and inode number of each, in order."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        """Size, time in ns and inode number of the files of the last samples."""
        self._hash = xxh3_128()

    def settle(self) -> None:
        """Hash the numbers: to be called after a sample, as soon as there are more than MANY_NUMBERS."""
        self._hash.update(marshal.dumps(self.numbers, 2))
        self.numbers.clear()

    def hexdigest(self) -> str:
        """Give the hash of all."""
        self.settle()
        return self._hash.hexdigest()


def read_listed(fd: int, path: str, part: Part) -> bytes:
    """Read a file that was looked at before.

    Args:
        fd: of the file, at its beginning.
        path: what messages call it.
        part: what it was.

    Raises:
        ChangedError: it is something else now.
    """
    _, _, size, mtime_ns, inode = part
    body = os.read(fd, size + 1)  # one more, to notice that it has grown
    now = os.fstat(fd)
    if len(body) != size or now.st_mtime_ns != mtime_ns or now.st_ino != inode:
        body = _read_on(fd, body, size)
        _check(fd, path, len(body), part, SINCE_LISTED)
    return body


def read_still(fd: int, path: str, most: int) -> tuple[bytes, os.stat_result]:
    """Read a file that nobody has looked at, and see to it that nobody writes to it meanwhile.

    Args:
        fd: of the file.
        path: what messages call it.
        most: how many bytes may be held.

    Returns:
        Its contents, and what it is.

    Raises:
        ChangedError: it was written to, or is no regular file.
        Large: it has more bytes than may be held.
    """
    found = os.fstat(fd)
    part = _as_part(found, path)
    if part[2] > most:
        raise Large
    os.lseek(fd, 0, os.SEEK_SET)
    body = _read_on(fd, os.read(fd, part[2] + 1), part[2])
    _check(fd, path, len(body), part, WHILE_READ)
    return body, found


def look_now(path: str, follow: bool) -> Part:
    """Look at a file that was listed by name alone; raises SampleTrouble where it cannot be had."""
    try:
        return _as_part(os.stat(path, follow_symlinks=follow), path)
    except OSError as error:
        raise SampleTrouble(told(error, path)) from None
    except TarmillError as error:
        raise SampleTrouble(error) from None


def blocks_of(path: str, part: Part, follow: bool, when: str) -> Iterator[memoryview]:
    """Read a file in blocks, each of which holds until the next is asked for.

    Args:
        path: of the file.
        part: what it was when it was looked at.
        follow: whether symbolic links are followed.
        when: what messages say of a change: SINCE_LISTED or WHILE_READ.

    Raises:
        SampleTrouble: it cannot be had, or is not what it was.
    """
    buffer = own_memory(_BLOCK_BYTES)
    fd, done = -1, 0
    try:
        fd = os.open(path, FLAGS | (0 if follow else os.O_NOFOLLOW))
        with memoryview(buffer) as view:
            while count := os.readv(fd, [view]):
                done += count
                if done > part[2]:
                    break
                yield view[:count]
        _check(fd, path, done, part, when)
    except OSError as error:
        raise SampleTrouble(told(error, path)) from None
    except TarmillError as error:
        raise SampleTrouble(error) from None
    finally:
        if fd >= 0:
            os.close(fd)


def _as_part(found: os.stat_result, path: str) -> Part:
    if not stat.S_ISREG(found.st_mode):
        raise _no_file(path)
    return "", path, found.st_size, found.st_mtime_ns, found.st_ino


def _read_on(fd: int, body: bytes, size: int) -> bytes:
    """Read on where a file gave fewer bytes than were asked for, as network file systems do; to one byte too many."""
    pieces, have = [body], len(body)
    while body and have <= size and (body := os.read(fd, size + 1 - have)):
        pieces.append(body)
        have += len(body)
    return b"".join(pieces)


def _check(fd: int, path: str, have: int, part: Part, when: str) -> None:
    """Raise ChangedError unless just a whole file was read, and it is what it was."""
    now = os.fstat(fd)
    if have != part[2] or (now.st_size, now.st_mtime_ns, now.st_ino) != part[2:]:
        raise ChangedError(
            f"{path} was changed {when}: {part[2]} bytes then, {now.st_size} now; run it again when nothing writes to "
            "it",
            url=path,
        )


def _no_file(path: str) -> ChangedError:
    return ChangedError(f"{path} was a file when it was listed, and is none now; run it again", url=path)


def told(error: OSError, path: str) -> TarmillError:
    """Tell what the kernel says of a file; what is wrong with this process is raised."""
    try:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _no_file(path)
        raise_os_error(error, path, "reading")
    except StorageError as found:
        if error.errno in _OURS:
            raise
        return found
