"""Run files: the samples of a batch in the order of their keys, as raw ranges, and behind them a row for each.

    data    the ranges one after the other
    rows    one fixed-width record a sample: key, offset and length in the data, hash of its name, input shard, group

The manifest of the batch tells where the rows begin and what they are made of. Nothing in the file is trusted for its
size: both parts are read by ranges, in the version that was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from tarmill import storage
from tarmill.errors import ChangedError
from tarmill.jobs.shard_io import JOIN_BELOW
from tarmill.planning.external_tasks import Key, Mark, Run
from tarmill.planning.splitters import MARKS_PER_RUN
from tarmill.storage.base import Bytes

_BLOCK_BYTES = 1 << 20
_WRITE_BYTES = 256 << 10
"""From this on ranges are written: they are still in the processor's cache."""


class RunWriter:
    """One run file in the making: data pieces in key order, then the rows; nothing is there until `commit`."""

    def __init__(self, url: str, owner: str) -> None:
        self.url = url
        self._written = 0
        self._stream = storage.open_write(url, owner=owner)
        self._pieces: list[Any] = []
        self._waiting = 0

    @property
    def data_bytes(self) -> int:
        """How many bytes of ranges there are so far."""
        return self._written + self._waiting

    def write(self, piece: bytes) -> int:
        """Append one range; where it begins."""
        start = self.data_bytes
        self.write_all([piece])
        return start

    def write_all(self, pieces: Sequence[Bytes]) -> None:
        """Append ranges, or parts of one."""
        self._pieces += pieces
        self._waiting += sum(map(len, pieces))
        if self._waiting >= _WRITE_BYTES:
            self._flush()

    def write_pieces(self, pieces: Sequence[Bytes]) -> None:
        """Append many ranges, without joining them where the store need not."""
        self._flush()
        self._written += self._stream.write_all(pieces)

    def commit(self, rows: NDArray[Any], keys_cut: bool) -> Run:
        """Write the rows, which are in key order, and publish the file."""
        self._flush()
        raw = memoryview(rows.view(np.uint8).data)
        for at in range(0, len(raw), _BLOCK_BYTES):
            self._stream.write(raw[at : at + _BLOCK_BYTES])
        receipt = self._stream.commit()
        return Run(
            self.url,
            receipt.version,
            len(rows),
            self.data_bytes,
            tuple((name, str(rows.dtype[name].str)) for name in rows.dtype.names or ()),
            keys_cut,
            tuple(_marks(rows)),
            int(rows["length"].max()),
            _key(rows["key"][-1]),
            int(rows["length"][-1]),
            hash_of_rows(rows),
        )

    def abort(self) -> None:
        """Throw it away, unless it is committed."""
        self._stream.abort()

    def _flush(self) -> None:
        if self._pieces:
            if self._waiting < JOIN_BELOW * len(self._pieces):
                self._stream.write(b"".join(self._pieces))
            else:
                self._stream.write_all(self._pieces)
            self._pieces.clear()
            self._written += self._waiting
            self._waiting = 0


def _marks(rows: NDArray[Any]) -> Iterator[Mark]:
    count = len(rows)
    ends = np.cumsum(rows["length"], dtype=np.int64)
    places = np.unique(np.linspace(0, count, min(count, MARKS_PER_RUN) + 1, dtype=np.int64)[1:] - 1)
    before = 0
    for place in places.tolist():
        yield Mark(_key(rows["key"][place]), place, int(ends[place]) - before)
        before = int(ends[place])


def _key(value: Any) -> Key:
    return bytes(value) if isinstance(value, bytes) else int(value)


def row_type(key: NDArray[Any], *, long: bool, groups: bool) -> np.dtype[Any]:
    """Choose the columns of a run's rows.

    Args:
        key: of the samples.
        long: whether a sample has 4 GiB or more.
        groups: whether samples are reduced.
    """
    columns = [("key", key.dtype.str), ("offset", "<u8"), ("length", "<u8" if long else "<u4"), ("stem", "<u8")]
    return np.dtype([*columns, ("fields", "<u4"), ("shard", "<u4"), *([("group", "<u8")] if groups else [])])


def hash_of_rows(rows: NDArray[Any]) -> int:
    """Hash rows: they decide over the order, of which the proof of a job says nothing."""
    return xxh3_64_intdigest(rows.tobytes())


def read_rows(
    run: Run, begin: int, end: int, expected: int | None = None, read: Callable[[int, int], bytes] | None = None
) -> NDArray[Any]:
    """Read some rows of a run.

    Args:
        run: the run.
        begin, end: which rows.
        expected: their `hash_of_rows`, where it is known.
        read: reads (offset, length) of the run where it is open already; many buckets read few rows of many runs.

    Raises:
        ChangedError: the run file is not the one that was written.
    """
    kind = _dtype(run.row_type)
    if end <= begin:
        return np.empty(0, kind)
    start, length = run.data_bytes + begin * kind.itemsize, (end - begin) * kind.itemsize
    if read is not None:
        data = read(start, length)
    else:
        (data,) = storage.read_ranges(run.url, [(start, length)], version=run.version)
    rows = np.frombuffer(data, kind)
    if len(rows) != end - begin:
        shown = storage.mask(run.url)
        raise ChangedError(f"run file {shown} is shorter than it was written; run the command again", url=shown)
    if expected is not None and hash_of_rows(rows) != expected:
        shown = storage.mask(run.url)
        raise ChangedError(
            f"run file {shown}: its rows {begin} to {end} were damaged, on the way or where they are stored; run the "
            "command again, and if it stays, after `tarmill clean` of the job",
            url=shown,
            retryable=True,
        )
    return rows


@cache
def _dtype(row_type: tuple[tuple[str, str], ...]) -> np.dtype[Any]:
    return np.dtype(list(row_type))


def joined_column(pieces: Sequence[NDArray[Any]], name: str) -> NDArray[Any]:
    """Join one column of the rows of several runs; the widest type of them all."""
    return np.concatenate([piece[name] for piece in pieces])
