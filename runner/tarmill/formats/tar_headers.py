"""Many plain tar headers at once: parsed and checked as rows of a numpy array.

A window of blocks is searched for header blocks by their magic, the members' sizes must lead from each to the next
(contents that look like a header are stepped over), and every checksum is compared. What is not plain (see
`tar_scan`) raises `NotPlain`; nothing is guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarmill.formats.tar_header import BLOCK, ZERO_BLOCK, parse_header

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

_USTA = np.frombuffer(b"usta", "<u4")[0]
_OCTAL_11 = 8 ** np.arange(10, -1, -1, dtype=np.int64)
_OCTAL_6 = 8 ** np.arange(5, -1, -1, dtype=np.int64)
_COLUMNS = np.arange(100, dtype=np.int16)
_EVEN_BYTES = np.uint64(0x00FF00FF00FF00FF)
_FILE, _OLD_FILE, _PAX = b"0\0x"
_MTIME = re.compile(rb"(\d{2,3}) mtime=[0-9.]{1,40}\n")


class NotPlain(Exception):
    """The shard needs the complete reader; this says nothing about whether it is damaged."""


@dataclass(slots=True)
class Headers:
    """The members of a run of blocks, as far as they belong to samples that are complete in it."""

    names: bytes
    """The name fields, 100 bytes each, joined."""
    rows: list[tuple[int, int, int, int, int, int]]
    """For each member: where its field begins and ends in `names`, where its contents begin and end in the buffer,
    where its sample ends in the buffer if it is the last of it (else 0), where its key begins in `names`."""
    samples: int
    at_end_mark: bool
    """Whether the samples are followed by a zero block."""


@dataclass(slots=True)
class FirstHeader:
    """One member, its contents not looked at."""

    stem: bytes
    """Key with the dot."""
    field: bytes
    size_bytes: int
    data_offset: int
    """From the first header block to the contents."""
    at_end_mark: bool = False


def parse_headers(buffer: Any, at: int, count: int, last: bool) -> Headers:
    """Parse the members in `count` blocks of a buffer.

    Args:
        buffer: a writable or read-only buffer.
        at: where the first header block begins.
        count: how many blocks there are, at least one.
        last: whether the stream ends behind them, so that everything must be complete.

    Raises:
        NotPlain: something is not plain, or is damaged.
    """
    blocks = np.ndarray((count, BLOCK), np.uint8, buffer, at)
    found = np.flatnonzero(np.ndarray((count,), "<u4", buffer, at + 257, (BLOCK,)) == _USTA)
    if not len(found) or found[0]:
        if not blocks[0].any():
            return Headers(b"", [], 0, True)
        raise NotPlain("no ustar header")
    rows = blocks[found]
    sizes = _octal(rows[:, 124:135], _OCTAL_11)
    after = found + 1 + ((sizes + BLOCK - 1) >> 9)
    if (after[:-1] != found[1:]).any():
        keep = _chain(found, after, count)
        found, rows, sizes, after = found[keep], rows[keep], sizes[keep], after[keep]
    _check(rows)
    starts = found
    flags = rows[:, 156]
    if (flags == _PAX).any():
        real, starts = _without_pax(buffer, at, found, sizes, flags, count)
        found, rows, sizes, after, flags = found[real], rows[real], sizes[real], after[real], flags[real]
    if ((flags != _FILE) & (flags != _OLD_FILE)).any():
        raise NotPlain("a member that is no plain file")
    return _samples(buffer, at, count, found, starts, rows, sizes, after, last)


def parse_first(buffer: Any, at: int, count: int) -> FirstHeader:
    """Parse the first member in `count` blocks (three are enough) and nothing of its contents.

    Raises:
        NotPlain: as `parse_headers`.
    """
    block = bytes(buffer[at : at + BLOCK])
    if block == ZERO_BLOCK:
        return FirstHeader(b"", b"", 0, 0, at_end_mark=True)
    offset = 0
    if block[156] == _PAX:
        rows = np.frombuffer(block, np.uint8).reshape(1, BLOCK)
        _check(rows)
        if count < 3 or not _is_trivial_pax(buffer, at, int(_octal(rows[:, 124:135], _OCTAL_11)[0])):
            raise NotPlain("a pax header")
        offset = 2 * BLOCK
        block = bytes(buffer[at + offset : at + offset + BLOCK])
    rows = np.frombuffer(block, np.uint8).reshape(1, BLOCK)
    _check(rows)
    if block[156] not in (_FILE, _OLD_FILE):
        raise NotPlain("a member that is no plain file")
    dots, ends = _split_names(rows[:, :100])
    dot, end = int(dots[0]), int(ends[0])
    return FirstHeader(block[: dot + 1], block[dot + 1 : end], parse_header(block).size_bytes, offset + BLOCK)


def _octal(digits: Bytes, weights: Ints) -> Ints:
    values = digits - np.uint8(48)
    if (values > 7).any():
        raise NotPlain("a number that is not plain octal")
    result: Ints = values.astype(np.int64) @ weights
    return result


def _chain(found: Ints, after: Ints, count: int) -> Ints:
    """Follow the members' sizes from the first header on; indices of the true headers."""
    place = np.full(count + 1, -1, np.int64)
    place[found] = np.arange(len(found))
    chain = [0]
    while (block := int(after[chain[-1]])) < count and (here := int(place[block])) >= 0:
        chain.append(here)
    return np.array(chain, np.int64)


def _check(rows: Bytes) -> None:
    """Compare every checksum, and what else makes a header plain."""
    words = np.ascontiguousarray(rows).view(np.uint64)
    lanes = ((words & _EVEN_BYTES) + ((words >> np.uint64(8)) & _EVEN_BYTES)).sum(axis=1)  # 64 * 510 fits 16 bits
    sums = sum((lanes >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48))
    field = rows[:, 148:156]
    expected = _octal(field[:, :6], _OCTAL_6) + field.sum(axis=1, dtype=np.int64) - 8 * 32
    if (
        (np.asarray(sums, np.int64) != expected).any()
        or field[:, 6].any()
        or (field[:, 7] != 32).any()
        or rows[:, 135].astype(bool).any()
        or rows[:, 345].any()
        or (rows[:, 261] != ord("r")).any()
    ):
        raise NotPlain("a checksum or a field that is not plain")


def _without_pax(buffer: Any, at: int, found: Ints, sizes: Ints, flags: Bytes, count: int) -> tuple[Ints, Ints]:
    """Look at each pax header; indices of the members themselves, and the block where each begins."""
    is_pax = flags == _PAX
    for index in np.flatnonzero(is_pax).tolist():
        if found[index] + 2 < count and not _is_trivial_pax(buffer, at + int(found[index]) * BLOCK, int(sizes[index])):
            raise NotPlain("a pax header with more than an mtime")
    if (is_pax[1:] & is_pax[:-1]).any():
        raise NotPlain("two pax headers in a row")
    real = np.flatnonzero(~is_pax)
    led = np.zeros(len(real), bool)
    led[real > 0] = is_pax[real[real > 0] - 1]
    return real, np.where(led, found[real - led], found[real])


def _is_trivial_pax(buffer: Any, at: int, size: int) -> bool:
    if size > BLOCK:
        return False
    record = bytes(buffer[at + BLOCK : at + BLOCK + size])
    match = _MTIME.fullmatch(record)
    return match is not None and int(match[1]) == size


def _split_names(names: Bytes) -> tuple[Ints, Ints]:
    """Find the dot that ends the key, and the end, of each name."""
    zeros = names == 0
    ends = np.where(zeros.any(axis=1), zeros.argmax(axis=1), 100)
    slashes = names == ord("/")
    behind = np.where(slashes.any(axis=1), 100 - slashes[:, ::-1].argmax(axis=1), 0)
    is_dot = (names == ord(".")) & (behind[:, None] <= _COLUMNS)
    dots = np.where(is_dot.any(axis=1), is_dot.argmax(axis=1), 0)
    if (dots <= behind).any() or (dots >= ends).any():
        raise NotPlain("a name for the key function to decide")
    if ((names[:, 0] == ord("_")) & (names[:, 1] == ord("_"))).any():
        raise NotPlain("a name that may be reserved")
    return dots, ends


def _samples(
    buffer: Any,
    at: int,
    count: int,
    found: Ints,
    starts: Ints,
    rows: Bytes,
    sizes: Ints,
    after: Ints,
    last: bool,
) -> Headers:
    """Group members into samples, and leave out the last one unless it is known to be complete."""
    if not len(found):
        return Headers(b"", [], 0, False)  # a pax header whose member is not here yet
    names = np.ascontiguousarray(rows[:, :100])
    dots, ends = _split_names(names)
    differs = names[1:] != names[:-1]
    agree = np.where(differs.any(axis=1), differs.argmax(axis=1), 100)
    fresh = np.ones(len(found), bool)
    fresh[1:] = (dots[1:] != dots[:-1]) | (agree <= dots[1:])
    end_block = int(after[-1])
    at_end = False
    if end_block < count:  # the next header is in the window too
        behind = bytes(buffer[at + end_block * BLOCK : at + (end_block + 1) * BLOCK])
        at_end = behind == ZERO_BLOCK
        if not at_end and behind[257:262] != b"ustar":
            raise NotPlain("no header where one should be")
    if not at_end:
        if last:
            raise NotPlain("the shard ends without an end mark")
        stop = int(np.flatnonzero(fresh)[-1])  # the last sample may go on behind the window
        if not stop:
            return Headers(b"", [], 0, False)
        found, starts, sizes, after, fresh = found[:stop], starts[:stop], sizes[:stop], after[:stop], fresh[:stop]
        dots, ends, names = dots[:stop], ends[:stop], names[:stop]
    base = np.arange(len(found), dtype=np.int64) * 100
    data = at + (found + 1) * BLOCK
    closes = np.zeros(len(found), np.int64)
    is_last = np.append(fresh[1:], True)
    closes[is_last] = at + after[is_last] * BLOCK
    columns = (base + dots + 1, base + ends, data, data + sizes, closes, base)
    return Headers(names.tobytes(), list(zip(*(c.tolist() for c in columns), strict=True)), int(is_last.sum()), at_end)
