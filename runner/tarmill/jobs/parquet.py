"""Rows as Parquet, by pyarrow: types come from the columns, so that every part has the same schema.

| kind of column | type |
|---|---|
| a field as it is | binary |
| `:text`, `:sha256`, `:format`, `__key__`, `__url__` | string |
| `:int`, `:bytes`, `:width`, `:height` | int64 |
| `:float` | double |
| a JSON value without an accessor | string: a text as it is, anything else as compact JSON |
| `__fields__` | list of strings |

A worker that sends its rows to the driver uses Arrow's stream format, whose batches become row groups there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tarmill.errors import UsageError
from tarmill.formats.columns import Column
from tarmill.formats.rows import FieldNames, shown

GROUP_BYTES = 16 << 20
"""Rows are gathered to groups of about this size in memory."""
COMPRESSION = "zstd"

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def library() -> Any:
    """Import pyarrow. Raises UsageError without it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            "--format parquet needs pyarrow, which is not installed; install it with: pip install 'tarmill[parquet]'"
        ) from None
    return pyarrow


def schema_of(columns: Sequence[Column]) -> Any:
    """Give the Arrow schema for columns."""
    arrow = library()
    types = {
        "binary": arrow.binary(),
        "text": arrow.string(),
        "int": arrow.int64(),
        "float": arrow.float64(),
        "json": arrow.string(),
        "list": arrow.list_(arrow.string()),
    }
    return arrow.schema([(shown(column.text), types[column.kind]) for column in columns])


class _Batches:
    """From rows to record batches of a schema."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._arrow = library()
        self._columns = columns
        self.schema = schema_of(columns)

    def batch(self, rows: Sequence[Sequence[Any]]) -> Any:
        arrays = []
        for column, kind, values in zip(self._columns, self.schema.types, zip(*rows, strict=True), strict=True):
            try:
                arrays.append(self._arrow.array(_CONVERT[column.kind](values), kind))
            except (OverflowError, self._arrow.ArrowInvalid) as error:
                raise UsageError(
                    f"column {column.text} does not fit its Parquet type {kind} ({error}); ask for {column.text} "
                    "without an accessor or with :text instead",
                    column=column.text,
                ) from None
        return self._arrow.record_batch(arrays, self.schema)


def _json_text(value: Any) -> str | None:
    return value if value is None else shown(value if type(value) is str else _compact(value))


_CONVERT: dict[str, Callable[[Sequence[Any]], Sequence[Any]]] = {
    "binary": lambda values: values,
    "int": lambda values: values,
    "float": lambda values: values,
    "text": lambda values: [None if value is None else shown(value) for value in values],
    "json": lambda values: list(map(_json_text, values)),
    "list": lambda values: [
        FieldNames(shown(name) for name in value) if value is not None else None for value in values
    ],
}


class ArrowRows:
    """Rows in Arrow's stream format, for the way to the driver."""

    def __init__(self, columns: Sequence[Column], write: Callable[[bytes], Any]) -> None:
        self._batches = _Batches(columns)
        self._output = _Output(write)
        self._writer = library().ipc.new_stream(self._output.file(), self._batches.schema)

    def add(self, rows: Sequence[Any]) -> None:
        """Write rows as one batch."""
        self._writer.write_batch(self._batches.batch(rows))
        self._output.drain()

    def finish(self) -> None:
        """Write the end mark."""
        self._writer.close()
        self._output.drain()


class ParquetRows:
    """Rows, or batches from `ArrowRows`, as one Parquet file."""

    def __init__(self, columns: Sequence[Column], write: Callable[[bytes], Any]) -> None:
        self._arrow = library()
        self._batches = _Batches(columns)
        self._output = _Output(write)
        self._writer = self._arrow.parquet.ParquetWriter(
            self._output.file(), self._batches.schema, compression=COMPRESSION
        )
        self._held: list[Any] = []
        self._held_bytes = 0

    def add(self, rows: Sequence[Any]) -> None:
        """Write rows; a row group is written whenever enough have come together."""
        self._add_batch(self._batches.batch(rows))

    def add_stream(self, raw: Any) -> None:
        """Write what `ArrowRows` wrote, read from a file object, batch by batch."""
        with self._arrow.ipc.open_stream(raw) as reader:
            for batch in reader:
                self._add_batch(batch)

    def _add_batch(self, batch: Any) -> None:
        self._held.append(batch)
        self._held_bytes += batch.nbytes
        if self._held_bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(self._arrow.Table.from_batches(self._held, self._batches.schema))
            self._held, self._held_bytes = [], 0
            self._output.drain()

    def finish(self) -> None:
        """Write the last group and the footer."""
        self._flush()
        self._writer.close()
        self._output.drain()


class _Output(io.RawIOBase):
    """What pyarrow takes for a file. It only collects, since a writer that is thrown away writes again as it goes."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._take = write
        self._blocks: list[bytes] = []
        self._at = 0

    def file(self) -> Any:
        return library().PythonFile(self, mode="w")

    def drain(self) -> None:
        """Pass on what was collected."""
        for block in self._blocks:
            self._take(block)
        self._blocks.clear()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any, /) -> int:
        block = bytes(data)
        self._blocks.append(block)
        self._at += len(block)
        return len(block)


class BlockReader(io.RawIOBase):
    """A file object over an iterator of blocks, as `add_stream` reads it."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer as far as the block at hand goes."""
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
