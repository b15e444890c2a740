"""Many plain tar headers at once: parsed and checked as rows of a numpy array.

A window of blocks is searched for header blocks by their magic, the members' sizes must lead from each to the next
(contents that look like a header are stepped over), and every checksum is compared. What is not plain (see
`tar_scan`) raises `NotPlain`; nothing is guessed.

The headers of a shard are much alike, and comparing them is far cheaper than reading each: where the ends of all are
the same, only their beginnings are summed up; where all keys end in one column, the names are cut there; where all
samples have the same fields in the same order, only those of the first are looked at.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarmill.formats.tar_header import BLOCK, ZERO_BLOCK
from tarmill.values import valueclass

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Names = NDArray[np.bytes_]

_USTA = np.frombuffer(b"usta", "<u4")[0]
_OCTAL_11 = 8 ** np.arange(10, -1, -1, dtype=np.int64)
_CHECKSUM = 8 ** np.arange(5, -1, -1, dtype=np.int64) + 1
"""Weights that give a checksum and the sum of its digits, which the sum over the header holds too;"""
_CHECKSUM_BYTES = 6 * ord("0") + ord(" ") - 8 * ord(" ")
"""and for these they count as blanks."""
_COLUMNS = np.arange(100, dtype=np.uint8)
_HEAD_BYTES = 160
"""Name, numbers, checksum and type flag: what stands behind them is mostly the same in all headers."""
_FILES = b"0\0"
_PAX = ord("x")
_DOT, _SLASH, _UNDERSCORE = b"./_"
_MTIME = re.compile(rb"(\d\d) mtime=[0-9.]{1,40}\n")
MTIME_BYTES = 64
"""More than any such record has."""


class NotPlain(Exception):
    """The shard needs the complete reader; this says nothing about whether it is damaged."""


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
    sizes, odd = _octal(rows[:, 124:135], _OCTAL_11)
    after = found + 1 + ((sizes + BLOCK - 1) >> 9)
    if odd or (after[:-1] != found[1:]).any():
        true = _true_headers(blocks, found, after)
        found, sizes, after, rows = found[true], sizes[true], after[true], _rows(blocks, found[true], room)
        if odd and _octal(rows[:, 124:135], _OCTAL_11)[1]:
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
    _check(rows)
    return _samples(blocks, at, last, found, starts, rows, sizes, after)


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
    dot = int(_split(np.frombuffer(block, np.uint8).reshape(1, BLOCK))[0][0])
    return FirstHeader(block[: dot + 1], block[dot + 1 : 100].rstrip(b"\0"), size, offset + BLOCK)


def _size_of(block: bytes) -> int:
    """Check a single header, and give the size that it tells."""
    rows = np.frombuffer(block, np.uint8).reshape(1, BLOCK)
    _check(rows)
    sizes, odd = _octal(rows[:, 124:135], _OCTAL_11)
    if odd:
        raise NotPlain("a size that is not plain octal")
    return int(sizes[0])


def _no_samples(at_end_mark: bool = False) -> Headers:
    nothing = np.empty(0, np.int64)
    return Headers([], [], nothing, nothing, nothing, nothing, at_end_mark)


def _octal(digits: Bytes, weights: Ints) -> tuple[Ints, bool]:
    """Read rows of digits as octal numbers, and tell whether there is anything else among them."""
    values = digits - np.uint8(48)
    result: Ints = values.astype(np.int64) @ weights
    return result, bool((values > 7).any())


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


def _check(rows: Bytes) -> None:
    """Compare every checksum, and what else makes a header plain."""
    count = len(rows)
    ends = rows[:, _HEAD_BYTES:].view(np.uint64)
    if (ends == ends[0]).all():
        sums = np.add.reduce(rows[:, :_HEAD_BYTES], axis=1, dtype=np.uint16) + np.int64(_sum_of_end(ends[0].tobytes()))
    else:
        sums = rows.sum(axis=1, dtype=np.int64)
        for end in set(map(bytes, rows[:, _HEAD_BYTES:])):
            _sum_of_end(end)
    expected, odd = _octal(rows[:, 148:154], _CHECKSUM)
    if (
        odd
        or (sums != expected + _CHECKSUM_BYTES).any()
        or rows[:, 154:156].tobytes() != b"\0 " * count
        or rows[:, 135].tobytes() != bytes(count)
    ):
        raise NotPlain("a checksum or a field that is not plain")


@lru_cache(256)
def _sum_of_end(end: bytes) -> int:
    """Add up the bytes of a header from `_HEAD_BYTES` on, and see that they are those of a plain one."""
    if end[257 - _HEAD_BYTES : 262 - _HEAD_BYTES] != b"ustar" or end[345 - _HEAD_BYTES]:
        raise NotPlain("another magic, or a prefix")
    return sum(end)


def _without_pax(blocks: Bytes, found: Ints, sizes: Ints, rows: Bytes) -> tuple[Ints, Ints]:
    """Look at each pax header; indices of the members themselves, and the block where each begins."""
    is_pax = rows[:, 156] == _PAX
    if (is_pax[1:] & is_pax[:-1]).any():
        raise NotPlain("two pax headers in a row")
    _check(rows[is_pax])
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
    blocks: Bytes, at: int, last: bool, found: Ints, starts: Ints, rows: Bytes, sizes: Ints, after: Ints
) -> Headers:
    """Group members into samples, and leave out the last one unless it is known to be complete."""
    dots, stems, behind = _split(rows)
    fresh = np.ones(len(rows), bool)
    fresh[1:] = stems[1:] != stems[:-1]
    firsts = np.flatnonzero(fresh)
    members = len(rows)
    at_end_mark = _is_end_mark(blocks, int(after[-1]), last)
    if not at_end_mark:  # the last sample may go on behind the window
        members, firsts = int(firsts[-1]), firsts[:-1]
        if not members:
            return _no_samples()
    begins = at + (found[:members] + 1) * BLOCK
    return Headers(
        stems[firsts].tolist(),
        _tails(rows[:members], dots, firsts, behind),
        begins,
        begins + sizes[:members],
        firsts,
        at + np.append(starts[firsts], after[members - 1]) * BLOCK,
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


# -- names -----------------------------------------------------------------------------------------------------------


def _split(rows: Bytes) -> tuple[Ints, Names, bytes]:
    """Cut each name at the dot that ends its key: the first one of the last part of its path.

    Returns:
        The dot's column in each name; the keys with their dots; what stands behind the dots, joined, where all are in
        one column, else nothing.
    """
    first = rows[0, :100].tobytes()
    dot = first.find(b".", first.rfind(b"/") + 1)
    behind = rows[:, dot + 1 : 100].tobytes()
    if b"/" not in behind and _all_alike(rows, first.rfind(b"/") + 1, dot):
        return np.full(len(rows), dot), _joined(rows[:, : dot + 1]), behind
    names = rows[:, :100]
    if ((names[:, 0] == _UNDERSCORE) & (names[:, 1] == _UNDERSCORE)).any():
        raise NotPlain("a name that may be reserved")
    dots = (names == _DOT).argmax(axis=1)
    stems = names * (dots.astype(np.uint8)[:, None] >= _COLUMNS)
    if not _end_keys(dots, names, stems):  # some may stand in the name of a folder
        dots = _last_dots(names)
        stems = names * (dots.astype(np.uint8)[:, None] >= _COLUMNS)
    return dots, _joined(stems), b""


def _end_keys(dots: Ints, names: Bytes, stems: Bytes) -> bool:
    """Tell whether the first dot of each name is in the last part of its path, with a key before it."""
    each = np.arange(len(names))
    return bool(
        dots.all()
        and (names[each, dots] == _DOT).all()
        and (names[each, dots - 1] != _SLASH).all()
        and b"/" not in (names ^ stems).tobytes()
        and b"\0" not in (stems + (dots[:, None] < _COLUMNS)).tobytes()
    )


def _last_dots(names: Bytes) -> Ints:
    """Find the first dot of the last part of each path with care."""
    zeros = names == 0
    ends = np.where(zeros.any(axis=1), zeros.argmax(axis=1), 100)
    slashes = names == _SLASH
    behind = np.where(slashes.any(axis=1), 100 - slashes[:, ::-1].argmax(axis=1), 0)
    is_dot = (names == _DOT) & (behind[:, None] <= _COLUMNS)
    dots = np.where(is_dot.any(axis=1), is_dot.argmax(axis=1), 0)
    if (dots <= behind).any() or (dots >= ends).any():
        raise NotPlain("a name for the key function to decide")
    return dots


def _all_alike(rows: Bytes, slash: int, dot: int) -> bool:
    """Tell whether the last part of all paths begins in one column and has its first dot in another.

    Bytes are searched several times as fast as arrays of them. False is no verdict, only "look closer".
    """
    if dot <= slash:
        return False
    count, width = len(rows), dot + 1
    keys, last_parts = rows[:, :width].tobytes(), rows[:, slash:dot].tobytes()
    return (
        keys[dot::width] == b"." * count
        and (not slash or keys[slash - 1 :: width] == b"/" * count)
        and b"\0" not in keys
        and b"." not in last_parts
        and b"/" not in last_parts
        and not (b"_" in keys[::width] and b"_" in keys[1::width])
    )


def _joined(table: Bytes) -> Names:
    """View each row as one string; NULs at its end do not count."""
    return np.ascontiguousarray(table).view(f"S{table.shape[1]}").ravel()


def _tails(rows: Bytes, dots: Ints, firsts: Ints, behind: bytes) -> list[bytes]:
    """Cut out what stands behind the keys, once where all samples have the same (see `Headers`)."""
    members = len(rows)
    each, odd = divmod(members, len(firsts))
    if behind and not odd and (firsts == np.arange(0, members, each)).all():
        width = 99 - int(dots[0])
        pattern = behind[: width * each]
        if behind[: width * members] == pattern * len(firsts):
            return [pattern[at : at + width].rstrip(b"\0") for at in range(0, len(pattern), width)]
    places = (dots[:members] + 1).tolist()
    return [name[at:] for name, at in zip(_joined(rows[:, :100]).tolist(), places, strict=True)]
