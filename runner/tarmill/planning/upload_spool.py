"""Packed pieces one behind the other; what is more than some megabytes waits in a file without a name."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from xxhash import xxh3_128

_SPILL_BYTES = 64 << 20
_READ_BYTES = 1 << 20


class Spool:
    """Pieces in order.

    Args:
        scratch_dir: where the file is; None for the system's place.
        spill_bytes: what may stay in memory.
    """

    def __init__(self, scratch_dir: str | None = None, spill_bytes: int = _SPILL_BYTES) -> None:
        self.ends = array("Q")
        """Where each piece ends."""
        self._scratch_dir = scratch_dir
        self._spill_bytes = spill_bytes
        self._file: IO[bytes] | None = None
        self._in_file = 0
        self._recent = bytearray()
        """What is not in the file; whoever adds to it notes `ends`, and calls `_added` soon."""
        self._hash = xxh3_128()

    @property
    def data_bytes(self) -> int:
        """How long all pieces are together."""
        return self._in_file + len(self._recent)

    @property
    def version(self) -> str:
        """Hash of all pieces."""
        return self._hash.hexdigest()

    def finish(self) -> None:
        """Hash what nobody has hashed: to be called before `version` is asked for."""
        self._hash.update(self._recent)
        self._spill_bytes = 1 << 62

    def close(self) -> None:
        """Let go of the file, where there is one."""
        if self._file is not None:
            self._file.close()

    def begin(self, index: int) -> int:
        """Tell where a piece begins."""
        return self.ends[index - 1] if index else 0

    def piece(self, index: int) -> bytes:
        """Read one piece."""
        return self._read(self.begin(index), self.ends[index])

    def blocks(self, order: Sequence[int] | None, begin: int, end: int) -> Iterator[bytes]:
        """Give the pieces at some places of an order (None: as they are), in blocks of about a megabyte."""
        if order is None:
            at, stop = self.begin(begin), self.begin(end)
            while at < stop:
                yield self._read(at, min(stop, at + _READ_BYTES))
                at = min(stop, at + _READ_BYTES)
            return
        waiting: list[bytes] = []
        size = 0
        for place in range(begin, end):
            waiting.append(self.piece(order[place]))
            size += len(waiting[-1])
            if size > _READ_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
        yield b"".join(waiting)

    def lengths(self, order: Sequence[int] | None, begin: int, end: int) -> array[int]:
        """Give the length of each piece at some places of an order."""
        indices: Iterable[int] = range(begin, end) if order is None else (order[place] for place in range(begin, end))
        return array("Q", [self.ends[index] - self.begin(index) for index in indices])

    def _added(self) -> None:
        """Let pieces wait in the file where they have become many."""
        if len(self._recent) <= self._spill_bytes:
            return
        if self._file is None:
            import tempfile

            self._file = tempfile.TemporaryFile(dir=self._scratch_dir, prefix="tarmill-listing-")  # noqa: SIM115
        self._hash.update(self._recent)
        self._file.write(self._recent)
        self._in_file += len(self._recent)
        self._recent.clear()

    def _read(self, begin: int, end: int) -> bytes:
        if begin >= self._in_file:
            return bytes(self._recent[begin - self._in_file : end - self._in_file])
        assert self._file is not None
        self._file.seek(begin)
        data = self._file.read(min(end, self._in_file) - begin)
        return data if end <= self._in_file else data + bytes(self._recent[: end - self._in_file])
