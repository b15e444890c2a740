"""Lists of what to pack: rows of csv, tsv, jsonl and parquet, whose columns are values, or paths and URLs of fields."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tarmill import storage
from tarmill.errors import SpecError, StorageError, TarmillError, UsageError
from tarmill.jobs.upload_collect import Collector
from tarmill.jobs.upload_look import problem_of
from tarmill.planning.tasks import Shard
from tarmill.planning.upload_listing import Entry, Part
from tarmill.planning.upload_names import fault_of_field, fault_of_key
from tarmill.spec import UploadSpec
from tarmill.storage.file_facts import raise_os_error
from tarmill.storage.urls import local_path

DEFAULT_KEY = "__key__"
_MAX_CSV_FIELD = (1 << 31) - 1
_ABSENT = object()

Row = dict[str, Any]

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class RowError(Exception):
    """A row that cannot be read; the text says why."""


def find_lists(spec: UploadSpec) -> list[Shard]:
    """Pin each list to the version that is there now, and check what can be checked before.

    Raises:
        UsageError: a source is no list, or a field cannot be named so.
        NotFoundError: it is not there.
    """
    for name in spec.columns:
        if (fault := fault_of_field(name)) is not None:
            raise SpecError(fault[1], field="columns", value=name)
    found = []
    for source in spec.sources:
        if _kind_of(source) is None:
            raise UsageError(
                f"source {storage.mask(source)!r} is no list; with --column expected files that end in .csv, .tsv, "
                ".jsonl or .parquet"
            )
        info = storage.stat(source)
        found.append(Shard(source, storage.mask(source), info.size_bytes, info.version))
    return found


def entries_of(spec: UploadSpec, lists: list[Shard], collector: Collector) -> Iterator[Entry]:
    """Give a sample for each row of all lists, in their order."""
    number = 0
    for shard in lists:
        folder = shard.url[: shard.url.partition("?")[0].rfind("/") + 1]
        for line, row in _rows(spec, shard):
            where = f"{shard.label}, row {line}"
            key = _key(spec, row, number)
            number += 1
            try:
                if isinstance(row, RowError):
                    raise TarmillError(f"{where}: {row}", reason="bad-row")
                if (fault := fault_of_key(key)) is not None:
                    raise TarmillError(f"{where}: {fault[1]}", reason=fault[0])
                parts = [part for name in sorted(spec.columns) if (part := _part(spec, row, name, folder)) is not None]
                if not parts:
                    raise TarmillError("it has no field", reason="no-fields")
            except _Missing as missing:
                message = f"{where} has no value for the column {missing.column!r}"
                if spec.missing == "skip":
                    collector.leave_out(key, "missing", message)
                    continue
                collector.drop(key, "missing-value", f"{message}; --missing skip|omit leaves the row or the field out")
                continue
            except TarmillError as error:
                reason, message = problem_of(error, "")
                reason = "not-found" if reason == "vanished" else reason  # nobody has seen it
                collector.drop(key, reason, message if message.startswith(where) else f"{where}: {message}")
                continue
            collector.found.empty += sum(part[2] == 0 and part[1] is not None for part in parts)
            yield key, -1, tuple(parts)


class _Missing(Exception):
    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


def _key(spec: UploadSpec, row: Row | RowError, number: int) -> str:
    column = spec.key_column or DEFAULT_KEY
    value = _ABSENT if isinstance(row, RowError) else _lookup(row, column)
    if value is _ABSENT and not spec.key_column:
        return f"{spec.key_prefix}{number:09d}"
    if value is _ABSENT or value is None:
        return ""
    return spec.key_prefix + _as_bytes(value).decode("utf-8", "surrogateescape")


def _part(spec: UploadSpec, row: Row, name: str, folder: str) -> Part | None:
    """Give one field of a row; None where it is missing, and that is allowed."""
    column = spec.columns[name]
    is_place = column.startswith("@")
    value = _lookup(row, column.removeprefix("@"))
    if value is _ABSENT or value is None or (is_place and value in ("", b"")):
        if spec.missing == "omit":
            return None
        raise _Missing(column.removeprefix("@"))
    data = _as_bytes(value)
    if not is_place:
        return name, None, len(data), data, None
    place = data.decode("utf-8", "surrogateescape")
    if storage.scheme_of(place) == "file" and "://" not in place and not place.startswith("/"):
        place = storage.join_url(folder, place) if folder else place
    if storage.scheme_of(place) != "file":
        if place == "-":
            raise TarmillError("'-' is no file of a list", reason="bad-url")
        storage.store_for(place)
        return name, place, -1, "", None
    path = os.path.join(os.getcwd(), local_path(place))
    try:
        found = os.stat(path)
    except OSError as error:
        raise_os_error(error, path, "looking at")
    if found.st_mode & 0o170000 != 0o100000:
        raise TarmillError(f"{path} is no regular file", reason="no-file")
    return name, path, found.st_size, found.st_mtime_ns, found.st_ino


def _lookup(row: Row, column: str) -> Any:
    """Find a column by its name, or by names with dots between for what lies inside."""
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        if not isinstance(value, dict) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bool | int | float | dict | list):
        return _compact(value).encode("utf-8", "surrogateescape")
    return str(value).encode()


# ---- rows of each kind of list --------------------------------------------------------------------------------------


def _kind_of(source: str) -> str | None:
    name = source.partition("?")[0].lower() if storage.scheme_of(source) != "file" else source.lower()
    return next((kind for kind in ("csv", "tsv", "jsonl", "ndjson", "parquet") if name.endswith("." + kind)), None)


def _rows(spec: UploadSpec, shard: Shard) -> Iterator[tuple[int, Row | RowError]]:
    """Give (number from 1, row) of a list."""
    kind = _kind_of(shard.url)
    if kind == "parquet":
        rows: Iterator[Row | RowError] = _parquet_rows(spec, shard)
    elif kind in ("csv", "tsv"):
        rows = _csv_rows(spec, shard, "," if kind == "csv" else "\t")
    else:
        rows = _json_rows(shard)
    yield from enumerate(rows, 1)


@contextmanager
def _text(shard: Shard) -> Iterator[Any]:
    import io

    with storage.open_read(shard.url, version=shard.version) as stream:
        buffered = io.BufferedReader(stream, 1 << 18)
        yield io.TextIOWrapper(buffered, "utf-8-sig", "surrogateescape", newline="")
        buffered.detach()


def _csv_rows(spec: UploadSpec, shard: Shard, delimiter: str) -> Iterator[Row | RowError]:
    import csv

    csv.field_size_limit(min(spec.max_member, _MAX_CSV_FIELD))
    with _text(shard) as text:
        reader = csv.reader(text, delimiter=delimiter)
        try:
            header = next(reader, None)
            if header is None:
                raise UsageError(f"list {shard.label} is empty; expected a first line with the names of its columns")
            _check_columns(spec, header, shard.label)
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    yield RowError(f"{len(values)} values where the first line names {len(header)} columns")
                else:
                    yield dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise StorageError(f"list {shard.label}, line {reader.line_num}: {error}", url=shard.label) from None


def _json_rows(shard: Shard) -> Iterator[Row | RowError]:
    with _text(shard) as text:
        for line in text:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield RowError(f"no JSON: {error}")
                continue
            yield row if isinstance(row, dict) else RowError(f"{type(row).__name__} where an object was expected")


def _parquet_rows(spec: UploadSpec, shard: Shard) -> Iterator[Row | RowError]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            "lists in parquet need pyarrow, which is not installed; install it with: pip install 'tarmill[parquet]'"
        ) from None
    wanted = [column.removeprefix("@") for column in spec.columns.values()] + [spec.key_column or DEFAULT_KEY]
    with storage.open_read(shard.url, version=shard.version) as stream:
        source = stream if stream.seekable() else pyarrow.BufferReader(stream.readall())
        try:
            file = parquet.ParquetFile(source)
            names = file.schema_arrow.names
            _check_columns(spec, names, shard.label)
            tops = {name if name in names else name.partition(".")[0] for name in wanted}
            for batch in file.iter_batches(1024, columns=sorted(tops & set(names))):
                yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            raise StorageError(f"list {shard.label}: {error}; expected a parquet file", url=shard.label) from None


def _check_columns(spec: UploadSpec, names: list[str], label: str) -> None:
    """Refuse columns that a list does not have."""
    wanted = [column.removeprefix("@") for column in spec.columns.values()]
    for column in [*wanted, *([spec.key_column] if spec.key_column else [])]:
        if column not in names and column.partition(".")[0] not in names:
            raise UsageError(
                f"list {label} has no column {column!r}; it has {', '.join(map(repr, names[:20]))}"
                + (", ..." if len(names) > 20 else "")
            )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"list {label} has two columns {twice!r}; give each a name of its own")
