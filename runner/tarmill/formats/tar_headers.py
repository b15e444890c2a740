"""Many plain tar headers at once: parsed and checked as rows of a numpy array.

A window of blocks is searched for header blocks by their magic, the members' sizes must lead from each to the next
(contents that look like a header are stepped over), and every checksum is compared. What is not plain (see
`tar_scan`) raises `NotPlain`; nothing is guessed.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tarmill.formats.tar_header import BLOCK, ZERO_BLOCK
from tarmill.formats.tar_names import NAME_BYTES, cut_names, tails_of
from tarmill.formats.tar_rows import Bytes, Ints, NotPlain, check, sizes_of, varied
from tarmill.values import valueclass

_USTA = np.frombuffer(b"usta", "<u4")[0]
_FILES = b"0\0"
_PAX = ord("x")
_MTIME = re.compile(rb"(\d\d) mtime=[0-9.]{1,40}\n")
MTIME_BYTES = 64
"""More than any such record has."""


@valueclass(frozen=False)
class Headers:
    """The samples that are complete in a run of blocks; each begins where the one before it ends."""

    stems: list[bytes]
    """Of each sample its key with the dot."""
    tails: list[bytes]
    """Of each member what its name field holds behind that dot, without the last NULs. Where all samples have the same
    tails in the same order: only those of the first sample."""
    begins: Ints
    """Of each member where its contents begin in the buffer,"""
    ends: Ints
    """and where they end."""
    firsts: Ints
    """Of each sample the number of its first member."""
    edges: Ints
    """Of each sample where it begins in the buffer, and then where the last one ends."""
    at_end_mark: bool
    """Whether the samples are followed by a zero block."""

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self.stems)

    @property
    def rows(self) -> list[tuple[int, int, int, int, int]]:
        """For each sample a row whose fifth column is where it ends, for a caller that asks for no more."""
        return [(0, 0, 0, 0, end) for end in self.edges[1:].tolist()]


@valueclass(frozen=False)
class FirstHeader:
    """One member, its contents not looked at."""

    stem: bytes
    """Key with the dot."""
    tail: bytes
    """As in `Headers`."""
    size_bytes: int
    data_offset: int
    """From the first header block to the contents."""
    at_end_mark: bool = False


def parse_headers(buffer: Any, at: int, count: int, last: bool, room: Bytes | None = None) -> Headers:
    """Parse the members in `count` blocks of a buffer.

    Args:
        buffer: a writable or read-only buffer.
        at: where the first header block begins.
        count: how many blocks there are, at least one.
        last: whether the stream ends behind them, so that everything must be complete.
        room: at least `count` rows of a block to copy headers to; for callers with many buffers, since fresh memory
            costs more than the copies.

    Raises:
        NotPlain: something is not plain, or is damaged.
    """
    blocks = np.ndarray((count, BLOCK), np.uint8, buffer, at)
    found = np.flatnonzero(np.ndarray((count,), "<u4", buffer, at + 257, (BLOCK,)) == _USTA)
    if not len(found) or found[0]:
        if not blocks[0].any():
            return _no_samples(at_end_mark=True)
        raise NotPlain("no ustar header")
    if room is None:
        room = np.empty((len(found), BLOCK), np.uint8)
    rows = _rows(blocks, found, room)
    sizes, odd = sizes_of(rows)
    after = found + 1 + ((sizes + BLOCK - 1) >> 9)
    if odd or (after[:-1] != found[1:]).any():
        true = _true_headers(blocks, found, after)
        found, sizes, after, rows = found[true], sizes[true], after[true], _rows(blocks, found[true], room)
        if odd and sizes_of(rows)[1]:
            raise NotPlain("a size that is not plain octal")
    starts, flags = found, rows[:, 156].tobytes()
    if _PAX in flags:
        real, starts = _without_pax(blocks, found, sizes, rows)
        found, sizes, after, rows = found[real], sizes[real], after[real], _rows(blocks, found[real], room)
        if not len(found):
            return _no_samples()  # the pax header's member is not here yet
        flags = rows[:, 156].tobytes()
    if flags.translate(None, _FILES):
        raise NotPlain("a member that is no plain file")
    unlike = varied(rows)
    check(rows, unlike)
    return _samples(blocks, at, last, found, starts, rows, unlike, sizes, after)


def parse_first(buffer: Any, at: int, count: int) -> FirstHeader:
    """Parse the first member in `count` blocks (three are enough) and nothing of its contents.

    Raises:
        NotPlain: as `parse_headers`.
    """
    block = bytes(buffer[at : at + BLOCK])
    if block == ZERO_BLOCK:
        return FirstHeader(b"", b"", 0, 0, at_end_mark=True)
    offset, size = 0, _size_of(block)
    if block[156] == _PAX:
        if count < 3 or not is_mtime_only(bytes(buffer[at + BLOCK : at + BLOCK + MTIME_BYTES]), size):
            raise NotPlain("a pax header with more than an mtime, or nothing behind it")
        offset = 2 * BLOCK
        block = bytes(buffer[at + offset : at + offset + BLOCK])
        size = _size_of(block)
    if block[156] not in _FILES:
        raise NotPlain("a member that is no plain file")
    rows = np.frombuffer(block, np.uint8).reshape(1, BLOCK)
    (end,) = cut_names(rows, varied(rows)).places(1)
    return FirstHeader(block[:end], block[end:NAME_BYTES].rstrip(b"\0"), size, offset + BLOCK)


def _size_of(block: bytes) -> int:
    """Check a single header, and give the size that it tells."""
    rows = np.frombuffer(block, np.uint8).reshape(1, BLOCK)
    check(rows, varied(rows))
    sizes, odd = sizes_of(rows)
    if odd:
        raise NotPlain("a size that is not plain octal")
    return int(sizes[0])


def _no_samples(at_end_mark: bool = False) -> Headers:
    nothing = np.empty(0, np.int64)
    return Headers([], [], nothing, nothing, nothing, nothing, at_end_mark)


def _rows(blocks: Bytes, chosen: Ints, room: Bytes) -> Bytes:
    return blocks.take(chosen, axis=0, out=room[: len(chosen)], mode="clip")  # mode "raise" would copy twice


def _true_headers(blocks: Bytes, found: Ints, after: Ints) -> Ints:
    """Follow the members' sizes from the first header on; indices of the headers that are met, not in contents."""
    count = len(blocks)
    place = np.full(count + 1, -1, np.int64)
    place[found] = np.arange(len(found))
    chain = [0]
    while (block := int(after[chain[-1]])) < count and (here := int(place[block])) >= 0:
        chain.append(here)
    return np.array(chain, np.int64)


def _without_pax(blocks: Bytes, found: Ints, sizes: Ints, rows: Bytes) -> tuple[Ints, Ints]:
    """Look at each pax header; indices of the members themselves, and the block where each begins."""
    is_pax = rows[:, 156] == _PAX
    if (is_pax[1:] & is_pax[:-1]).any():
        raise NotPlain("two pax headers in a row")
    heads = rows[is_pax]
    check(heads, varied(heads))
    here = np.flatnonzero(is_pax & (found + 2 < len(blocks)))  # others are looked at again when their member is here
    bodies = blocks[found[here] + 1, :MTIME_BYTES].view(f"S{MTIME_BYTES}").ravel()
    if not all(map(is_mtime_only, bodies.tolist(), sizes[here].tolist())):
        raise NotPlain("a pax header with more than an mtime")
    real = np.flatnonzero(~is_pax)
    led = np.zeros(len(real), bool)
    led[real > 0] = is_pax[real[real > 0] - 1]
    return real, np.where(led, found[real - led], found[real])


def is_mtime_only(body: bytes, size: int) -> bool:
    """Tell whether a pax header holds one record, the mtime; of its contents the first bytes are enough."""
    match = _MTIME.fullmatch(body.rstrip(b"\0"))
    return match is not None and int(match[1]) == match.end() == size


def _samples(
    blocks: Bytes,
    at: int,
    last: bool,
    found: Ints,
    starts: Ints,
    rows: Bytes,
    unlike: list[int],
    sizes: Ints,
    after: Ints,
) -> Headers:
    """Group members into samples, and leave out the last one unless it is known to be complete."""
    names = cut_names(rows, unlike)
    firsts = np.flatnonzero(names.fresh)
    members = len(rows)
    at_end_mark = _is_end_mark(blocks, int(after[-1]), last)
    if not at_end_mark:  # the last sample may go on behind the window
        members, firsts = int(firsts[-1]), firsts[:-1]
        if not members:
            return _no_samples()
    begins = at + (found[:members] + 1) * BLOCK
    edges = np.empty(len(firsts) + 1, np.int64)
    edges[:-1], edges[-1] = starts[firsts], after[members - 1]
    return Headers(
        names.stems[firsts].tolist(),
        tails_of(rows[:members], names, firsts),
        begins,
        begins + sizes[:members],
        firsts,
        at + edges * BLOCK,
        at_end_mark,
    )


def _is_end_mark(blocks: Bytes, block: int, last: bool) -> bool:
    """Tell whether the block behind the last member is a zero block; if it is in the window, it or a header must be."""
    if block < len(blocks):
        behind = blocks[block].tobytes()
        if behind == ZERO_BLOCK:
            return True
        if behind[257:262] != b"ustar":
            raise NotPlain("no header where one should be")
    if last:
        raise NotPlain("the shard ends without an end mark")
    return False
