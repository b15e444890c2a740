"""The local files of samples as they are read: nothing but whole files that nobody wrote to meanwhile.

A file that was looked at when it was listed must still be what it was then. Of one that was listed by name alone it
counts what it is when it is read; what that was is kept in a hash, to know it again when the job is taken up later.
"""

from __future__ import annotations

import errno
import marshal
import os
import stat
from array import array
from collections.abc import Iterable, Iterator, Sequence

from xxhash import xxh3_128

from tarmill.errors import ChangedError, StorageError, TarmillError
from tarmill.heap import own_memory
from tarmill.planning.upload_listing import MARSHAL_VERSION, Packed, Part
from tarmill.storage.file_facts import raise_os_error

# A FIFO that has taken a file's place must not block; a terminal must not become ours.
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

CALM_NS = 60 * 10**9
"""A file that last changed so long before a job began has not changed since, though clocks may differ as much."""

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
        self._hash.update(marshal.dumps(self.numbers, MARSHAL_VERSION))
        self.numbers.clear()

    def hexdigest(self) -> str:
        """Give the hash of all."""
        self.settle()
        return self._hash.hexdigest()


class Fresh:
    """Samples with files that had changed lately when they were read: whoever wrote to them may not have been done."""

    def __init__(self) -> None:
        self._places = array("Q")
        self._states = array("q")

    def add(self, place: int, numbers: Sequence[int]) -> None:
        """Note a sample by its place in the shard, with the numbers that `Seen` keeps of it."""
        self._places.append(place)
        self._states.append(hash(tuple(numbers)))

    def among(self, entries: Iterable[Packed]) -> Iterator[tuple[int, Packed, int]]:
        """Find these samples among all of the shard: (place, entry, hash of the numbers)."""
        notes = zip(self._places, self._states, strict=True)
        wanted = next(notes, None)
        for place, entry in enumerate(entries):
            if wanted is None:
                return
            if place == wanted[0]:
                yield place, entry, wanted[1]
                wanted = next(notes, None)


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
        _check(fd, path, len(body), part)
    return body


def read_still(
    fd: int, body: bytes, found: os.stat_result, path: str, most: int, calm_ns: int
) -> tuple[bytes, os.stat_result]:
    """Read a file to its end that nobody has looked at, and see to it that nobody writes to it meanwhile.

    Args:
        fd: of the file.
        body: its beginning, which was read already.
        found: what it was after that.
        path: what messages call it.
        most: how many bytes may be held.
        calm_ns: what changed last before that does not change now.

    Returns:
        Its contents, and what it is.

    Raises:
        ChangedError: it was written to, or is no regular file.
        Large: it has more bytes than may be held.
    """
    part = _as_part(found, path)
    if found.st_ctime_ns > calm_ns or len(body) > part[2]:  # it may have changed between that read and the look
        os.lseek(fd, 0, os.SEEK_SET)
        found, body = os.fstat(fd), b""
        part = _as_part(found, path)
    if part[2] > most:
        raise Large
    body = _read_on(fd, body or os.read(fd, part[2] + 1), part[2])
    _check(fd, path, len(body), part, found.st_ctime_ns)
    return body, found


def look_now(path: str, follow: bool) -> tuple[Part, int]:
    """Look at a file that was listed by name: what it is, and when it changed last, in ns; raises SampleTrouble."""
    try:
        found = os.stat(path, follow_symlinks=follow)
        return _as_part(found, path), found.st_ctime_ns
    except (OSError, TarmillError) as error:
        raise SampleTrouble(told(error, path)) from None


def blocks_of(path: str, part: Part, follow: bool, changed_ns: int | None = None) -> Iterator[memoryview]:
    """Read a file in blocks, each of which holds until the next is asked for.

    Args:
        path: of the file.
        part: what it was when it was looked at.
        follow: whether symbolic links are followed.
        changed_ns: when it had changed last, where it was looked at just now and not when it was listed.

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
        _check(fd, path, done, part, changed_ns)
    except (OSError, TarmillError) as error:
        raise SampleTrouble(told(error, path)) from None
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


def _check(fd: int, path: str, have: int, part: Part, changed_ns: int | None = None) -> None:
    """Raise ChangedError unless just a whole file was read, and it is what it was.

    The time of writing can be set back, that of any change cannot: it counts where it is known.
    """
    now = os.fstat(fd)
    is_same = (now.st_size, now.st_mtime_ns, now.st_ino) == part[2:] and changed_ns in (None, now.st_ctime_ns)
    if have != part[2] or not is_same:
        when = "since it was listed" if changed_ns is None else "while it was read"
        raise ChangedError(
            f"{path} was changed {when}: {part[2]} bytes then, {now.st_size} now; run it again when nothing writes to "
            "it",
            url=path,
        )


def _no_file(path: str) -> ChangedError:
    return ChangedError(f"{path} was a file when it was listed, and is none now; run it again", url=path)


def told(error: OSError | TarmillError, path: str) -> TarmillError:
    """Tell in our words what is wrong with a file; what is wrong with this process is raised."""
    if isinstance(error, TarmillError):
        return error
    try:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _no_file(path)
        raise_os_error(error, path, "reading")
    except StorageError as found:
        if error.errno in _OURS:
            raise
        return found
