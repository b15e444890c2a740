"""From sort keys to bytes whose memcmp order is the order of the values. The hot side of `sort_keys`.

A key's component is a class byte and, when the value is there, the value's encoding:

| class | means | followed by |
|---|---|---|
| 0x01 | missing or unparsable, `--missing first` | nothing |
| 0x02 | a value | its encoding; with `desc` all its bits inverted, the class byte never |
| 0x03 | missing or unparsable, `--missing last` | nothing |

No component is the beginning of another one (this survives inversion). Hence components that are joined compare one
after the other, and any two different encodings differ at a byte that both have: padding with NULs, or stripping them
as numpy's `S` arrays do, changes neither order nor equality.

| value | encoding |
|---|---|
| text, bytes | UTF-8 or the bytes, NUL as `00 FF`, end `00 01`; byte order of UTF-8 is code point order |
| int | 0x80 + length of the magnitude (0x80 - length below zero), then that many bytes, two's complement |
| float | IEEE 754, big-endian: sign bit flipped, below zero all bits; -0.0 as 0.0, nan as eight `FF`, behind inf |
| natural | as text, a run of digits as `0`, count of digits, digits; then `01`, or `02` and counts of leading zeros |
| json, script | a rank byte, then: nothing (false, true), number, text, bytes, or a tuple's items (ranked) and `00` |
| number | the nearest float, then the int that is left over: so ints and floats compare exactly |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any

from tarmill.formats.columns import MISSING, Column, Getter
from tarmill.formats.samples import Record

if TYPE_CHECKING:
    from tarmill.formats.column_values import Documents
    from tarmill.formats.sort_keys import SortKey

Body = Callable[[Any], bytes]
Script = Callable[[Record], Any]

FIRST, PRESENT, LAST = b"\x01", b"\x02", b"\x03"
END = b"\x00\x01"
MAX_INT_BYTES = 100
"""The largest magnitude of an int; below 2**1024, so that each has a nearest float."""

INVERT = bytes(range(255, -1, -1))
"""For `bytes.translate`: inverts all bits."""

_FALSE, _TRUE, _NUMBER, _TEXT, _BYTES, _TUPLE = (bytes((rank,)) for rank in range(1, 7))
_TUPLE_END = b"\x00"

_pack = Struct(">d").pack
_ZERO, _NAN = b"\x80" + bytes(7), b"\xff" * 8
_ABOVE = tuple(bytes((0x80 + size,)) for size in range(MAX_INT_BYTES + 1))
_BELOW = tuple(bytes((0x80 - size,)) for size in range(MAX_INT_BYTES + 1))
_SMALL = tuple(_ABOVE[number > 0] + bytes((number,) * (number > 0)) for number in range(256))
_COUNTS = tuple(bytes((1 + count,)) for count in range(254))
_SHORT_RUNS = tuple(b"0" + count for count in _COUNTS)
_split_at_runs = re.compile(rb"([0-9]+)").split


class NoEncoding(Exception):
    """Why a value has no encoding: `reason` is "unparsable-key", "missing-key" or "bad-result" (the script's fault)."""

    def __init__(self, why: str, reason: str = "unparsable-key") -> None:
        super().__init__(why)
        self.why = why
        self.reason = reason


def compile_key(key: SortKey, documents: Documents, script: Script | None) -> tuple[Getter, Body]:
    """Make two functions: record -> value (or `MISSING`), and value -> encoding without class byte.

    The first raises SampleError, both NoEncoding, for what is not as the key says.
    """
    column, kind = key.column, key.kind
    if column is None:
        assert script is not None, "KeyEncoder refuses script keys without a script"
        return (script, script_bytes) if kind == "script" else (_typed(key, script), _POINTS[kind])
    get = column.compile(documents)
    if kind == "bytes" and (column.special or column.path is not None):
        return _then(get, utf8_of_name if column.special else utf8_of_text), text_bytes
    return get, (_NAMES if column.special else _POINTS)[kind]


def text_bytes(raw: bytes) -> bytes:
    """Encode text (as UTF-8) or bytes."""
    return (raw.replace(b"\0", b"\0\xff") if 0 in raw else raw) + END


def int_bytes(number: int) -> bytes:
    """Encode an int of any size up to `MAX_INT_BYTES`."""
    if 0 <= number < 256:
        return _SMALL[number]
    size = (number.bit_length() + 7) >> 3
    if size > MAX_INT_BYTES:
        raise NoEncoding(f"an integer of {size} bytes is too large; sort keys hold at most {MAX_INT_BYTES}")
    if number > 0:
        return _ABOVE[size] + number.to_bytes(size, "big")
    return _BELOW[size] + (number + (1 << 8 * size)).to_bytes(size, "big")


def float_bytes(number: float) -> bytes:
    """Encode a float; zeros are equal, nan is equal to itself and above all others."""
    if number > 0:
        return _pack(-number)
    if number < 0:
        return _pack(number).translate(INVERT)
    return _ZERO if number == 0 else _NAN


def number_bytes(number: int | float) -> bytes:
    """Encode an int or a float so that both compare exactly with each other."""
    if isinstance(number, float):
        return float_bytes(number) + _SMALL[0]
    if number.bit_length() > 53:
        int_bytes(number)  # refuses what is too large
        near = float(number)
        # Rounding never reverses an order, so only numbers with the same nearest float are told apart by the rest.
        return float_bytes(near) + int_bytes(number - int(near))
    return float_bytes(float(number)) + _SMALL[0]


def natural_bytes(raw: bytes) -> bytes:
    """Encode text whose digit runs compare as numbers, from the place in the alphabet that digits have."""
    parts = _split_at_runs(text_bytes(raw))
    if len(parts) == 1:
        return parts[0]
    zeros = b""
    padded = False
    for at in range(1, len(parts), 2):
        run = parts[at]
        digits = run.lstrip(b"0")
        size = len(digits)
        if size < len(run):
            padded = True
        zeros += _count(len(run) - size)
        parts[at] = (_SHORT_RUNS[size] if size < 254 else b"0" + _count(size)) + digits
    parts.append(b"\x02" + zeros if padded else b"\x01")
    return b"".join(parts)


def _count(count: int) -> bytes:
    """Encode a count of any size without a NUL: 254 for each 0xFF, then the rest plus one."""
    return _COUNTS[count] if count < 254 else b"\xff" * (count // 254) + _COUNTS[count % 254]


def json_bytes(value: Any) -> bytes:
    """Encode a JSON value: false < true < numbers < texts; lists and objects have no order."""
    encode = _OF_JSON.get(type(value))
    if encode is None:
        raise NoEncoding(f"found {'an object' if type(value) is dict else 'a list'}, which has no order")
    return encode(value)


def script_bytes(value: Any) -> bytes:
    """Encode what a script returned: numbers (bools too) < texts < bytes < tuples and lists, item by item."""
    encode = _OF_SCRIPT.get(type(value))
    if encode is None:
        encode = next((_OF_SCRIPT[base] for base in _OF_SCRIPT if isinstance(value, base)), None)
        if encode is None:
            raise _bad_result(value, "None (missing), bool, int, float, str, bytes, or a tuple or list of these")
    return encode(value)


def _tuple_bytes(items: Any) -> bytes:
    if any(item is None for item in items):
        raise NoEncoding(f"sort_key gave {_short(items)}, with a None in it", "missing-key")
    try:
        return _TUPLE + b"".join(map(script_bytes, items)) + _TUPLE_END
    except RecursionError:
        raise _bad_result(items, "something that is not nested as deeply") from None


def utf8_of_name(name: str) -> bytes:
    """Give the bytes of a key or URL; those that are no UTF-8 come back as they were in the tar."""
    try:
        return name.encode()
    except UnicodeEncodeError:
        try:
            return name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # a lone surrogate that stands for no byte; no tar gives one
            return utf8_of_text(name)


def utf8_of_text(text: str) -> bytes:
    """Give a text's UTF-8; lone surrogates, which JSON escapes can make, keep their place among the code points."""
    return text.encode("utf-8", "surrogatepass")


def _then(get: Getter, convert: Callable[[Any], Any]) -> Getter:
    return lambda record: MISSING if (value := get(record)) is None else convert(value)


def _typed(key: SortKey, script: Script) -> Getter:
    """Convert what the script returned to the type that the key names, by the rules for a field's contents."""
    kind = key.kind
    accepted, of_text = (
        ((str, bytes, int, float), "int" if kind == "int" else "float")
        if kind in ("int", "float")
        else ((str, bytes), None if kind == "bytes" else "text")
    )
    # A text is read as if it were the contents of a field.
    contents = Column(key.text, ("script",), accessor=of_text).compile()

    def value(record: Record) -> Any:
        found = script(record)
        if found is None:
            return MISSING
        if not isinstance(found, accepted):
            raise _bad_result(found, f"{' or '.join(type_.__name__ for type_ in accepted)} for {key.text}, or None")
        if isinstance(found, str):
            if kind in ("str", "natural"):
                return found
            found = utf8_of_text(found)
        if isinstance(found, bytes):
            return contents({**record, "script": found})
        if kind == "float":
            try:
                return float(found)
            except OverflowError:
                raise NoEncoding(f"{_short(found)} is too large for a float") from None
        if isinstance(found, float) and not found.is_integer():
            raise NoEncoding(f"{found!r} is no int")
        return int(found)

    return value


def _bad_result(value: Any, expected: str) -> NoEncoding:
    return NoEncoding(f"sort_key gave {type(value).__name__} {_short(value)}; expected {expected}", "bad-result")


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int with more digits than Python writes
        return "a very large number"
    return text if len(text) <= 60 else text[:57] + "..."


_POINTS: dict[str, Body] = {
    "str": lambda text: text_bytes(utf8_of_text(text)),
    "natural": lambda text: natural_bytes(utf8_of_text(text)),
    "bytes": text_bytes,
    "int": int_bytes,
    "float": float_bytes,
    "json": json_bytes,
}
_NAMES: dict[str, Body] = {
    **_POINTS,
    "str": lambda name: text_bytes(utf8_of_name(name)),
    "natural": lambda name: natural_bytes(utf8_of_name(name)),
}
_OF_JSON: dict[type, Body] = {
    bool: lambda value: _TRUE if value else _FALSE,
    int: lambda number: _NUMBER + number_bytes(number),
    float: lambda number: _NUMBER + number_bytes(number),
    str: lambda text: _TEXT + text_bytes(utf8_of_text(text)),
}
_OF_SCRIPT: dict[type, Body] = {
    **_OF_JSON,
    bool: lambda value: _NUMBER + number_bytes(int(value)),
    bytes: lambda raw: _BYTES + text_bytes(raw),
    tuple: _tuple_bytes,
    list: _tuple_bytes,
}
