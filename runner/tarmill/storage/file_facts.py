"""What the kernel says of files and failures, in the words of stores."""

from __future__ import annotations

import errno
import os
import stat as stat_bits
from typing import NoReturn

from tarmill.errors import AccessError, NoSpaceError, NotFoundError, StorageError
from tarmill.storage.base import Stat

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


def must_be_regular(mode: int, url: str, cure: str) -> None:
    """Refuse what is no regular file by its kind, with what to do instead. Raises StorageError."""
    if not stat_bits.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
        raise StorageError(f"{url} is {kind}; expected a regular file: {cure}", url=url)


def stat_of(url: str, found: os.stat_result) -> Stat:
    """Make a Stat of what the kernel says (pure)."""
    return Stat(url, found.st_size, version_of(found), found.st_mtime_ns / 1e9)


def version_of(found: os.stat_result) -> str:
    """Make the version of a file of what the kernel says (pure)."""
    # no device number: one file of a shared file system must have one version on all hosts
    return f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"
