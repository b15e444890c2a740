"""The language of `htsort -k` and `--group-by`: by what samples are sorted, in which type and direction.

    keys      = key *( "," key )                              the first counts most
    key       = source [ ":" path ] [ ":" type ] [ ":" direction ]
    source    = "script" / "__key__" / "__url__" / field *( "|" field )       field, path: as in `columns`
    type      = "str" / "int" / "float" / "bytes" / "natural"
    direction = "asc" / "desc"                                asc by default

Examples: `meta.json:score:float:desc`, `__key__:desc`, `cls:int`, `name.txt:natural`, `script:int:desc`, `script`.
The bare word `script` is what the script's function `sort_key(record)` returns; a field with that name is written in
backticks. A JSON key that is called like a type, a direction or an accessor of columns takes a leading dot or
backticks: `meta.json:.int`.

| type | order |
|---|---|
| `str` | code points; contents that are no UTF-8 are unparsable; the default for `__key__` and `__url__` |
| `bytes` | bytes; the default for a field's contents. After a path: of the text, or of the compact JSON |
| `int` | numbers; the contents as `columns` reads them (`:int`), up to 100 bytes of magnitude |
| `float` | numbers; -0 equals 0, nan stands behind inf |
| `natural` | text in which runs of digits compare as numbers: a9, a10, a010, a10b; fewer leading zeros break a tie |
| none, with a path | false, true, numbers (int and float exactly, nan last), texts; lists and objects are unparsable |
| none, `script` | numbers (True is 1), texts, bytes, tuples and lists item by item; None, also as an item, is missing |

What is missing (no such field, nothing at the path, null) or unparsable goes before all others (`first`), behind them
(`last`; neither depends on desc), is an error, or is left out (`drop`). Samples of equal keys keep their order.
A name that is no UTF-8 is sorted by its bytes. How values become bytes is told in `sort_values`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from tarmill.errors import SampleError, ScriptError, SpecError, UsageError
from tarmill.formats.columns import ACCESSOR_KINDS, SPECIALS, Column, parse_column, pointed
from tarmill.formats.samples import Record
from tarmill.formats.sort_values import (
    END,
    FIRST,
    INVERT,
    LAST,
    PRESENT,
    NoEncoding,
    compile_key,
    text_bytes,
    utf8_of_name,
)
from tarmill.values import replace, valueclass

if TYPE_CHECKING:
    from tarmill.formats.column_values import Documents

SCRIPT = "script"
TYPES = ("str", "int", "float", "bytes", "natural")
DIRECTIONS = ("asc", "desc")
MISSING_CHOICES = ("first", "last", "error", "drop")
EXAMPLE = "-k meta.json:score:float:desc,__key__"

_NEXT = "one of " + ", ".join(TYPES + DIRECTIONS)
_ACCESSORS = {"str": "text", "natural": "text", "int": "int", "float": "float"}
_NAME = PRESENT + b"%b" + END
_PIECE = re.compile(r"`(?:[^`]|``)*`|`.*|[^`:,|]+|[:,|]", re.DOTALL)


@valueclass
class SortKey:
    """One sort key, parsed."""

    text: str
    """As it was written."""
    column: Column | None
    """What it takes from a sample; None for what the script returns."""
    kind: str
    """A type of `TYPES`; "json" for a JSON path and "script" for the script without a type."""
    descending: bool = False


def parse_sort_keys(texts: Iterable[str]) -> tuple[SortKey, ...]:
    """Parse what `-k` was given: each text holds one key or several with commas between them.

    Raises UsageError with a mark under the place that cannot be read, or under a key that is named twice.
    """
    keys: list[SortKey] = []
    named: dict[object, str] = {}
    for text in texts:
        for spans in _keys_of(text):
            key = _parse_key(text, spans)
            column = key.column
            what = (column and (column.fields, column.special, column.path), key.kind)
            if what in named:
                message = (
                    f"sort key {named[what]} is named twice, and the second one decides nothing; name each key once"
                )
                raise pointed(text, spans[0][0], message, EXAMPLE)
            named[what] = key.text
            keys.append(key)
    return tuple(keys)


def encode_name(stem: bytes) -> bytes:
    """Encode a key that is given as raw bytes: what `encode` gives for the sort key `__key__` and that sample."""
    if 0 in stem:
        return PRESENT + text_bytes(stem)
    return _NAME % stem


class KeyEncoder:
    """Turns records into bytes whose memcmp order is the order of their sort keys (numpy's `S` arrays keep it)."""

    needs: frozenset[str] | None
    """Fields whose contents are needed; None for all, when a script is among the keys."""
    plain_key: bool
    """Whether the only key is `__key__`, as str and ascending, so that `encode_name` gives the same."""
    placed: Counter[str]
    """Samples that were placed first or last, by reason: "missing-key", "unparsable-key"; each sample once."""
    dropped: Counter[str]
    """Samples for which `encode` gave None, by the same reasons."""
    encode: Callable[[Record], bytes | None]
    """Give a record's encoding, or None when the sample is to be dropped.

    Raises SampleError (reason "missing-key" or "unparsable-key") when missing is "error", ScriptError (reason
    "bad-result") when the script's value is none that can be sorted; what the script itself raises passes through.
    """

    def __init__(
        self,
        keys: Sequence[SortKey],
        missing: str,
        script: Callable[[Record], Any] | None = None,
        documents: Documents | None = None,
    ) -> None:
        """Compile the keys; encoders and columns with the same `documents` parse each JSON field once.

        Raises UsageError when a key asks for a script and there is none.
        """
        from tarmill.formats.column_values import Documents

        if missing not in MISSING_CHOICES:
            raise SpecError(
                f"missing is {missing!r}; expected one of {', '.join(MISSING_CHOICES)}", field="missing", value=missing
            )
        by_script = [key.text for key in keys if key.column is None]
        if by_script and script is None:
            raise UsageError(
                f"sort key {by_script[0]} asks for a script and none is given; expected --script FILE with "
                "def sort_key(record): ...",
                key=by_script[0],
            )
        columns = [key.column for key in keys if key.column is not None]
        self.needs = None if by_script else frozenset(name for column in columns for name in column.needs)
        self.plain_key = [(key.column and key.column.special, key.kind, key.descending) for key in keys] == [
            ("__key__", "str", False)
        ]
        self.placed = Counter()
        self.dropped = Counter()
        self._counts = self.dropped if missing == "drop" else self.placed
        self._is_error = missing == "error"
        self._mark = {"first": FIRST, "last": LAST}.get(missing)
        shared = documents or Documents()
        self._parts = [(key, *compile_key(key, shared, script)) for key in keys]
        if self.plain_key:
            self.encode = _encode_key
        else:
            self.encode = self._one() if len(keys) == 1 else self._several()

    def value(self, record: Record) -> Any:
        """Give the key as a typed value, for `reduce_samples(key, ...)`; a tuple when there are several keys.

        What is missing or unparsable is None. Nothing is counted. Raises ScriptError as `encode` does.
        """
        values: list[Any] = []
        for _, get, body in self._parts:
            try:
                value = get(record)
                if value is not None:
                    body(value)  # refuses what `encode` would not take, so that a group and its value agree
            except (SampleError, NoEncoding) as error:
                _check_result(record, error)
                value = None
            values.append(value)
        return values[0] if len(values) == 1 else tuple(values)

    def _one(self) -> Callable[[Record], bytes | None]:
        ((key, get, body),) = self._parts
        descending = key.descending

        def encode(record: Record) -> bytes | None:
            try:
                value = get(record)
                if value is not None:
                    found = body(value)
                    return PRESENT + (found.translate(INVERT) if descending else found)
            except (SampleError, NoEncoding) as error:
                reason = self._reason(record, key, error)
            else:
                reason = self._reason(record, key, None)
            self._counts[reason] += 1
            return self._mark

        return encode

    def _several(self) -> Callable[[Record], bytes | None]:
        parts = [(key, get, body, key.descending) for key, get, body in self._parts]
        mark = self._mark

        def encode(record: Record) -> bytes | None:
            found: list[bytes] = []
            reasons: list[str] = []
            for key, get, body, descending in parts:
                try:
                    value = get(record)
                    if value is not None:
                        encoded = body(value)
                        found += (PRESENT, encoded.translate(INVERT) if descending else encoded)
                        continue
                except (SampleError, NoEncoding) as error:
                    reasons.append(self._reason(record, key, error))
                else:
                    reasons.append(self._reason(record, key, None))
                if mark is None:
                    break
                found.append(mark)
            if reasons:
                self._counts[reasons[0]] += 1
                if mark is None:
                    return None
            return b"".join(found)

        return encode

    def _reason(self, record: Record, key: SortKey, error: SampleError | NoEncoding | None) -> str:
        """Tell why there is no value; raises when that is an error."""
        _check_result(record, error)
        missing = error is None or (isinstance(error, NoEncoding) and error.reason == "missing-key")
        reason = "missing-key" if missing else "unparsable-key"
        if self._is_error:
            name, shard = record["__key__"], record["__url__"]
            raise SampleError(
                f"sample {name!r} of {shard}: sort key {key.text}: {_why(record, key, error)}; place such samples or "
                "leave them out with --missing first|last|drop",
                shard=shard,
                key=name,
                sort_key=key.text,
                reason=reason,
            ) from None
        return reason


def _encode_key(record: Record) -> bytes:
    name = record["__key__"]
    if "\0" not in name:
        try:
            return f"\x02{name}\x00\x01".encode()  # `_NAME % name`, at half its price
        except UnicodeEncodeError:
            pass
    return encode_name(utf8_of_name(name))


def _check_result(record: Record, error: SampleError | NoEncoding | None) -> None:
    """Raise ScriptError when the script gave what no sort key can be."""
    if isinstance(error, NoEncoding) and error.reason == "bad-result":
        name, shard = record["__key__"], record["__url__"]
        raise ScriptError(
            f"sample {name!r} of {shard}: {error.why}; mend the script", key=name, shard=shard, reason=error.reason
        ) from None


def _why(record: Record, key: SortKey, error: SampleError | NoEncoding | None) -> str:
    """Tell what was found instead of a value."""
    column = key.column
    if isinstance(error, NoEncoding):
        return error.why
    if error is not None:
        # The column's own message, without the sample, which stands before it here, and without the other cure.
        start = f"sample {record['__key__']!r} of {record['__url__']}: column {key.text}: "
        return error.message.removeprefix(start).removesuffix("; leave such samples out with --on-error skip")
    if column is None:
        return "sort_key gave None"
    if column.path is not None and any(isinstance(record.get(name), bytes) for name in column.fields):
        return "found nothing at its JSON path, or null"
    return f"found no field {' or '.join(column.fields)}"


def _keys_of(text: str) -> Iterator[list[tuple[int, int]]]:
    """Cut a text at commas, and each key at its colons; gives begin and end of the parts of each key."""
    spans: list[tuple[int, int]] = []
    begin = 0
    for match in _PIECE.finditer(text):
        if match[0] in (":", ","):
            spans.append((begin, match.start()))
            begin = match.end()
            if match[0] == ",":
                yield _trimmed(text, spans)
                spans = []
    spans.append((begin, len(text)))
    yield _trimmed(text, spans)


def _trimmed(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Leave out the blanks around a key."""
    begin, end = spans[0]
    spans[0] = (end - len(text[begin:end].lstrip()), end)
    begin, end = spans[-1]
    spans[-1] = (begin, begin + len(text[begin:end].rstrip()))
    return spans


def _parse_key(text: str, spans: list[tuple[int, int]]) -> SortKey:
    whole = text[spans[0][0] : spans[-1][1]]
    words = [text[begin:end] for begin, end in spans]
    descending = False
    kind = ""
    if len(words) > 1 and words[-1] in DIRECTIONS:
        descending = words.pop() == "desc"
    if len(words) > 1 and words[-1] in TYPES:
        kind = words.pop()

    def fail(part: int, message: str) -> NoReturn:
        begin, end = spans[part]
        found = repr(text[begin:end]) if begin < end else repr(text[end]) if end < len(text) else "the end"
        raise pointed(text, begin, f"{message}, found {found}", EXAMPLE)

    is_special = words[0] in SPECIALS
    if not words[0]:
        fail(0, "expected the name of a field, or __key__, __url__, script")
    if words[0] == "__fields__":
        fail(0, "__fields__ is a list and has no order; expected the name of a field, or __key__, __url__, script")
    if words[0] != SCRIPT and SCRIPT in _PIECE.findall(words[0]):
        fail(0, f"{SCRIPT} has no alternatives; a field with that name is written `{SCRIPT}`; expected names of fields")
    if "" in words[1:]:
        part = words.index("", 1)
        fail(part, f"expected {'a JSON path, or ' * (part == 1 and not is_special and words[0] != SCRIPT)}{_NEXT}")
    for part, word in enumerate(words[1:], 1):
        what = "direction" if word in DIRECTIONS else "type" if word in TYPES else ""
        if what:
            order = "path, type, direction, each once"
            fail(part, f"this {what} is out of place ({order}); a JSON key called {word} is written .{word}")
        if word in ACCESSOR_KINDS:
            fail(part, f"{word} is no type to sort by; a JSON key called {word} is written .{word}; expected {_NEXT}")
        if part > 1 or is_special or words[0] == SCRIPT:
            fail(part, f"expected {_NEXT}, and no {'further ' * (part > 1)}JSON path")
    if words[0] == SCRIPT:
        return SortKey(whole, None, kind or SCRIPT, descending)
    begin, end = spans[0][0], spans[len(words) - 1][1]
    try:
        column = parse_column(text[begin:end], text, begin)
    except UsageError as error:
        message = error.message.partition("\n")[0].replace("__fields__", SCRIPT)
        raise pointed(text, error.position, message, EXAMPLE) from None
    kind = kind or ("str" if is_special else "bytes" if column.path is None else "json")
    accessor = _ACCESSORS.get(kind)
    if kind == "bytes" and column.path is not None:
        accessor = "text"
    if is_special and accessor == "text":
        accessor = None
    return SortKey(whole, replace(column, text=whole, accessor=accessor), kind, descending)
