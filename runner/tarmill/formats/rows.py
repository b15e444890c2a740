"""Rows as bytes: `text`, `jsonl` and `csv`.

text    A row is a line and its cells are separated by tabs, as in PostgreSQL's COPY: inside a cell a backslash, tab,
        newline and carriage return are written \\\\ \\t \\n \\r, a byte that is no UTF-8 as \\xhh, a missing value
        as \\N. No header.
jsonl   A row is a JSON object with the columns' names, in UTF-8. What is no UTF-8 appears with the same \\xhh, numbers
        that JSON does not have as "NaN", "Infinity", "-Infinity" (as protobuf does it).
csv     RFC 4180 with a header; a missing value is an empty cell.

JSON values other than texts, and lists, are compact JSON in a cell of text or csv; `__fields__` is joined by commas.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any, Protocol

from tarmill.errors import SpecError

ROW_FORMATS = ("text", "jsonl", "csv")
NULL_CELL = b"\\N"

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_strict = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_NOT_FINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}


class RowEncoder(Protocol):
    """Turns rows into bytes; a row is a sequence of values, one per column, None where missing."""

    def header(self) -> bytes:
        """Give what comes before the first row."""
        ...

    def encode(self, rows: Sequence[Sequence[Any]]) -> bytes:
        """Encode rows; what several calls return can be joined."""
        ...


def row_encoder(name: str, columns: Sequence[str]) -> RowEncoder:
    """Make the encoder of a row format (a value of `ROW_FORMATS`) for columns with these names.

    Raises SpecError when there is no such format.
    """
    if name == "text":
        return _Text()
    if name == "jsonl":
        return _JsonLines(columns)
    if name == "csv":
        return _Csv(columns)
    raise SpecError(f"row format {name!r}: expected one of {', '.join(ROW_FORMATS)}", field="format", value=name)


def encode_contents(values: Sequence[bytes]) -> bytes:
    """Encode rows of text with a single column of contents: the same bytes as the text encoder gives, much faster.

    All values are looked at together, since most have nothing to escape.
    """
    if not values:
        return b""
    lines = b"\n".join([*values, b""])  # the last newline comes without another copy
    if lines.count(b"\n") > len(values):
        lines = b"\n".join([*[value.replace(b"\\", b"\\\\").replace(b"\n", b"\\n") for value in values], b""])
    elif b"\\" in lines:
        lines = lines.replace(b"\\", b"\\\\")
    if b"\t" in lines:
        lines = lines.replace(b"\t", b"\\t")
    if b"\r" in lines:
        lines = lines.replace(b"\r", b"\\r")
    if not lines.isascii():
        # A newline belongs to no longer UTF-8 sequence, so values are valid together when each is valid by itself.
        lines = lines.decode("utf-8", "backslashreplace").encode()
    return lines


def text_cell(value: Any) -> bytes:
    """Encode one value as a cell of the text format."""
    kind = type(value)
    if value is None:
        return NULL_CELL
    if kind is int or kind is float:
        return repr(value).encode()
    contents = value if kind is bytes else _to_bytes(value if kind is str else _structure(value))
    contents = contents.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\t", b"\\t").replace(b"\r", b"\\r")
    return contents if contents.isascii() else contents.decode("utf-8", "backslashreplace").encode()


def shown(value: bytes | str) -> str:
    """Give contents or a name as text that can be encoded: a byte that is no UTF-8 becomes \\xhh."""
    if type(value) is str:
        if value.isascii():
            return value
        value = _to_bytes(value)
    return value.decode("utf-8", "backslashreplace")  # type: ignore[union-attr]


def _to_bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate, from an escape in a JSON field
        return text.encode("utf-8", "backslashreplace")


def _structure(value: Any) -> str:
    """Write what is no text and no number: `__fields__` joined by commas, the rest as JSON."""
    if type(value) is FieldNames:
        return ",".join(value)
    return _compact(value)


class FieldNames(list[str]):
    """The value of `__fields__`: an array in jsonl and parquet, one cell with commas in text and csv."""


class _Text:
    def header(self) -> bytes:
        return b""

    def encode(self, rows: Sequence[Sequence[Any]]) -> bytes:
        return b"".join([b"\t".join(map(text_cell, row)) + b"\n" for row in rows])


class _Csv:
    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns

    def header(self) -> bytes:
        return self.encode([list(self._columns)])

    def encode(self, rows: Sequence[Sequence[Any]]) -> bytes:
        import csv

        text = io.StringIO()
        csv.writer(text, lineterminator="\r\n").writerows([[_csv_cell(value) for value in row] for row in rows])
        return text.getvalue().encode()


def _csv_cell(value: Any) -> Any:
    kind = type(value)
    if kind is bytes or kind is str:
        return shown(value)
    if value is None or kind is int or kind is float:
        return value
    return shown(_structure(value))


class _JsonLines:
    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = [shown(name) for name in columns]

    def header(self) -> bytes:
        return b""

    def encode(self, rows: Sequence[Sequence[Any]]) -> bytes:
        lines = []
        for row in rows:
            values = {
                name: shown(value) if type(value) in (bytes, str) else value
                for name, value in zip(self._columns, row, strict=True)
            }
            try:
                lines.append(_strict(values))
            except ValueError:
                lines.append(_strict(_finite(values)))
        lines.append("")
        # A lone surrogate inside a JSON value becomes the escape \\udxxx, which is what it was.
        return "\n".join(lines).encode("utf-8", "backslashreplace")


def _finite(value: Any) -> Any:
    """Replace the numbers that JSON does not have, at any depth."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return _NOT_FINITE.get(value, "NaN")
    return value
