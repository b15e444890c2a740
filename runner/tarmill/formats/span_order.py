"""Orders of samples by numpy: fixed-width sort keys, stable argsort, and the packing of arrays into small files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_KEY_WIDTH = 256
"""Encoded keys that are shorter than this are kept whole. Of others all but the last of so many bytes are kept, and a
mark behind them; where such keys are equal, the samples are read to compare."""
_CUT = b"\xff"
_MAGIC = b"tarmill arrays 1\n"
_ALIGN = 64

Array = NDArray[Any]
Order = NDArray[np.int64]


class KeyColumn:
    """Collects encoded keys as fixed-width bytes: width + nothing a sample, as soon as some thousands have come.

    Encoded keys are prefix-free (module `sort_keys`), so that the NULs which pad them never decide.
    """

    def __init__(self) -> None:
        self._chunks: list[Array] = []
        self.cut = False
        """Whether a key was too long to be kept whole."""

    def extend(self, keys: Sequence[bytes]) -> None:
        """Take over keys, in order."""
        if keys:
            width = max(map(len, keys))
            if width >= MAX_KEY_WIDTH:
                self.cut, width = True, MAX_KEY_WIDTH
                keys = [key if len(key) < width else key[: width - 1] + _CUT for key in keys]
            self._chunks.append(np.array(keys, f"S{width}"))

    def array(self) -> Array:
        """Give all keys."""
        return np.concatenate(self._chunks) if self._chunks else np.empty(0, "S1")


def order_of(keys: Array) -> Order:
    """Give the stable order of fixed-width byte keys, or of numbers: positions, smallest key first.

    Byte keys are compared eight bytes at a time, as big-endian integers, which sorts several times as fast as strings
    do: all keys by the first bytes that are not the same in all, and then those that agree there by the others.
    """
    if keys.dtype.kind != "S":
        return np.argsort(keys, kind="stable")
    count, width = len(keys), keys.dtype.itemsize
    table = np.ascontiguousarray(keys).view(np.uint8).reshape(count, width)
    varies = np.flatnonzero((table != table[:1]).any(axis=0))
    if not len(varies):
        return np.arange(count)
    first, last = int(varies[0]), int(varies[-1]) + 1
    head = _word(table, first, last)
    order = np.argsort(head, kind="stable")
    if last - first <= 8:
        return order
    ranked = head[order]
    same = ranked[1:] == ranked[:-1]
    tied = np.flatnonzero(np.append(False, same) | np.append(same, False))
    left = np.sort(order[tied])  # in the order of the input, which the stable sorts below keep
    rows = table[left]
    left = left[np.lexsort([*(_word(rows, at, last) for at in range(first + 8, last, 8)[::-1]), head[left]])]
    order[tied] = left
    return order


def _word(table: NDArray[np.uint8], at: int, last: int) -> NDArray[np.uint64]:
    """Cut a column of eight bytes out of keys, those from `last` on taken as zero."""
    word = np.zeros((len(table), 8), np.uint8)
    piece = table[:, at : min(at + 8, last)]
    word[:, : piece.shape[1]] = piece
    return word.view(">u8").reshape(len(table)).astype(np.uint64)


def key_bounds(keys: Array, key: bytes | int, side: str) -> int:
    """Find where a key stands in sorted keys: before its equals (`left`) or behind them (`right`)."""
    return int(np.searchsorted(keys, np.array(key, keys.dtype if keys.dtype.kind != "S" else None), side))  # type: ignore[call-overload]


def is_cut(key: bytes) -> bool:
    """Tell whether a kept key is only the beginning of one."""
    return len(key) == MAX_KEY_WIDTH


def runs_of(values: Array) -> NDArray[np.bool_]:
    """Tell for each place whether a new run of equal values begins there."""
    fresh = np.ones(len(values), bool)
    fresh[1:] = values[1:] != values[:-1]
    return fresh


def pack_arrays(meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> list[bytes | memoryview]:
    """Lay out arrays behind a JSON header, as pieces to write; `unpack_arrays` reads it. No pickle."""
    table = {name: [array.dtype.str, len(array)] for name, array in arrays.items()}
    header = json.dumps({"meta": meta, "arrays": table}).encode() + b"\n"
    pieces: list[bytes | memoryview] = [_padded(_MAGIC + header)]
    for array in arrays.values():
        raw = memoryview(np.ascontiguousarray(array).view(np.uint8).data)
        pieces += [raw, bytes(-len(raw) % _ALIGN)]
    return pieces


def unpack_arrays(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read what `pack_arrays` wrote; the arrays are views of `data`.

    Raises:
        ValueError: it is something else, or cut.
    """
    if not data.startswith(_MAGIC):
        raise ValueError("no file of arrays")
    end = data.index(b"\n", len(_MAGIC)) + 1
    at = end + -end % _ALIGN
    arrays = {}
    try:
        header = json.loads(data[len(_MAGIC) : end])
        for name, (kind, count) in header["arrays"].items():
            arrays[name] = array = np.frombuffer(data, np.dtype(kind), count, at)
            if len(array) != count:
                raise ValueError(f"no file of arrays: {count} values of {name!r}")
            at += array.nbytes + -array.nbytes % _ALIGN
        meta = dict(header["meta"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no file of arrays: {error!r}") from None
    if at != len(data):
        raise ValueError(f"the file of arrays has {len(data)} bytes instead of {at}")
    return meta, arrays


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGN)
