"""Rows as text, JSON lines and CSV: each can be read back by others, one row is one line of text."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill.errors import SpecError
from tarmill.formats.rows import FieldNames, encode_contents, row_encoder, text_cell

CELLS = st.one_of(
    st.none(), st.binary(max_size=12), st.text(max_size=12), st.integers(), st.floats(), st.booleans(),
    st.lists(st.integers(), max_size=3),
)  # fmt: skip


def unescape(cell: bytes) -> bytes | None:
    """Read a cell as PostgreSQL's COPY does."""
    if cell == b"\\N":
        return None
    known = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"\\": b"\\"}

    def one(match: re.Match[bytes]) -> bytes:
        return bytes([int(match[1][1:], 16)]) if match[1][:1] == b"x" else known[match[1]]

    return re.sub(rb"\\(x[0-9a-f]{2}|.)", one, cell, flags=re.DOTALL)


@given(st.lists(st.binary(max_size=12), max_size=6))
def test_contents_come_back_from_text_byte_by_byte(values: list[bytes]) -> None:
    encoded = encode_contents(values)
    encoded.decode()
    assert [unescape(line) for line in encoded.split(b"\n")[:-1]] == values


@given(st.lists(st.one_of(st.binary(max_size=8), st.sampled_from([b"\\", b"\n", b"a\tb", b"\r", b"\xff", b""]))))
def test_the_fast_way_for_one_column_gives_the_bytes_of_the_general_one(values: list[bytes]) -> None:
    assert encode_contents(values) == row_encoder("text", ["a"]).encode([(value,) for value in values])


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_a_row_of_text_is_one_line_with_a_cell_for_each_column(rows: list[tuple[Any, Any]]) -> None:
    encoded = row_encoder("text", ["a", "b"]).encode(rows)
    lines = encoded.decode().split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(rows)
    assert all(line.count("\t") == 1 and "\r" not in line for line in lines)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, b"\\N"),
        ("\\N", b"\\\\N"),
        (b"a\nb", b"a\\nb"),
        ("größe\t", "größe\\t".encode()),
        (b"\xff\\", b"\\xff\\\\"),
        ("k\udcff", b"k\\xff"),
        (0.1, b"0.1"),
        (7, b"7"),
        (True, b"true"),
        ([1, "ä"], '[1,"ä"]'.encode()),
        ({"a": None}, b'{"a":null}'),
        (FieldNames(["cls", "jpg"]), b"cls,jpg"),
    ],
)
def test_a_cell_of_text(value: Any, cell: bytes) -> None:
    assert text_cell(value) == cell


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_json_lines_are_strict_json_with_the_columns_names(rows: list[tuple[Any, Any]]) -> None:
    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    lines = row_encoder("jsonl", ["a", "b:int"]).encode(rows).decode().split("\n")
    assert lines.pop() == ""
    found = [json.loads(line, parse_constant=refuse) for line in lines]
    for row, values in zip(rows, found, strict=True):
        assert list(values) == ["a", "b:int"]
        for before, after in zip(row, values.values(), strict=True):
            if isinstance(before, int | list) or before is None or (isinstance(before, str) and before.isascii()):
                assert after == before
            if isinstance(before, float):
                assert after == before or after == {math.inf: "Infinity", -math.inf: "-Infinity"}.get(before, "NaN")


def test_json_lines_show_what_is_no_utf8_and_keep_the_rest() -> None:
    row = (b"gr\xc3\xb6\xff", "k\udcff", [math.nan, "\ud800"])
    line = row_encoder("jsonl", ["b", "k", "l"]).encode([row])
    assert line == '{"b":"grö\\\\xff","k":"k\\\\xff","l":["NaN","\\ud800"]}\n'.encode()


@given(st.lists(st.lists(st.text(max_size=8), min_size=2, max_size=2), max_size=5))
def test_csv_is_read_back_by_the_csv_module(rows: list[list[str]]) -> None:
    encoder = row_encoder("csv", ["a", 'b "quoted", too'])
    text = (encoder.header() + encoder.encode(rows)).decode()
    assert list(csv.reader(io.StringIO(text, newline=""))) == [["a", 'b "quoted", too'], *rows]
    assert text.endswith("\r\n")


def test_csv_cells() -> None:
    row = (None, b"a,\xff", "x\ny", 1.5, True, FieldNames(["a", "b"]), {"k": 1})
    assert row_encoder("csv", list("abcdefg")).encode([row]) == b',"a,\\xff","x\ny",1.5,true,"a,b","{""k"":1}"\r\n'


@given(st.lists(st.tuples(CELLS), max_size=6), st.integers(0, 6), st.sampled_from(["text", "jsonl", "csv"]))
def test_rows_encoded_in_parts_are_the_rows_encoded_together(rows: list[tuple[Any]], cut: int, name: str) -> None:
    encoder = row_encoder(name, ["a"])
    assert encoder.encode(rows[:cut]) + encoder.encode(rows[cut:]) == encoder.encode(rows)


def test_an_unknown_format_is_refused_with_those_known() -> None:
    with pytest.raises(SpecError, match="text, jsonl, csv"):
        row_encoder("xml", ["a"])
