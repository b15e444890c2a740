"""Samples of a bucket, read out of many run files a stretch of each at a time.

What a portion of the order takes out of one run lies there in one piece, so that one read gets what else would be a
read for each sample. From a disk it comes past the kernel's page cache: to be put there page by page, copied, and
forgotten again costs several times what the disk takes of the processor.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from operator import add
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tarmill.formats.range_hash import cut
from tarmill.jobs.copy_writer import Picks
from tarmill.jobs.span_sources import Read, SpanSources
from tarmill.planning.span_tasks import Source
from tarmill.storage.direct_write import ALIGNMENT, lies_on_a_disk, new_memory
from tarmill.values import replace

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_STRETCH_BYTES = {True: 1 << 20, False: 64 << 10}
"""Wanted of each run, from a disk or not: a read costs as much as what it reads from about here on."""
_LEAST_BYTES, _MOST_BYTES = 512 << 10, 32 << 20
"""Of all that is read for a portion."""
_READERS = 4
"""A disk serves several at a time; alone, each read waits for the one before it."""

_spare: list[mmap.mmap] = []
"""Memory for the next task of this process: to get it anew costs as much as to read into it."""


class RunStretches:
    """Reads the samples of one bucket.

    Args:
        runs: local run files.
        files: the same ones, from which samples are read that are too large to be held.
    """

    def __init__(self, runs: Sequence[Source], files: SpanSources) -> None:
        self._runs = runs
        self._files = files
        self._past_cache = SpanSources(runs, direct=True)
        on_disk = bool(runs) and lies_on_a_disk(runs[0].path)
        self._readers = _start_readers() if on_disk and len(runs) > 1 else None
        self._room_bytes = min(max(len(runs) * _STRETCH_BYTES[on_disk], _LEAST_BYTES), _MOST_BYTES)
        self._memory = _take_memory(self._room_bytes + 2 * ALIGNMENT * len(runs))
        self._held = _Held(runs, memoryview(self._memory))

    def portions(self, picks: Picks) -> Iterator[tuple[SpanSources, Picks]]:
        """Give samples in their order, a portion at a time, and where to read them; use one before the next.

        Args:
            picks: those of one run follow each other there.

        Raises:
            ChangedError: a run is no longer the version that was written.
        """
        cuts = _cuts(picks.lengths, self._room_bytes)
        stretches = _Stretches(picks, cuts, len(self._runs))
        for number, (begin, end) in enumerate(pairwise(cuts)):
            part = picks.part(begin, end)
            if end - begin == 1 and part.lengths[0] > self._room_bytes:
                yield self._files, part
                continue
            self._read(list(stretches.reads(number)))
            yield self._held, replace(part, starts=stretches.starts[begin:end])

    def release(self) -> None:
        """Close the runs, and give the memory to the next task."""
        if self._readers is not None:
            self._readers.shutdown()
        self._past_cache.release()
        self._held.memory.release()
        _spare.append(self._memory)

    def _read(self, stretches: list[_Stretch]) -> None:
        if self._readers is None or not self._past_cache.open([stretch.run for stretch in stretches]):
            self._read_some(stretches)
            return
        for _ in self._readers.map(self._read_some, [stretches[first::_READERS] for first in range(_READERS)]):
            pass  # an error of one is raised here

    def _read_some(self, stretches: list[_Stretch]) -> None:
        for run, start, size, at in stretches:
            room = self._held.memory[at : at - (-size // ALIGNMENT) * ALIGNMENT]
            self._past_cache.read_into(run, start, room, size)


def _cuts(lengths: NDArray[Any], room_bytes: int) -> list[int]:
    """Cut samples into portions that fit, of about one size; samples that do not are alone."""
    ends = np.cumsum(lengths, dtype=np.int64)
    size = int(ends[-1]) if len(ends) else 0
    share = min(room_bytes, size // max(1, -(-size // room_bytes)) + int(lengths.max(initial=0)))
    cuts = [0]
    while cuts[-1] < len(ends):
        before = int(ends[cuts[-1] - 1]) if cuts[-1] else 0
        cuts.append(max(cuts[-1] + 1, int(np.searchsorted(ends, before + share, "right"))))
    return cuts


class _Stretch(NamedTuple):
    run: int
    start: int
    """A whole page."""
    size_bytes: int
    at: int
    """In memory."""


class _Stretches:
    """What each portion takes of each run, and where that lies in memory: one behind the other, from whole pages on."""

    def __init__(self, picks: Picks, cuts: list[int], runs: int) -> None:
        portion = np.repeat(np.arange(len(cuts) - 1), np.diff(cuts))
        cell = portion * runs + picks.source
        shape = len(cuts) - 1, runs
        sizes = np.bincount(cell, picks.lengths, minlength=shape[0] * runs).astype(np.int64).reshape(shape)
        first = np.full(runs, np.iinfo(np.int64).max)
        np.minimum.at(first, picks.source, picks.starts)
        begins = first + np.cumsum(sizes, axis=0) - sizes
        self._pages = begins // ALIGNMENT * ALIGNMENT
        self._sizes = np.where(sizes, begins + sizes - self._pages, 0)
        rooms = -(-self._sizes // ALIGNMENT) * ALIGNMENT
        self._places = np.cumsum(rooms, axis=1) - rooms
        self.starts = picks.starts + (self._places - self._pages).ravel()[cell]
        """Of each sample in memory."""

    def reads(self, portion: int) -> Iterator[_Stretch]:
        """Give what is read for a portion."""
        runs = np.flatnonzero(self._sizes[portion])
        columns = (column[portion, runs].tolist() for column in (self._pages, self._sizes, self._places))
        return map(_Stretch, runs.tolist(), *columns)


class _Held(SpanSources):
    """Samples in memory."""

    def __init__(self, runs: Sequence[Source], memory: memoryview) -> None:
        super().__init__(runs)
        self.memory = memory

    def read(self, numbers: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> Read:
        """Give many samples."""
        pieces = list(cut(self.memory, starts, map(add, starts, lengths)))
        return Read(pieces, pieces)

    def read_one(self, number: int, start: int, length: int) -> bytes:
        """Give one."""
        return bytes(self.memory[start : start + length])


def _start_readers() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor  # whose import costs more than a small job

    return ThreadPoolExecutor(_READERS, "tarmill-runs")


def _take_memory(size_bytes: int) -> mmap.mmap:
    with suppress(IndexError):
        found = _spare.pop()  # several threads may take some
        if len(found) >= size_bytes:
            return found
        del found  # not both at once
    return new_memory(size_bytes)


def release_memory() -> None:
    """Give back what was kept for the next task."""
    _spare.clear()
