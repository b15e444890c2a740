"""A page-aligned window that slides over a raw input: where all bytes of a tar reader come from.

Fresh memory costs several times the copy itself, and a buffer 16 bytes past a page start costs five times: so one
anonymous mmap, refilled in place, serves the whole shard. The hot loops of `tar_read` and `tar_values` work on
`buffer`, `pos` and `have` directly; everything else uses the methods.

An input that can read at an offset is read so from the start, and its own position stays where it was: a jump is then
an addition, and large contents go straight into the object that the user gets.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Protocol

from tarmill.heap import keep_freed_memory, own_memory

WINDOW_BYTES = 1 << 20
_SHORT_FILL = 4 << 10
_LEAP_FILL = 2 << 10
"""What is read behind a leap: the header there, a small field and the next header are mostly in it."""
_FIRST_FILL = 64 << 10
_LARGE_FILL = 256 << 10
"""What is read at a time, where no member needs more: it stays in the processor's cache until it is used."""
_DIRECT_BYTES = 16 << 10
"""Contents from this size on are read into an object of their own, where the input can read at an offset: that spares
a copy, at the price of reading the next header by itself."""
_MAX_IDLE = 4
_idle: dict[int, list[mmap.mmap]] = {}
"""Buffers that no reader uses now, by size: page faults of a fresh one cost as much as to read it full four times."""


class RawInput(Protocol):
    """What a reader needs of an input: `io.RawIOBase.readinto`."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the start of `buffer`; the number of bytes, 0 at the end."""


class PositionalReads(Protocol):
    """What an input may offer as `positional` (see `storage.base`)."""

    size_bytes: int

    def readinto_at(self, buffer: memoryview, offset: int, /) -> int:
        """Fill the start of `buffer` from an offset; 0 at the end."""

    def read_at(self, size: int, offset: int, /) -> bytes:
        """Give bytes from an offset; fewer at the end."""


class Window:
    """`buffer[pos:have]` are the unread bytes of the stream; `base` is the stream's offset of `buffer[0]`."""

    def __init__(self, raw: RawInput, *, sparse_reading: bool = False, size_bytes: int | None = None) -> None:
        self.raw = raw
        self.size = size_bytes or WINDOW_BYTES
        self._idle = _idle.setdefault(self.size, [])
        try:
            self.buffer = self._idle.pop()
        except IndexError:
            keep_freed_memory()
            self.buffer = own_memory(self.size)
        self.view = memoryview(self.buffer)
        self._leap_view = self.view[:_LEAP_FILL]
        self.pos = 0
        self.have = 0
        self.base = 0
        self.at_end = False
        self._closed = False
        seekable = getattr(raw, "seekable", None)
        self._seek = getattr(raw, "seek", None) if seekable is not None and seekable() else None
        self._fill = _SHORT_FILL if sparse_reading and self._seek is not None else _LARGE_FILL
        self._ends: int | None = None
        self._at: PositionalReads | None = getattr(raw, "positional", None)
        self._origin = 0
        """Where in the input the stream begins, for reads at an offset."""
        if self._at is not None:
            self._origin = raw.tell()  # type: ignore[attr-defined]  # it can seek
            self._ends = self._at.size_bytes - self._origin
            self._fill = min(self._fill, _FIRST_FILL)

    def close(self) -> None:
        """Give the buffer back for other readers; the window must not be used after it."""
        if self._closed:
            return
        self._closed = True
        self._leap_view.release()
        self.view.release()
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(self.buffer)

    @property
    def offset(self) -> int:
        """Offset in the (decompressed) stream of the next unread byte."""
        return self.base + self.pos

    def ensure(self, want: int) -> bool:
        """Have at least `want` unread bytes in the window (at most its size); False when the stream ends before."""
        if self.have - self.pos >= want:
            return True
        rest = self.have - self.pos
        view = self.view
        if rest:
            view[:rest] = view[self.pos : self.have]
        self.base += self.pos
        self.pos, self.have = 0, rest
        goal = min(self.size, max(want, self._fill))
        self._fill = min(_LARGE_FILL, self._fill * 4)
        while self.have < goal and not self.at_end:
            piece = view[self.have : goal]
            if self._at is not None:
                count: int | None = self._at.readinto_at(piece, self._origin + self.base + self.have)
            else:
                count = self.raw.readinto(piece)
            if not count:
                self.at_end = True
            else:
                self.have += count
        return self.have >= want

    def peek(self, count: int) -> bytes:
        """Copy the next `count` bytes without consuming them; fewer at the end of the stream."""
        self.ensure(count)
        return self.buffer[self.pos : min(self.pos + count, self.have)]

    def take(self, count: int) -> bytes:
        """Consume `count` bytes and hand them over as one object; fewer at the end of the stream.

        Larger pieces than the window are read straight into pieces of at most 16 MiB, so that a size field that lies
        costs no more memory than there are bytes.
        """
        if count <= self.size // 2:
            data = self.peek(count)
            self.pos += len(data)
            return data
        pieces = [self.buffer[self.pos : min(self.pos + count, self.have)]]
        got = len(pieces[0])
        self.pos += got
        while got < count and self.ensure(1):
            piece = self.buffer[self.pos : min(self.pos + count - got, self.have)]
            pieces.append(piece)
            self.pos += len(piece)
            got += len(piece)
        return b"".join(pieces)

    def skip(self, count: int) -> int:
        """Pass over `count` bytes, by a seek where the input can; the bytes passed, fewer where the stream ended."""
        inside = min(count, self.have - self.pos)
        self.pos += inside
        left = count - inside
        if not left:
            return count
        if self._seek is not None and left > _SHORT_FILL:
            step = min(left, self._bytes_ahead(self._seek))
            self._move(self.have + step, step, self._seek)
            return count - left + step
        while left and self.ensure(1):
            step = min(left, self.have - self.pos)
            self.pos += step
            left -= step
        return count - left

    def jump(self, to: int) -> bool:
        """Go on at position `to` of the window, far beyond what is in it; False where `skip` has to do it.

        The way of the hot loops over contents that nobody wants: as `skip`, without its other cases. Where the input
        reads at an offset, the next header is in the window afterwards.
        """
        left = to - self.have
        if self._at is not None:
            if left <= _SHORT_FILL or self.base + to + _LEAP_FILL > self._ends:  # type: ignore[operator]  # known from the start
                return False
            self.base += to
            self.pos = 0
            self.have = self._at.readinto_at(self._leap_view, self._origin + self.base)
            self._fill = _SHORT_FILL
            return True
        if self._seek is None or left <= _SHORT_FILL or left > self._bytes_ahead(self._seek):
            return False
        self._move(to, left, self._seek)
        return True

    def direct(self, start: int, size: int, to: int) -> bytes | None:
        """Read contents that lie at position `start` into an object of their own, and go on at position `to`.

        None, and nothing has changed, where the input cannot do that, the contents are too small to be worth it, or
        the stream ends before `to`.
        """
        if self._at is None or size < _DIRECT_BYTES or self.base + to > self._ends:  # type: ignore[operator]
            return None
        data = self._at.read_at(size, self._origin + self.base + start)
        if len(data) < size:
            return None
        self.base += to
        self.pos = self.have = 0
        self._fill = _SHORT_FILL
        return data

    def _move(self, to: int, step: int, seek: Callable[[int, int], int]) -> None:
        """Go on at position `to`, which lies `step` bytes behind what was read."""
        if self._at is None:
            seek(step, 1)
        self.base += to
        self.pos = self.have = 0
        self._fill = _SHORT_FILL  # long skips come in rows: the next read needs little more than a header

    def _bytes_ahead(self, seek: Callable[[int, int], int]) -> int:
        """Count the bytes of a seekable input behind what was read; its end is looked up once."""
        if self._ends is None:
            here = seek(0, 1)
            self._ends = self.base + self.have + seek(0, 2) - here
            seek(here, 0)
        return max(0, self._ends - self.base - self.have)
