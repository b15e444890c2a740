"""From parsed columns to functions: record in, value out. The hot side of `columns`."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

from tarmill.errors import SampleError, UsageError
from tarmill.formats.columns import IMAGE_ACCESSORS, MISSING
from tarmill.formats.rows import FieldNames
from tarmill.formats.samples import Record

if TYPE_CHECKING:
    from tarmill.formats.columns import Column, Getter

RECORD_EXTRAS = frozenset({"__key__", "__url__"})
"""Entries of a record that are no fields; "key" is a third, where it is an alias of the key (a str)."""

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Documents:
    """What the columns of one job parse together: each field's contents are parsed once, however many columns ask.

    A parsed value is remembered for the contents it came from, by identity: bytes never change, and holding them keeps
    their identity from being given to others.
    """

    def __init__(self) -> None:
        self._shared: dict[tuple[str, tuple[str, ...]], Getter] = {}

    def parsed(self, what: str, fields: tuple[str, ...], parse: Callable[[bytes], Any]) -> Getter:
        """Give the getter for `parse(contents of the first field that is there)`, shared by all who name the same."""
        getter = self._shared.get((what, fields))
        if getter is None:
            getter = self._shared[what, fields] = _remembering(_contents(fields), parse)
        return getter


def compile_column(column: Column, documents: Documents) -> Getter:
    """Make the function record -> value for a column; see `Column.compile`."""
    if column.special == "__fields__":
        return _field_names
    if column.special:
        get, name = _text_of_sample(column.special), column.accessor
        return get if name is None else _guarded(column, get, _TEXT_CONVERTERS[name])
    if column.path is not None:
        get = _walk(column, documents.parsed("json", column.fields, json.loads), column.path)
        return get if column.accessor is None else _guarded(column, get, _JSON_CONVERTERS[column.accessor])
    if column.accessor is None:
        return _contents(column.fields)
    if column.accessor in IMAGE_ACCESSORS:
        header = documents.parsed("image", column.fields, _image_reader(column))
        return _image_part(column, header, ("width", "height", "format").index(column.accessor))
    return _guarded(column, _contents(column.fields), _BYTES_CONVERTERS[column.accessor])


def unparsable(column: str, record: Record, why: object) -> SampleError:
    """Build the error for a value that is not what its column asks for."""
    key, shard = record["__key__"], record["__url__"]
    return SampleError(
        f"sample {key!r} of {shard}: column {column}: {why}; leave such samples out with --on-error skip",
        shard=shard,
        key=key,
        column=column,
        reason="unparsable",
    )


def _contents(fields: tuple[str, ...]) -> Getter:
    """Get the bytes (or the size, when not loaded) of the first field that is there."""
    if fields == ("key",):
        # A record has its key under "key" too, as a str, when no field is called so.
        return lambda record: None if type(value := record.get("key")) is str else value
    if len(fields) == 1:
        (only,) = fields
        return lambda record: record.get(only)
    return _first_of(tuple(_contents((field,)) for field in fields))


def _first_of(getters: tuple[Getter, ...]) -> Getter:
    def value(record: Record) -> Any:
        for get in getters:
            found = get(record)
            if found is not None:
                return found
        return MISSING

    return value


def _field_names(record: Record) -> FieldNames:
    names = [name for name in record if name not in RECORD_EXTRAS]
    if type(record.get("key")) is str:
        names.remove("key")
    return FieldNames(sorted(names))


def _text_of_sample(name: str) -> Getter:
    return lambda record: record[name]


def _remembering(get: Getter, parse: Callable[[bytes], Any]) -> Getter:
    """Parse contents once while they stay the same object; an error is remembered too, as the value."""
    last: Any = None
    result: Any = None

    def value(record: Record) -> Any:
        nonlocal last, result
        contents = get(record)
        if contents is not last:
            last = contents
            if contents is None:
                result = MISSING
            else:
                try:
                    result = parse(contents)
                except (ValueError, RecursionError) as error:
                    result = _Failure(error)
        return result

    return value


class _Failure:
    """Why contents could not be parsed."""

    __slots__ = ("why",)

    def __init__(self, error: BaseException) -> None:
        self.why = "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _walk(column: Column, get: Getter, path: tuple[str | int, ...]) -> Getter:
    """Follow a JSON path from the parsed document."""
    steps: list[tuple[Any, Any]] = [(step, dict if isinstance(step, str) else list) for step in path]

    def value(record: Record) -> Any:
        node: Any = get(record)
        for step, container in steps:
            if type(node) is not container:
                if type(node) is _Failure:
                    raise unparsable(column.text, record, f"not JSON ({node.why})")
                return MISSING
            try:
                node = node[step]
            except (KeyError, IndexError):
                return MISSING
        return node

    return value


def _guarded(column: Column, get: Getter, convert: Callable[[Any], Any]) -> Getter:
    name = column.text

    def value(record: Record) -> Any:
        raw = get(record)
        if raw is None:
            return MISSING
        try:
            return convert(raw)
        except (ValueError, OverflowError) as error:
            raise unparsable(name, record, error) from None

    return value


def _number(kind: type[int] | type[float]) -> Callable[[Any], Any]:
    """Convert bytes or str as Python does, but for the underscores that it allows between digits."""

    def convert(raw: Any) -> Any:
        if (b"_" if type(raw) is bytes else "_") not in raw and raw.isascii():
            try:
                return kind(raw)
            except ValueError:
                pass  # Python's message may hold all of a long text
        raise ValueError(f"{raw[:40]!r} is no {kind.__name__}")

    return convert


def _json_number(kind: type[int] | type[float]) -> Callable[[Any], Any]:
    from_text = _number(kind)

    def convert(value: Any) -> Any:
        if type(value) is str:
            return from_text(value)
        if type(value) not in (int, float) or (kind is int and value != (whole := int(value))):
            raise ValueError(f"{_compact(value)[:40]} is no {kind.__name__}")
        return float(value) if kind is float else whole

    return convert


def _as_text(value: Any) -> str:
    return value if type(value) is str else _compact(value)


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate from a JSON escape
        return text.encode("utf-8", "surrogatepass")


def _sha256(contents: bytes) -> str:
    from hashlib import sha256

    return sha256(contents).hexdigest()


def _length(value: Any) -> int:
    return value if type(value) is int else len(value)


_BYTES_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "bytes": _length,
    "sha256": _sha256,
    "text": lambda raw: raw.decode(),
    "int": _number(int),
    "float": _number(float),
}
_TEXT_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "bytes": lambda text: len(_utf8(text)),
    "sha256": lambda text: _sha256(_utf8(text)),
    "text": str,
    "int": _number(int),
    "float": _number(float),
}
_JSON_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "bytes": lambda value: len(_utf8(_as_text(value))),
    "sha256": lambda value: _sha256(_utf8(_as_text(value))),
    "text": _as_text,
    "int": _json_number(int),
    "float": _json_number(float),
}


def _image_part(column: Column, get: Getter, part: int) -> Getter:
    def value(record: Record) -> Any:
        header = get(record)
        if type(header) is _Failure:
            raise unparsable(column.text, record, f"no image that Pillow can read ({header.why})")
        return MISSING if header is None else header[part]

    return value


def _image_reader(column: Column) -> Callable[[bytes], tuple[int, int, str]]:
    """Make the function contents -> (width, height, format). Raises UsageError without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise UsageError(
            f"column {column.text} reads image headers with Pillow, which is not installed; "
            "install it with: pip install 'tarmill[images]'"
        ) from None

    def header(contents: bytes) -> tuple[int, int, str]:
        # Only the header is read, so the guard against images that explode on decoding would warn without need.
        guard, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(BytesIO(contents)) as image:
                return image.width, image.height, image.format or ""
        except Exception as error:  # plugins raise what they like: OSError, SyntaxError, struct.error, KeyError
            why = "unknown format" if type(error).__name__ == "UnidentifiedImageError" else str(error)
            raise ValueError(why) from None
        finally:
            Image.MAX_IMAGE_PIXELS = guard

    return header
