"""Aggregates over rows that merge: each shard is counted by itself, and shards are merged in their order.

An aggregate's state is JSON-able (`to_dict`, `aggregate_from_dict`), so it crosses to the driver without pickled
objects. Count, top and keys are exact and merge in any order; `ColumnStats` is exact but for quantiles and the distinct
count, and gives the same bytes whatever the number of workers, since what is merged, and in which order, is decided by
the shards alone.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

from tarmill.errors import UsageError
from tarmill.formats.rows import FieldNames
from tarmill.formats.samples import Record
from tarmill.values import valueclass

MAX_DISTINCT = 1_000_000
"""How many different values `--top` counts."""
MAX_VALUE_BYTES = 256 << 20
"""How long all these values may be together."""
MAX_FIELDS = 100_000

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode


@valueclass
class Table:
    """A result for people and programs: column names, and rows of values."""

    names: tuple[str, ...]
    rows: list[tuple[Any, ...]]


class Aggregate(ABC):
    """Something that is computed from rows, shard by shard."""

    kind: str

    @abstractmethod
    def update(self, rows: Sequence[Any]) -> None:
        """Take in rows: sequences with one value per column, None where missing (records for `Keys`)."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in what another aggregate of the same making has seen, as if it came after this one's rows."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Give the state as JSON-able values."""

    @abstractmethod
    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `to_dict` gave."""

    @abstractmethod
    def result(self) -> Table:
        """Give the outcome."""


class Count(Aggregate):
    """How many rows there are."""

    kind = "count"

    def __init__(self) -> None:
        self.rows = 0

    def update(self, rows: Sequence[Any]) -> None:
        """Count rows."""
        self.rows += len(rows)

    def merge(self, other: Count) -> None:
        """Add."""
        self.rows += other.rows

    def to_dict(self) -> dict[str, Any]:
        """Give the count."""
        return {"rows": self.rows}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a count."""
        self.rows = state["rows"]

    def result(self) -> Table:
        """Give one row with the count."""
        return Table(("count",), [(self.rows,)])


class Top(Aggregate):
    """The most frequent rows, exactly: highest count first, equal counts by value, upwards.

    Values order as: missing, numbers, texts by code point. Numbers that are equal are one value (1 and 1.0).
    """

    kind = "top"

    def __init__(
        self,
        names: Sequence[str],
        size: int,
        *,
        max_distinct: int = MAX_DISTINCT,
        max_value_bytes: int = MAX_VALUE_BYTES,
    ) -> None:
        self._names = tuple(names)
        self._size = size
        self._max_distinct = max_distinct
        self._max_value_bytes = max_value_bytes
        self._value_bytes = 0
        self._counts: dict[tuple[Any, ...], int] = {}

    def update(self, rows: Sequence[Sequence[Any]]) -> None:
        """Count rows.

        Raises:
            UsageError: there are more different ones than memory is set aside for.
        """
        for row, count in Counter([tuple(map(_comparable, row)) for row in rows]).items():
            self._add(row, count)

    def _add(self, row: tuple[Any, ...], count: int) -> None:
        known = self._counts.get(row)
        if known is not None:
            self._counts[row] = known + count
            return
        self._counts[row] = count
        self._value_bytes += sum(len(value) for value in row if type(value) is str)
        if len(self._counts) > self._max_distinct or self._value_bytes > self._max_value_bytes:
            raise UsageError(
                f"--top met {len(self._counts):,} different values with {self._value_bytes:,} characters; it counts at "
                f"most {self._max_distinct:,} with {self._max_value_bytes:,}. Narrow it with --where, take a column "
                "with fewer values, write the column out and count it with `sort | uniq -c`, or use --stats for an "
                "estimate of how many different values there are"
            )

    def merge(self, other: Top) -> None:
        """Add counts; raises UsageError as `update` does."""
        for row, count in other._counts.items():
            self._add(row, count)

    def to_dict(self) -> dict[str, Any]:
        """Give all counts."""
        return {"counts": [[list(row), count] for row, count in self._counts.items()]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over counts."""
        for row, count in state["counts"]:
            self._add(tuple(row), count)

    @property
    def distinct(self) -> int:
        """How many different rows there are."""
        return len(self._counts)

    def result(self) -> Table:
        """Give (count, value, ...) rows, the most frequent first."""
        import heapq

        first = heapq.nsmallest(self._size, self._counts.items(), key=lambda item: (-item[1], _order(item[0])))
        return Table(("count", *self._names), [(count, *row) for row, count in first])


def _comparable(value: Any) -> Any:
    """Give a value that JSON can hold and that equals exactly those it should be counted with."""
    kind = type(value)
    if kind is bytes:
        return value.decode("utf-8", "surrogateescape")
    if kind is float:
        if value != value:
            return "NaN"
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if value is None or kind is str or kind is int:
        return value
    return ",".join(value) if kind is FieldNames else _compact(value)


def _order(row: tuple[Any, ...]) -> tuple[tuple[int, Any], ...]:
    return tuple((0, 0) if value is None else (2, value) if type(value) is str else (1, value) for value in row)


class Keys(Aggregate):
    """Which fields there are: in how many samples, with how many bytes. The first row, `__key__`, is all samples."""

    kind = "keys"

    def __init__(self) -> None:
        self.samples = 0
        self._fields: dict[str, list[int]] = {}

    def update(self, rows: Sequence[Record]) -> None:
        """Take in records whose fields are sizes, or contents where a filter needs them (`ReadOptions.sizes`).

        Raises:
            UsageError: there are so many field names that the key function cannot be the right one.
        """
        fields = self._fields
        self.samples += len(rows)
        for record in rows:
            for name, size in record.items():
                if size.__class__ is int:
                    self._add(fields, name, 1, size)
                elif size.__class__ is bytes:
                    self._add(fields, name, 1, len(size))

    def _add(self, fields: dict[str, list[int]], name: str, samples: int, size_bytes: int) -> None:
        entry = fields.get(name)
        if entry is None:
            if len(fields) >= MAX_FIELDS:
                raise UsageError(
                    f"--keys met more than {MAX_FIELDS:,} different field names, the last {name!r}; names of members "
                    "seem to split in another way here: choose a key function with -k"
                )
            entry = fields[name] = [0, 0]
        entry[0] += samples
        entry[1] += size_bytes

    def merge(self, other: Keys) -> None:
        """Add; raises UsageError as `update` does."""
        self.samples += other.samples
        for name, (samples, size_bytes) in other._fields.items():
            self._add(self._fields, name, samples, size_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Give the counts."""
        return {"samples": self.samples, "fields": self._fields}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over counts."""
        self.samples = state["samples"]
        self._fields = {name: list(entry) for name, entry in state["fields"].items()}

    def result(self) -> Table:
        """Give (field, samples, bytes) rows, fields by name."""
        total = sum(size_bytes for _, size_bytes in self._fields.values())
        rows: list[tuple[Any, ...]] = [("__key__", self.samples, total)]
        rows += [(name, *entry) for name, entry in sorted(self._fields.items())]
        return Table(("field", "samples", "bytes"), rows)


def make_aggregate(kind: str, names: Sequence[str], top: int = 0) -> Aggregate:
    """Make an empty aggregate.

    Args:
        kind: "count", "top", "stats" or "keys".
        names: of the columns.
        top: how many rows `--top` shows.

    Raises:
        UsageError: "stats" without its library.
    """
    if kind == "stats":
        from tarmill.planning.column_stats import Stats

        return Stats(names)
    if kind == "top":
        return Top(names, top)
    return Keys() if kind == "keys" else Count()
