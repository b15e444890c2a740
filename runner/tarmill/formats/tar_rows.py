"""Header blocks as rows of a table: their numbers and their checksums, many at a time.

The headers of a shard are much alike, and comparing them is far cheaper than reading each: only the words of 8 bytes
that are not the same in all rows are looked at in each of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tarmill.formats.tar_header import BLOCK

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

WORD_BYTES = 8
_WORDS = BLOCK // WORD_BYTES
_ALIKE_ROWS = 64
"""Rows to compare at once."""
_LANES = np.uint64(0x00FF00FF00FF00FF)
"""Every other byte of a word, with room for the sum of 257;"""
_ADD_LANES = np.uint64(0x0001000100010001)
"""a product with this has the sum of the four in its highest 16 bits, if that is no larger."""
_MAX_SUMMED = 32
"""Words whose bytes add up to no more."""
_ADD_BYTES = np.uint64(0x0101010101010101)
_CHECKSUM_BYTES = 6 * ord("0") + ord(" ") - 8 * ord(" ")
"""What a checksum's own bytes add besides its digits, where they count as blanks."""
_FIXED = (261, ord("r")), (345, 0)
"""Columns of the magic's end, and of the prefix's beginning."""


class NotPlain(Exception):
    """The shard needs the complete reader; this says nothing about whether it is damaged."""


class _Form:
    """How 8 bytes of a header hold an octal number."""

    def __init__(self, pattern: bytes) -> None:
        """Take '0' for each digit, and what stands behind them."""
        digits = pattern.count(b"0")
        self.zeros = np.uint64(int.from_bytes(pattern, "little"))
        self.bits = 7 * (_ADD_BYTES.item() & ((1 << 8 * digits) - 1))
        """That may be set when `zeros` are taken off."""
        self.shift = np.uint64(32 + 3 * (WORD_BYTES - digits))


_LOW_SIZE, _HIGH_SIZE, _CHECKSUM = _Form(b"0000000\0"), _Form(b"00000000"), _Form(b"000000\0 ")
_FOUR_ZEROS = int.from_bytes(b"0000", "little")
# Digits are put together two by two, then four by four: the sum of products is in the upper half of a word.
_EVERY_FOURTH = np.uint64(0x000000FF000000FF)
_FIRST_AND_THIRD = np.uint64((8**6 << 32) + 8**2)
_SECOND_AND_FOURTH = np.uint64((8**4 << 32) + 1)


class _Octal(NamedTuple):
    values: Ints
    digits: Words
    """A byte each."""
    is_odd: bool
    """Whether anything else is among them: then the values mean nothing."""


def _octal(words: Words, form: _Form) -> _Octal:
    """Read numbers, one from each word; a step for all digits at once (D. Lemire, "Quickly parsing eight digits")."""
    digits = words ^ form.zeros
    pairs = (digits << np.uint64(3)) + (digits >> np.uint64(8))
    upper = (pairs & _EVERY_FOURTH) * _FIRST_AND_THIRD + (pairs >> np.uint64(16) & _EVERY_FOURTH) * _SECOND_AND_FOURTH
    is_odd = bool(np.bitwise_or.reduce(digits).item() & ~form.bits)
    return _Octal((upper >> form.shift).view(np.int64), digits, is_odd)


def sizes_of(rows: Bytes) -> tuple[Ints, bool]:
    """Read the members' sizes, and tell whether any is not 11 octal digits and a NUL."""
    low = _octal(rows[:, 128:136].view("<u8")[:, 0], _LOW_SIZE)
    high = rows[:, 124:128].view("<u4")[:, 0]
    if not (high != _FOUR_ZEROS).any():
        return low.values, low.is_odd
    more = _octal((high.astype(np.uint64) << np.uint64(32)) + np.uint64(_FOUR_ZEROS), _HIGH_SIZE)
    return more.values * 8**7 + low.values, low.is_odd or more.is_odd


def varied(rows: Bytes) -> list[int]:
    """Number the words that are not the same in all rows."""
    words = rows.reshape(-1).view(np.uint64)
    equal = (words[_WORDS:] == words[:-_WORDS]).view(np.uint64).reshape(-1, _WORDS // WORD_BYTES)
    return np.flatnonzero(_in_all(equal).view(np.uint8) == 0).tolist()


def _in_all(rows: Words) -> Words:
    """Give the bits that are set in all rows, many rows at a time: numpy's own way costs several times as much."""
    if len(rows) < 2 * _ALIKE_ROWS:
        alone: Words = np.bitwise_and.reduce(rows, axis=0)
        return alone
    many = len(rows) // _ALIKE_ROWS
    blocks = rows[: many * _ALIKE_ROWS].reshape(many, -1)
    some = np.bitwise_and.reduce(blocks, axis=0).reshape(_ALIKE_ROWS, -1)
    together: Words = np.bitwise_and.reduce(some & rows[-_ALIKE_ROWS:], axis=0)
    return together


def check(rows: Bytes, unlike: list[int]) -> None:
    """Compare every checksum, and what else makes a header plain.

    Args:
        rows: the headers, whose magic begins rightly and whose sizes are plain.
        unlike: the words that are not the same in all (`varied`).

    Raises:
        NotPlain: there is another one among them.
    """
    for column, expected in _FIXED:
        cells = rows[:, column] if column // WORD_BYTES in unlike else rows[:1, column]
        if (cells != expected).any():
            raise NotPlain("another magic, or a prefix")
    told = _octal(rows[:, 148:156].view("<u8")[:, 0], _CHECKSUM)
    own_bytes = (told.digits * _ADD_BYTES >> np.uint64(56)).view(np.int64)  # the sum over the header has them too
    if told.is_odd or (_sums(rows, unlike) != told.values + own_bytes + _CHECKSUM_BYTES).any():
        raise NotPlain("a checksum or a field that is not plain")


def _sums(rows: Bytes, unlike: list[int]) -> Ints:
    """Add up the bytes of each row."""
    if len(unlike) > _MAX_SUMMED:
        long: Ints = rows.sum(axis=1, dtype=np.int64)
        return long
    words = rows.view(np.uint64).T[unlike]
    lanes = np.add.reduce((words & _LANES) + (words >> np.uint64(8) & _LANES), axis=0)
    sums: Ints = (lanes * _ADD_LANES >> np.uint64(48)).view(np.int64)
    first = rows[0].tobytes()
    same = sum(first) - sum(sum(first[word * WORD_BYTES : (word + 1) * WORD_BYTES]) for word in unlike)
    sums += same
    return sums
