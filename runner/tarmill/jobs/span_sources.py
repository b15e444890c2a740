"""Local files from which samples are copied in any order, always in one version: read at offsets, or mapped.

Small samples of mapped files are copied for half of what a read of each costs. Who touches a mapped file that became
shorter is ended by the kernel (SIGBUS), which is why the plan lets only worker processes do it: the task that is begun
again then finds that its input has changed. Mapped pages count as used memory, so that the plan says whether there is
room for them, too; under Dask, which pauses workers for it, nothing is mapped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from operator import add, getitem
from typing import Any, NamedTuple

from tarmill import storage
from tarmill.errors import ChangedError
from tarmill.formats.range_hash import cut
from tarmill.jobs.mapped_files import MappedFiles, max_open
from tarmill.jobs.scratch_files import ScratchFile
from tarmill.planning.span_tasks import Source
from tarmill.storage.base import Bytes
from tarmill.storage.direct_write import ALIGNMENT, lies_on_a_disk, set_direct
from tarmill.storage.file_facts import raise_os_error, stat_of
from tarmill.storage.urls import local_path
from tarmill.values import replace

STREAM_BYTES = 4 << 20
"""Samples above this are not held: they are read in pieces."""
Ranges = tuple[list[int], list[int], list[int]]
"""Of each its source, where it begins, and its length."""
_PIECE_BYTES = 1 << 20
_MAPPED_BYTES = 32 << 10
"""Samples above this, on average, gain nothing by being mapped: a read costs little against what it reads."""
_MOST_BYTES = 1 << 30
"""One call gives at most 2 GiB."""


class Read(NamedTuple):
    """Samples that were read."""

    samples: Sequence[Bytes]
    blocks: Sequence[Bytes]
    """The same bytes in one piece or as they are."""


class SpanSources:
    """The sources of one task, opened when they are used.

    Args:
        sources: local files, or with `scratch` URLs that are fetched when they are used.
        scratch: folder for what is fetched, with '/' at its end.
        owner: job id.
        maps: holds those that are mapped; None where nothing may be.
        direct: only `read_into` is used, at whole pages, and past the kernel's page cache from disks.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        scratch: str = "",
        owner: str = "",
        maps: MappedFiles | None = None,
        direct: bool = False,
    ) -> None:
        self._sources = list(sources)
        self._maps = maps
        self._direct = direct
        self._mapped: dict[int, memoryview] = {}
        self._scratch = scratch
        self._owner = owner
        self._fds: dict[int, int] = {}
        self._used: set[int] = set()
        self._fetched: list[str] = []
        self._max_open = max_open()
        if maps is not None and 2 * len(sources) > self._max_open:
            maps.release()  # what is mapped already holds descriptors, which are needed to read
            self._maps = None

    def label(self, number: int) -> str:
        """What errors call a source."""
        return self._sources[number].label

    def part(self, number: int) -> int:
        """Which part of the input pattern a source belongs to."""
        return self._sources[number].part

    def read(self, numbers: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> Read:
        """Read many ranges, none larger than `STREAM_BYTES`, without a step of Python's own for each.

        Raises:
            ChangedError: a source is no longer the version in which the samples were found.
        """
        mapped = self._pieces(numbers, starts, lengths)
        if mapped:
            block = memoryview(b"".join(mapped))
            ends = list(accumulate(lengths))
            # the copy is what is looked at: nobody else can change it
            return Read(list(cut(block, [0, *ends], ends)), [block])
        pieces = self._read(numbers, starts, lengths)
        return Read(pieces, pieces)

    def pieces(self, numbers: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> Sequence[Bytes]:
        """Give many ranges, as `read`, to be written once: pieces of mapped files change with their files."""
        return self._pieces(numbers, starts, lengths) or self._read(numbers, starts, lengths)

    def _pieces(self, numbers: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        """Give ranges of mapped files; none where they have to be read."""
        if self._maps is None:
            return []
        size = sum(lengths)
        if size > _MAPPED_BYTES * len(lengths) or not self._map(numbers):
            return []
        mapped: Iterator[Any] = map(self._mapped.__getitem__, numbers)
        pieces: list[memoryview] = list(map(getitem, mapped, map(slice, starts, map(add, starts, lengths))))
        return pieces if sum(map(len, pieces)) == size else []  # to read them tells what is wrong

    def _read(self, numbers: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        wanted = set(numbers)
        if len(wanted) > self._max_open // 2:  # to open one might close another
            return [self.read_one(*where) for where in zip(numbers, starts, lengths, strict=True)]
        opened = {number: self._fd(number) for number in wanted}
        pieces = list(map(os.pread, map(opened.__getitem__, numbers), lengths, starts))
        if list(map(len, pieces)) != list(lengths):  # a signal may cut a read short, the end of a file does
            return [self.read_one(*where) for where in zip(numbers, starts, lengths, strict=True)]
        return pieces

    def _map(self, numbers: Sequence[int]) -> bool:
        """Map sources, unless they are; False where that cannot be."""
        assert self._maps is not None
        for number in set(numbers).difference(self._mapped):
            mapped = self._maps.map(self._sources[number], self._fd(number))
            if mapped is None:
                self._maps = None
                return False
            self._mapped[number] = mapped
        return True

    def read_one(self, number: int, start: int, length: int) -> bytes:
        """Read one range, of any size."""
        pieces = []
        while length:
            piece = os.pread(self._fd(number), min(length, _MOST_BYTES), start)
            if not piece:
                raise _shorter(self._sources[number].label)
            pieces.append(piece)
            start, length = start + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def open(self, numbers: Sequence[int]) -> bool:
        """Open sources for several threads to read; False where they are too many to be open at once."""
        if len(numbers) > self._max_open // 2:
            return False
        for number in numbers:
            self._fd(number)
        return True

    def read_into(self, number: int, start: int, room: memoryview, least: int) -> None:
        """Read a range of at least so many bytes into memory.

        Raises:
            ChangedError: the source ends before.
        """
        have = os.preadv(self._fd(number), [room], start)
        while have < least:
            # what ends within a page ends there, and nothing can be read past the cache from there on
            more = 0 if have % ALIGNMENT else os.preadv(self._fd(number), [room[have:]], start + have)
            if not more:
                raise _shorter(self._sources[number].label)
            have += more

    def stream(self, number: int, start: int, length: int) -> Iterator[bytes]:
        """Read one range in pieces."""
        for at in range(start, start + length, _PIECE_BYTES):
            yield self.read_one(number, at, min(_PIECE_BYTES, start + length - at))

    def announce(self, number: int, start: int, length: int) -> None:
        """Have the kernel read a part of a source in one go, and nothing behind it, since it is used in any order."""
        with suppress(OSError):
            os.posix_fadvise(self._fd(number), 0, 0, os.POSIX_FADV_RANDOM)
            os.posix_fadvise(self._fd(number), start, length, os.POSIX_FADV_WILLNEED)

    def unmap(self) -> None:
        """Unmap all that `maps` holds, for others too."""
        self._mapped.clear()
        if self._maps is not None:
            self._maps.release()

    def forget(self, number: int, start: int, length: int) -> None:
        """Tell the kernel that a part of a source is not wanted again: a container's limit counts cached pages too."""
        with suppress(OSError):
            os.posix_fadvise(self._fd(number), start, length, os.POSIX_FADV_DONTNEED)

    def verify(self) -> None:
        """Look whether all sources that were used are still what they were.

        Raises:
            ChangedError: one is not; what was copied must be thrown away.
        """
        for number in self._used:
            source = self._sources[number]
            if source.version:
                self._check(source, storage.stat(source.path).version)

    def release(self) -> None:
        """Close all, and remove what was fetched."""
        self._mapped.clear()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        for path in self._fetched:
            storage.delete(path)
        self._fetched.clear()

    def _fd(self, number: int) -> int:
        found = self._fds.get(number)
        if found is None:
            self._make_room()
            found = self._fds[number] = self._open(self._local(number))
            self._used.add(number)
        return found

    def _make_room(self) -> None:
        """Close the files that were opened first, when as many are open as a process should have."""
        if len(self._fds) >= self._max_open:
            for number in list(self._fds)[: len(self._fds) // 2]:
                os.close(self._fds.pop(number))

    def _local(self, number: int) -> Source:
        """Fetch a source that is elsewhere."""
        source = self._sources[number]
        if not self._scratch or storage.scheme_of(source.path) == "file":
            return source
        copy = ScratchFile(self._scratch, f"fetched-{os.getpid()}-{os.urandom(4).hex()}.dat", self._owner)
        try:
            with storage.open_read(source.path, version=source.version) as stream:
                block = memoryview(bytearray(_PIECE_BYTES))
                while count := stream.readinto(block):
                    copy.write(block[:count])
            copy.commit()
        finally:
            copy.abort()
        self._fetched.append(copy.path)
        here = replace(source, path=copy.path, version=storage.stat(copy.path).version)
        self._sources[number] = here
        return here

    def _open(self, source: Source) -> int:
        try:
            fd = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise_os_error(error, source.label, "opening again")
        try:
            if source.version:
                self._check(source, stat_of(source.path, os.fstat(fd)).version)
        except ChangedError:
            os.close(fd)
            raise
        if self._direct and lies_on_a_disk(fd):
            set_direct(fd, True)
        return fd

    def _check(self, source: Source, version: str) -> None:
        if version != source.version:
            raise ChangedError(
                f"{source.label} has changed since its samples were found; the outputs that need it were not written. "
                "Run the command again when nothing writes to it",
                url=source.label,
            )


def _shorter(label: str) -> ChangedError:
    return ChangedError(f"{label} has become shorter since its samples were found; run the command again", url=label)


def forget_file(url: str) -> None:
    """Tell the kernel that a file which was written and synced is not wanted soon; nothing for other URLs."""
    if storage.scheme_of(url) == "file":
        with suppress(OSError):
            fd = os.open(local_path(url), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
