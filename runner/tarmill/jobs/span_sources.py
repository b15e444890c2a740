"""Local files from which samples are copied in any order: mapped once per process, or read, always in one version."""

from __future__ import annotations

import mmap
import os
import resource
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

from tarmill import storage
from tarmill.errors import ChangedError
from tarmill.jobs.scratch_files import ScratchFile
from tarmill.planning.span_tasks import Source
from tarmill.storage.file_facts import raise_os_error, stat_of

_USUAL_OPEN = 256
_RELAX_BYTES = 16 << 20
_since_relaxed = 0
_kept: OrderedDict[tuple[str, str], Any] = OrderedDict()
"""Maps of this process by path and version: to map a file again for every task costs more than to copy from it."""


class Unmapped:
    """Reads ranges as a map would give them: under Dask, where mapped pages count as memory and pause the worker."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size

    def __getitem__(self, where: slice) -> bytes:
        pieces = []
        start, stop = where.start, min(where.stop, self._size)
        while start < stop and (piece := os.pread(self._fd, stop - start, start)):
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class SpanSources:
    """The sources of one task: `map(i)[a:b]` are bytes of source i, and `view(i)[a:b]` the same without a copy."""

    def __init__(self, sources: Sequence[Source], *, mapped: bool, scratch: str = "", owner: str = "") -> None:
        """Take note of the sources.

        Args:
            sources: local files, or with `scratch` URLs that are fetched when they are used.
            mapped: map files into memory.
            scratch: folder for what is fetched, with '/' at its end.
            owner: job id.
        """
        self._sources = list(sources)
        self._mapped = mapped
        self._scratch = scratch
        self._owner = owner
        self._fetched: list[str] = []
        self._maps: dict[int, Any] = {}
        self._used: set[int] = set()

    def map(self, number: int) -> Any:
        """Open a source, or give the one that is open.

        Raises:
            ChangedError: it is no longer the version in which the samples were found.
        """
        found = self._maps.get(number)
        if found is None:
            source = self._local(number)
            found = self._open(source) if len(self._sources) <= _max_open() else OnDemand(source.path)
            self._maps[number] = found
            self._used.add(number)
        return found

    def view(self, number: int) -> Any:
        """Give a source for large pieces: views of a map, which cost no copy."""
        found = self.map(number)
        return memoryview(found) if isinstance(found, mmap.mmap) else found

    def label(self, number: int) -> str:
        """What errors call a source."""
        return self._sources[number].label

    def part(self, number: int) -> int:
        """Which part of the input pattern a source belongs to."""
        return self._sources[number].part

    def cut(self, number: int) -> ChangedError:
        """Build the error for a source that ends before a sample's end."""
        label = self._sources[number].label
        return ChangedError(
            f"{label} has become shorter since its samples were found; run the command again", url=label
        )

    def relax(self, copied_bytes: int) -> None:
        """Give back pages that were copied from, now and then: they stay cached, but count no more as ours."""
        global _since_relaxed
        _since_relaxed += copied_bytes
        if _since_relaxed > _RELAX_BYTES:
            _since_relaxed = 0
            for found in _kept.values():
                if isinstance(found, mmap.mmap):
                    found.madvise(mmap.MADV_DONTNEED)

    def verify(self) -> None:
        """Look whether all sources that were used since the last call are still what they were.

        Raises:
            ChangedError: one is not; what was copied must be thrown away.
        """
        for number in self._used:
            source = self._sources[number]
            if source.version:
                self._check(source, storage.stat(source.path).version)

    def release(self) -> None:
        """Remove what was fetched."""
        for path in self._fetched:
            storage.delete(path)
        self._fetched.clear()

    def _local(self, number: int) -> Source:
        """Fetch a source that is elsewhere."""
        source = self._sources[number]
        if not self._scratch or storage.scheme_of(source.path) == "file":
            return source
        copy = ScratchFile(self._scratch, f"fetched-{os.getpid()}-{secrets.token_hex(4)}.dat", self._owner)
        try:
            with storage.open_read(source.path, version=source.version) as stream:
                block = memoryview(bytearray(1 << 20))
                while count := stream.readinto(block):
                    copy.write(block[:count])
            copy.commit()
        finally:
            copy.abort()
        self._fetched.append(copy.path)
        here = replace(source, path=copy.path, version=storage.stat(copy.path).version)
        self._sources[number] = here
        return here

    def _open(self, source: Source) -> Any:
        place = source.path, source.version
        if place in _kept:
            _kept.move_to_end(place)
            return _kept[place]
        try:
            fd = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise_os_error(error, source.label, "opening again")
        try:
            found_now = os.fstat(fd)
            if source.version:
                self._check(source, stat_of(source.path, found_now).version)
            size = found_now.st_size
            found: Any = (
                mmap.mmap(fd, size, access=mmap.ACCESS_READ)
                if size and (self._mapped or not source.version)
                else Unmapped(os.dup(fd), size)
            )
        finally:
            os.close(fd)
        _kept[place] = found
        while len(_kept) > _max_open():
            _kept.popitem(last=False)  # closed when nothing uses it any more
        return found

    def _check(self, source: Source, version: str) -> None:
        if version != source.version:
            raise ChangedError(
                f"{source.label} has changed since its samples were found; the outputs that need it were not written. "
                "Run the command again when nothing writes to it",
                url=source.label,
            )


class OnDemand(Unmapped):
    """Opens its file for each range: where there are more files than a process may hold open."""

    def __init__(self, path: str) -> None:
        super().__init__(-1, os.stat(path).st_size)
        self._path = path

    def __getitem__(self, where: slice) -> bytes:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return super().__getitem__(where)
        finally:
            os.close(self._fd)


@cache
def _max_open() -> int:
    """Tell how many files a process may keep mapped, after asking for as many as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 16384 if hard == resource.RLIM_INFINITY else min(hard, 16384)
    if wanted > soft:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(_USUAL_OPEN, soft // 2)


def forget_sources() -> None:
    """Close what this process keeps open."""
    _kept.clear()
