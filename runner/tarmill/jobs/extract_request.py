"""What an htextract job asks for: its columns, filter and aggregate, parsed and checked against each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarmill.errors import SpecError
from tarmill.formats.column_values import Documents
from tarmill.formats.columns import Column, parse_columns
from tarmill.formats.samples import ReadOptions
from tarmill.spec import ExtractSpec
from tarmill.values import valueclass

if TYPE_CHECKING:
    from tarmill.formats.where import Where


@valueclass
class Request:
    """What a spec asks for, parsed and checked."""

    columns: tuple[Column, ...]
    where: Where | None
    aggregate: str
    """"count", "top", "stats", "keys", or "" for rows."""

    @classmethod
    def of(cls, spec: ExtractSpec) -> Request:
        """Parse the columns and the filter of a spec.

        Raises:
            UsageError: they cannot be read, do not go together, or need a library that is not there.
        """
        wanted = {"count": spec.count, "top": bool(spec.top), "stats": spec.stats, "keys": spec.keys}
        chosen = [name for name, on in wanted.items() if on]
        if len(chosen) > 1:
            raise SpecError(
                f"--{chosen[0]} and --{chosen[1]} are asked for together; expected one of "
                "--count, --top, --stats, --keys in a run",
                field=chosen[1],
                value=True,
            )
        if spec.top < 0:
            spec.refuse("top", "expected how many rows to print, such as 10")
        aggregate = chosen[0] if chosen else ""
        if aggregate and spec.format == "parquet":
            spec.refuse("format", f"--{aggregate} is written as text, jsonl or csv")
        columns = parse_columns(spec.columns)
        if columns and aggregate == "keys":
            spec.refuse("columns", "--keys looks at all fields: leave -f away")
        if not columns and aggregate in ("top", "stats"):
            spec.refuse("columns", f"--{aggregate} needs at least one column, such as -f cls")
        if not columns and not aggregate:
            columns = parse_columns(["__key__"])
        documents = Documents()
        for column in columns:
            column.compile(documents)  # tells now of a library that is missing
        return cls(columns, _parsed_where(spec.where) if spec.where else None, aggregate)

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return [column.text for column in self.columns]

    def read_options(self, spec: ExtractSpec) -> ReadOptions:
        """Give the reader's options: nothing is loaded that no column or filter needs."""
        load = frozenset[str]().union(
            *(column.needs for column in self.columns), self.where.needs if self.where else ()
        )
        sizes = (
            self.aggregate == "keys"
            or any(column.needs_sizes for column in self.columns)
            or (self.where is not None and self.where.needs_sizes)
        )
        return ReadOptions(spec.key_function, load, sizes, spec.on_error, spec.max_member)

    def only_contents(self, spec: ExtractSpec) -> str:
        """Name the field whose contents are all that is asked for, as lines of text; "" where it is anything else."""
        plain = spec.format == "text" and not self.aggregate and self.where is None and len(self.columns) == 1
        return self.columns[0].fields[0] if plain and _is_plain(self.columns[0]) else ""


def _parsed_where(text: str) -> Where:
    from tarmill.formats.where import Where

    return Where.parse(text)


def _is_plain(column: Column) -> bool:
    return column.kind == "binary" and len(column.fields) == 1 and column.fields != ("key",)
