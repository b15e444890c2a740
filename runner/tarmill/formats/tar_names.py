"""Names of plain headers, cut at the dot that ends the key: the first one of the last part of the path.

Where all keys end in one column, the names are cut there; where all samples have the same fields in the same order,
only those of the first are looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarmill.formats.tar_rows import WORD_BYTES, Bytes, Ints, NotPlain
from tarmill.values import valueclass

Names = NDArray[np.bytes_]

NAME_BYTES = 100
_COLUMNS = np.arange(NAME_BYTES, dtype=np.uint8)
_DOT, _SLASH, _UNDERSCORE = b"./_"
_RESERVED = int.from_bytes(b"__", "little")


@valueclass(frozen=False)
class CutNames:
    """Names, cut behind the dots."""

    dots: Ints | int
    """The dot's column in each, or in all."""
    stems: Names
    """The keys with their dots."""
    fresh: NDArray[np.bool_]
    """Of each, whether its key is another one than that before it."""
    behind: bytes = b""
    """What stands behind the dots, joined, where all are in one column."""

    def places(self, count: int) -> list[int]:
        """Tell where the first names go on behind their dots."""
        return [self.dots + 1] * count if isinstance(self.dots, int) else (self.dots[:count] + 1).tolist()


def cut_names(rows: Bytes, unlike: list[int]) -> CutNames:
    """Cut each name.

    Args:
        rows: the headers.
        unlike: the words that are not the same in all (`tar_rows.varied`).

    Raises:
        NotPlain: one is reserved, has no key, or needs the key function to decide.
    """
    if (alike := _cut_alike(rows, unlike)) is not None:
        return alike
    names = rows[:, :NAME_BYTES]
    if ((names[:, 0] == _UNDERSCORE) & (names[:, 1] == _UNDERSCORE)).any():
        raise NotPlain("a name that may be reserved")
    dots = (names == _DOT).argmax(axis=1)
    stems = names * (dots.astype(np.uint8)[:, None] >= _COLUMNS)
    if not _end_keys(dots, names, stems):  # some may stand in the name of a folder
        dots = _last_dots(names)
        stems = names * (dots.astype(np.uint8)[:, None] >= _COLUMNS)
    joined = _joined(stems)
    fresh = np.ones(len(rows), bool)
    fresh[1:] = joined[1:] != joined[:-1]
    return CutNames(dots, joined, fresh)


def _cut_alike(rows: Bytes, unlike: list[int]) -> CutNames | None:
    """Cut names whose dots and slashes, and all else below "0", are in the same columns; None says "look closer"."""
    first = rows[0, :NAME_BYTES].tobytes()
    last_part = first.rfind(b"/") + 1
    dot = first.find(b".", last_part)
    if dot <= last_part or b"\0" in first[:dot]:
        return None
    words = rows.view("<u8")[:, : dot // WORD_BYTES + 1].copy()
    words[:, -1] &= np.uint64((1 << dot % WORD_BYTES * 8 + 8) - 1)  # what stands behind the dot is no key
    width = words.shape[1] * WORD_BYTES
    marks = np.minimum(words.view(np.uint8).reshape(-1), _SLASH + 1)  # dots, slashes and NULs are below it
    if (marks[width:] != marks[:-width]).any() or ((words[:, 0] & np.uint64(0xFFFF)) == _RESERVED).any():
        return None
    named = [word for word in unlike if word * WORD_BYTES < NAME_BYTES]
    end = max(dot + 2, len(first.rstrip(b"\0")), (named[-1] + 1) * WORD_BYTES if named else 0)
    behind = rows[:, dot + 1 : min(end, NAME_BYTES)].tobytes()
    if b"/" in behind:
        return None
    fresh = np.zeros(len(rows), bool)
    fresh[0] = True
    for word in named:
        if word * WORD_BYTES < width:
            fresh[1:] |= words[1:, word] != words[:-1, word]
    return CutNames(dot, words.view(f"S{width}")[:, 0], fresh, behind)


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
    ends = np.where(zeros.any(axis=1), zeros.argmax(axis=1), NAME_BYTES)
    slashes = names == _SLASH
    behind = np.where(slashes.any(axis=1), NAME_BYTES - slashes[:, ::-1].argmax(axis=1), 0)
    is_dot = (names == _DOT) & (behind[:, None] <= _COLUMNS)
    dots = np.where(is_dot.any(axis=1), is_dot.argmax(axis=1), 0)
    if (dots <= behind).any() or (dots >= ends).any():
        raise NotPlain("a name for the key function to decide")
    return dots


def _joined(table: Any) -> Names:
    """View each row as one string; NULs at its end do not count."""
    return np.ascontiguousarray(table).view(f"S{table.shape[1]}").ravel()


def tails_of(rows: Bytes, names: CutNames, firsts: Ints) -> list[bytes]:
    """Cut out what stands behind the keys, without the last NULs.

    Args:
        rows: the headers of whole samples.
        names: of these, and perhaps of more behind them.
        firsts: numbers of the samples' first rows.

    Returns:
        One for each row; where all samples have the same in the same order, only those of the first sample.
    """
    members, behind = len(rows), names.behind
    each, odd = divmod(members, len(firsts))
    if behind and not odd and (firsts == np.arange(0, members, each)).all():
        width = len(behind) // len(names.fresh)
        pattern = behind[: width * each]
        if behind[: width * members] == pattern * len(firsts):
            return [pattern[at : at + width].rstrip(b"\0") for at in range(0, len(pattern), width)]
    whole = _joined(rows[:, :NAME_BYTES]).tolist()
    return [name[at:] for name, at in zip(whole, names.places(members), strict=True)]
