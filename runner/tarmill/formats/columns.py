"""The column language of `htextract -f`: what to take from a sample, and in which type.

    columns  = column *( "," column )
    column   = source [ ":" path ] [ ":" accessor ]
    source   = "__key__" / "__url__" / "__fields__" / field *( "|" field )    the first field that is present
    field    = bare / quoted                  bare: no blank and none of  , : | `   (dots are fine: seg.png)
    path     = [ "." ] step *( "." bare-step / "." quoted / "[" integer "]" )  into a JSON field; [-1] is the last item
    quoted   = "`" any characters, a backtick doubled "`"
    accessor = "bytes" / "sha256" / "text" / "int" / "float" / "width" / "height" / "format"

After the first ":" an accessor's name is the accessor, anything else is a path: `meta.json:caption.lang`,
`meta.json:score:float`, `jpg|png:width`. A JSON key that is called like an accessor takes a leading dot or
backticks: `meta.json:.width`.

| column | value | kind |
|---|---|---|
| `FIELD` | its bytes; rows show them as UTF-8, with a backslash escape for each byte that is none | binary |
| `FIELD:text` | its text; not UTF-8 = unparsable | text |
| `FIELD:int`, `:float` | its text as a number, blanks around it allowed | int, float |
| `FIELD:bytes` | its length in bytes; the contents are not read | int |
| `FIELD:sha256` | hex digest of the contents | text |
| `FIELD:width`, `:height` | pixels as stored, from the image's header, by Pillow | int |
| `FIELD:format` | Pillow's name of the format, such as JPEG | text |
| `FIELD:PATH` | the JSON value: text, number, true, false, list, object; null counts as missing | json |
| `FIELD:PATH:int` ... | `:bytes`, `:sha256`: of the text, or of the compact JSON of what is no text | as above |
| `__key__`, `__url__` | the sample's key, the shard's URL; accessors but the image ones work on them | text |
| `__fields__` | the sample's field names, sorted | list |

A value is *missing* (`MISSING`) when no such field is there or the path leads nowhere. A value that is there and cannot
be read as asked raises `SampleError` with reason "unparsable".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal

from tarmill.errors import UsageError
from tarmill.formats.samples import Record
from tarmill.values import valueclass

if TYPE_CHECKING:
    from tarmill.formats.column_values import Documents

MISSING: Final = None
"""The value of a column that the sample does not have."""

Kind = Literal["binary", "text", "int", "float", "json", "list"]
Getter = Callable[[Record], Any]

SPECIALS = ("__key__", "__url__", "__fields__")
IMAGE_ACCESSORS = frozenset({"width", "height", "format"})
ACCESSOR_KINDS: dict[str, Kind] = {
    "bytes": "int",
    "sha256": "text",
    "text": "text",
    "int": "int",
    "float": "float",
    "width": "int",
    "height": "int",
    "format": "text",
}
EXAMPLE = "-f __key__,cls:int,meta.json:caption.lang"
MAX_PATH_STEPS = 64

# Kept as text: `re` compiles each when it is first used, and remembers it.
_QUOTED = r"`((?:[^`]|``)*)`"
_FIELD = r"[^\s,:|`]+"
_PATH_NAME = r"[^\s,:|`.\[\]]+"
_PATH_INDEX = r"\[(-?[0-9]{1,9})\]"
_BLANKS = r"\s*"


@valueclass
class Column:
    """One column, parsed: what it needs from the reader, and a function that takes it from a record."""

    text: str
    """As it was written; the column's name in headers and JSON lines."""
    fields: tuple[str, ...]
    """The alternatives, first choice first; empty for `__key__`, `__url__`, `__fields__`."""
    special: str = ""
    path: tuple[str | int, ...] | None = None
    accessor: str | None = None

    @property
    def kind(self) -> Kind:
        """The type of the column's values."""
        if self.accessor is not None:
            return ACCESSOR_KINDS[self.accessor]
        if self.special:
            return "list" if self.special == "__fields__" else "text"
        return "binary" if self.path is None else "json"

    @property
    def needs(self) -> frozenset[str]:
        """The fields whose contents are needed."""
        return frozenset() if self.only_length else frozenset(self.fields)

    @property
    def needs_sizes(self) -> bool:
        """Whether names and sizes of fields are needed that are not loaded (`ReadOptions.sizes`)."""
        return self.only_length or self.special == "__fields__"

    @property
    def only_length(self) -> bool:
        """Whether the column asks for a field's length, so that its contents need not be read."""
        return bool(self.fields) and self.accessor == "bytes" and self.path is None

    def compile(self, documents: Documents | None = None) -> Getter:
        """Make the function record -> value, where `MISSING` is a value too.

        Columns compiled with the same `documents` share what they parse: each JSON field once per record, each image
        header once. The function raises SampleError (reason "unparsable") for a value that is not what was asked for;
        this method raises UsageError when Pillow is needed and not installed.
        """
        from tarmill.formats.column_values import Documents, compile_column

        return compile_column(self, documents or Documents())


def parse_columns(texts: Iterable[str]) -> tuple[Column, ...]:
    """Parse what `-f` was given: each text holds one column or several with commas between them.

    Raises UsageError with a mark under the place that cannot be read, or when a column is named twice.
    """
    columns: list[Column] = []
    for text in texts:
        parser = _Parser(text, text, 0)
        while True:
            parser.skip_blanks()
            columns.append(parser.column())
            parser.skip_blanks()
            if parser.at_end:
                break
            if not parser.accept(","):
                parser.fail("expected ',' and another column, or the end")
    names = [column.text for column in columns]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UsageError(f"column {doubled[0]!r} is asked for twice; name each column once", column=doubled[0])
    return tuple(columns)


def parse_column(text: str, whole: str | None = None, offset: int = 0) -> Column:
    """Parse a single column; errors point into `whole`, in which it stands at `offset`.

    Raises UsageError.
    """
    parser = _Parser(text, text if whole is None else whole, offset)
    column = parser.column()
    if not parser.at_end:
        parser.fail("expected the end of the column here")
    return column


def pointed(text: str, position: int, message: str, example: str) -> UsageError:
    """Build the error for a place in a text: the message, the text, a caret under the place, and an example."""
    start = max(0, position - 60)
    shown = re.sub(r"\s", " ", text[start : position + 40])
    return UsageError(
        f"{message}\n  {shown}\n  {' ' * (position - start)}^\nfor example: {example}", text=text, position=position
    )


class _Parser:
    """Recursive descent over one text; `whole` and `offset` are for the marks in errors."""

    def __init__(self, text: str, whole: str, offset: int) -> None:
        self._text = text
        self._whole = whole
        self._offset = offset
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._text)

    def fail(self, message: str, at: int | None = None) -> None:
        raise self._error(message, at)

    def _error(self, message: str, at: int | None = None) -> UsageError:
        place = self._at if at is None else at
        found = repr(self._text[place]) if place < len(self._text) else "the end"
        return pointed(self._whole, self._offset + place, f"{message}, found {found}", EXAMPLE)

    def skip_blanks(self) -> None:
        self._take(_BLANKS)

    def accept(self, literal: str) -> bool:
        if self._text.startswith(literal, self._at):
            self._at += len(literal)
            return True
        return False

    def _take(self, pattern: str) -> str | None:
        match = re.compile(pattern).match(self._text, self._at)
        if match is None:
            return None
        self._at = match.end()
        return match[1] if match.re.groups else match[0]

    def _name(self, bare: str) -> tuple[str, bool] | None:
        """Take a bare or a quoted name; the flag tells that it was quoted."""
        quoted = self._take(_QUOTED)
        if quoted is not None:
            return quoted.replace("``", "`"), True
        if self._text.startswith("`", self._at):
            self.fail("this backtick has no partner; expected `a name in backticks`")
        plain = self._take(bare)
        return None if plain is None else (plain, False)

    def column(self) -> Column:
        start = self._at
        fields: list[str] = []
        special = ""
        while True:
            at = self._at
            name = self._name(_FIELD)
            if name is None:
                raise self._error("expected the name of a field, or __key__, __url__, __fields__")
            field, quoted = name
            if not quoted and field.startswith("__") and field.endswith("__"):
                if field not in SPECIALS or fields:
                    self.fail(f"{field} cannot stand here; a field with that name is written `{field}`, and", at)
                special = field
                break
            fields.append(field)
            if not self.accept("|"):
                break
        path, accessor = self._rest(special, fields)
        return Column(self._text[start : self._at], tuple(fields), special, path, accessor)

    def _rest(self, special: str, fields: list[str]) -> tuple[tuple[str | int, ...] | None, str | None]:
        path: tuple[str | int, ...] | None = None
        if not self.accept(":"):
            return None, None
        accessor = self._accessor()
        if accessor is None:
            if special:
                self.fail(f"expected {_one_of(ACCESSOR_KINDS)} after {special}:")
            path = self._path()
            if not self.accept(":"):
                return path, None
            accessor = self._accessor()
            if accessor is None:
                self.fail(f"expected {_one_of(ACCESSOR_KINDS)} after the JSON path")
        at = self._at - len(accessor or "")
        if special == "__fields__":
            self.fail("__fields__ is a list and takes no accessor", at)
        if accessor in IMAGE_ACCESSORS and (special or path is not None or any(map(_is_json, fields))):
            cure = "" if special else f"; the JSON key is written {fields[0]}:.{accessor}, and"
            self.fail(f":{accessor} reads an image's header, and this is no image{cure}", at)
        return path, accessor

    def _accessor(self) -> str | None:
        """Take an accessor's name when one stands here and nothing of a path follows."""
        match = re.compile(_PATH_NAME).match(self._text, self._at)
        if match is None or match[0] not in ACCESSOR_KINDS or self._text[match.end() : match.end() + 1] in (".", "["):
            return None
        self._at = match.end()
        return match[0]

    def _path(self) -> tuple[str | int, ...]:
        steps: list[str | int] = []
        after_dot = True
        self.accept(".")
        while True:
            index = self._take(_PATH_INDEX)
            if index is not None:
                steps.append(int(index))
            elif after_dot:
                name = self._name(_PATH_NAME)
                if name is None:
                    raise self._error("expected a JSON key, or an index such as [0]")
                steps.append(name[0])
            else:
                return tuple(steps)
            if len(steps) > MAX_PATH_STEPS:
                self.fail(f"a JSON path has at most {MAX_PATH_STEPS} steps; this is one more")
            after_dot = self.accept(".")


def _is_json(field: str) -> bool:
    return field == "json" or field.endswith(".json")


def _one_of(names: Iterable[str]) -> str:
    return "one of " + ", ".join(names)
