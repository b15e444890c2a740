"""`-`: standard input as an input, standard output as an output.

A stream has no size, no version, no second reading, and what was written cannot be taken back: an aborted output is
known by the exit code only. When the reader of our output goes away (`| head`), `write` raises BrokenPipeError as it
is: the command line then ends quietly, as other filters do.
"""

from __future__ import annotations

import io
import os
import stat as stat_bits
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from tarmill.errors import StorageError
from tarmill.storage.base import Capabilities, ReadStream, Stat, Store, WriteStream
from tarmill.storage.file_facts import raise_os_error

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class StdinStream(ReadStream):
    """Standard input without Python's buffer; seekable only where it is a regular file at its start."""

    def __init__(self) -> None:
        self.stat = Stat("-", None, "", None)
        self._raw: io.RawIOBase | io.BufferedIOBase
        try:
            fd = sys.stdin.buffer.fileno()
        except (OSError, ValueError, AttributeError):
            self._raw = _replacement_of_stdin()
            self._seekable = False
            return
        self._raw = io.FileIO(fd, "rb", closefd=False)
        self._seekable = stat_bits.S_ISREG(os.fstat(fd).st_mode) and self._raw.tell() == 0

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill `buffer` with what is there; 0 at the end."""
        try:
            return self._raw.readinto(buffer) or 0
        except OSError as error:
            raise_os_error(error, "-", "reading")

    def seekable(self) -> bool:
        """Tell whether skipping needs no reading."""
        return self._seekable

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move as files do."""
        if not self._seekable:
            raise io.UnsupportedOperation("standard input cannot seek")
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        """Give the offset of the next byte."""
        if not self._seekable:
            raise io.UnsupportedOperation("standard input cannot seek")
        return self._raw.tell()


def _replacement_of_stdin() -> io.BufferedIOBase:
    """Accept a stdin that a program put in place of the real one, as long as it gives bytes."""
    buffer = getattr(sys.stdin, "buffer", None)
    if not isinstance(buffer, io.BufferedIOBase):
        raise StorageError("there is no standard input to read `-` from; name a file", url="-")
    return buffer


class StdoutStream(WriteStream):
    """Standard output; `commit` flushes, `abort` can only stop."""

    def __init__(self) -> None:
        super().__init__("-")
        buffer = getattr(sys.stdout, "buffer", None)
        if buffer is None:
            raise StorageError("there is no standard output to write `-` to; name a file", url="-")
        sys.stdout.flush()  # what was printed before comes first
        self._raw = getattr(buffer, "raw", buffer)

    def _write(self, data: memoryview) -> None:
        try:
            while data:
                data = data[self._raw.write(data) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise_os_error(error, "standard output", "writing")

    def _commit(self) -> Stat:
        self._raw.flush()
        return Stat("-", self.bytes_written, "", None)

    def _abort(self) -> None:
        pass


class StdioStore(Store):
    """The name `-`."""

    schemes = ("-",)
    capabilities = Capabilities(
        can_stat=False,
        can_list=False,
        can_delete=False,
        ranges=False,
        strong_versions=False,
        exclusive_create=False,
        shared="process",
    )

    def stat(self, url: str) -> NoReturn:
        """Refuse: a stream has no size."""
        raise StorageError(
            "`-` is a stream, it has no size and no version; name a file where these are needed", url="-"
        )

    def open_read(self, url: str, *, version: str | None = None) -> StdinStream:
        """Read standard input."""
        return StdinStream()

    def read_ranges(self, url: str, ranges: Sequence[tuple[int, int]], *, version: str | None = None) -> NoReturn:
        """Refuse: a stream has no ranges."""
        raise StorageError("`-` is a stream, ranges of it cannot be read; name a file", url="-")

    def open_write(
        self, url: str, *, owner: str = "", exclusive: bool = False, content_type: str | None = None
    ) -> StdoutStream:
        """Write standard output."""
        return StdoutStream()

    def list(self, prefix_url: str) -> Iterator[Stat]:
        """Refuse: there is nothing to list."""
        raise StorageError("`-` is a stream, there is nothing to list; name a folder", url="-")

    def delete(self, url: str) -> NoReturn:
        """Refuse."""
        raise StorageError("`-` is a stream, it cannot be deleted", url="-")
