"""Sort keys: the language, and that bytes sort as the values do."""

from __future__ import annotations

import enum
import functools
import itertools
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tarmill.errors import SampleError, ScriptError, SpecError, UsageError
from tarmill.formats.column_values import Documents
from tarmill.formats.sort_keys import KeyEncoder, SortKey, encode_name, parse_sort_keys

URL = "in/x-003.tar"


def record(key: str = "d/0042", **fields: bytes) -> dict[str, Any]:
    return {"__key__": key, "__url__": URL, "key": key, **{name.replace("__", "."): fields[name] for name in fields}}


def encoder(*texts: str, missing: str = "error", script: Callable[[Any], Any] | None = None) -> KeyEncoder:
    return KeyEncoder(parse_sort_keys(texts), missing, script)


def encode(text: str, missing: str = "error", **fields: bytes) -> bytes | None:
    return encoder(text, missing=missing).encode(record(**fields))


def scripted(text: str, value: Any, missing: str = "error") -> bytes | None:
    return encoder(text, missing=missing, script=lambda record: value).encode(record())


# --- values and the order they should have -----------------------------------------------------------------------


def number_order(number: float) -> tuple[bool, Any]:
    return (True, 0) if number != number else (False, number)


def natural_order(text: str) -> Any:
    elements: list[tuple[int, int]] = []
    zeros = []
    for is_run, letters in itertools.groupby(text, lambda letter: letter in "0123456789"):
        if is_run:
            digits = "".join(letters)
            elements.append((ord("0"), int(digits)))
            zeros.append(len(digits) - len(str(int(digits))))
        else:
            elements.extend((ord(letter), 0) for letter in letters)
    return elements, zeros


def json_order(value: Any) -> Any:
    if isinstance(value, bool):
        return (0, value)
    return (2, value) if isinstance(value, str) else (1, number_order(value))


def script_order(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return 3, [script_order(item) for item in value]
    return (
        (2, value) if isinstance(value, bytes) else (1, value) if isinstance(value, str) else (0, number_order(value))
    )


def from_json(value: Any) -> Any:
    return json.loads(json.dumps(value))  # two halves of a surrogate pair become one character


# Few letters, so that values are often equal, or one the beginning of another.
TEXTS = st.text(st.sampled_from("a\0\x01\xff\u20ac\U0001f600"), max_size=4) | st.text(max_size=6)
BYTES = st.binary(max_size=6) | st.lists(st.sampled_from([0, 1, 2, 254, 255]), max_size=4).map(bytes)
LIMIT = 256**100 - 1
INTS = (
    st.integers(-3, 3)
    | st.integers(-70_000, 70_000)
    | st.integers(-LIMIT, LIMIT)
    | st.builds(
        lambda bits, sign, near: sign * 2**bits + near,
        st.integers(0, 799),
        st.sampled_from([-1, 1]),
        st.integers(-2, 2),
    ).filter(lambda number: abs(number) <= LIMIT)
)
FLOATS = st.floats() | INTS.map(float) | st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan])
DIGITS = st.text(st.sampled_from("00129a/:\0\u0663"), max_size=7) | st.integers(0, 10**300).map(str)
NEIGHBOURS = INTS.flatmap(
    lambda number: st.sampled_from(
        [number, float(number), math.nextafter(number, math.inf), math.nextafter(number, -math.inf)]
    )
)
NUMBERS = INTS | FLOATS | NEIGHBOURS
JSON = (st.booleans() | NUMBERS | TEXTS | st.text(st.characters(categories=["Cs", "Lu"]), max_size=3)).map(from_json)
SCALARS = st.booleans() | NUMBERS | TEXTS | BYTES
SCRIPT = st.recursive(SCALARS, lambda item: st.lists(item, max_size=3) | st.lists(item, max_size=3).map(tuple))


@dataclass(frozen=True)
class Case:
    key: str
    values: st.SearchStrategy[Any]
    contents: Callable[[Any], bytes]
    order: Callable[[Any], Any]
    field: str = "F"

    def fields(self, name: str, value: Any) -> dict[str, bytes]:
        return {} if value is None else {self.field.replace("F", name): self.contents(value)}


CASES = {
    "str": Case("F:str", TEXTS, str.encode, str),
    "bytes": Case("F", BYTES, bytes, bytes),
    "int": Case("F:int", INTS, lambda number: b" %d\n" % number, int),
    "float": Case("F:float", FLOATS, lambda number: repr(number).encode(), number_order),
    "natural": Case("F:natural", DIGITS, str.encode, natural_order),
    "json": Case("F__json:v", JSON, lambda value: json.dumps({"v": value}).encode(), json_order, "F__json"),
}


def key_text(case: Case, name: str, direction: str = "") -> str:
    return case.key.replace("F", name).replace("__", ".") + direction


def check(encodings: list[bytes], compare: Callable[[int, int], int]) -> None:
    """All that callers rely on, for every pair of values; `compare` takes positions."""
    for one, other in itertools.product(range(len(encodings)), repeat=2):
        a, b = encodings[one], encodings[other]
        assert (a > b) - (a < b) == compare(one, other)
        assert a == b or not b.startswith(a)
    array = np.array(encodings)
    assert array.dtype.kind == "S"
    assert np.argsort(array, kind="stable").tolist() == sorted(range(len(encodings)), key=functools.cmp_to_key(compare))
    for one in range(len(encodings)):
        assert (array == array[one]).tolist() == [not compare(one, other) for other in range(len(encodings))]


def compared(a: Any, b: Any) -> int:
    return (a > b) - (a < b)


# --- order -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("direction", "sign"), [("", 1), (":asc", 1), (":desc", -1)])
@given(data=st.data())
def test_encodings_sort_as_values_do(name: str, direction: str, sign: int, data: st.DataObject) -> None:
    case = CASES[name]
    values = data.draw(st.lists(case.values, min_size=1, max_size=8))
    encoded = encoder(key_text(case, "a", direction)).encode
    orders = [case.order(value) for value in values]
    check(
        [encoded(record(**case.fields("a", value))) for value in values],  # type: ignore[misc]
        lambda one, other: sign * compared(orders[one], orders[other]),
    )


@pytest.mark.parametrize("missing", ["first", "last"])
@given(data=st.data())
def test_several_keys_compare_one_after_the_other(missing: str, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(CASES)), min_size=2, max_size=3))
    cases = [CASES[name] for name in names]
    signs = [data.draw(st.sampled_from([1, -1])) for _ in names]
    row = st.tuples(*(st.none() | case.values for case in cases))
    # Each value in several rows, so that later keys decide.
    pools = [data.draw(st.lists(st.none() | case.values, min_size=1, max_size=3)) for case in cases]
    rows = data.draw(st.lists(row | st.tuples(*map(st.sampled_from, pools)), min_size=1, max_size=8))
    keys = [
        key_text(case, f"f{number}", ":desc" if sign < 0 else "")
        for number, (case, sign) in enumerate(zip(cases, signs, strict=True))
    ]
    coder = encoder(",".join(keys), missing=missing)

    def compare(one: int, other: int) -> int:
        for case, sign, a, b in zip(cases, signs, rows[one], rows[other], strict=True):
            if a is None or b is None:
                result = ((b is None) - (a is None)) * (1 if missing == "first" else -1)
            else:
                result = sign * compared(case.order(a), case.order(b))
            if result:
                return result
        return 0

    encodings = []
    for values in rows:
        fields: dict[str, bytes] = {}
        for number, (case, value) in enumerate(zip(cases, values, strict=True)):
            fields |= case.fields(f"f{number}", value)
        encodings.append(coder.encode(record(**fields)))
    assert coder.placed.total() == sum(None in values for values in rows)
    check(encodings, compare)  # type: ignore[arg-type]


@pytest.mark.parametrize(("direction", "sign"), [("", 1), (":desc", -1)])
@given(values=st.lists(SCRIPT, min_size=1, max_size=8))
def test_values_of_a_script_sort_by_type_and_value(direction: str, sign: int, values: list[Any]) -> None:
    orders = [script_order(value) for value in values]
    check(
        [scripted("script" + direction, value) for value in values],  # type: ignore[misc]
        lambda one, other: sign * compared(orders[one], orders[other]),
    )


@given(st.lists(NUMBERS, min_size=2, max_size=8))
def test_ints_and_floats_compare_exactly(numbers: list[float]) -> None:
    orders = [number_order(number) for number in numbers]
    encodings = [encode("m.json:v", m__json=json.dumps({"v": number}).encode()) for number in numbers]
    check(encodings, lambda one, other: compared(orders[one], orders[other]))  # type: ignore[arg-type]


def test_a_float_lies_between_the_ints_that_it_cannot_tell_apart() -> None:
    numbers = [2**53 - 1, 2.0**53, 2**53 + 1, 2.0**53 + 2, 2**60 - 1, 2.0**60, 2**60 + 1, 10**240, math.inf, math.nan]
    encodings = [scripted("script", number) for number in numbers]
    assert encodings == sorted(set(encodings))  # type: ignore[type-var]
    assert scripted("script", 2**53) == scripted("script", 2.0**53)
    assert scripted("script", True) == scripted("script", 1) == scripted("script", 1.0)


def test_natural_order_is_that_of_numbers_and_case_counts() -> None:
    names = ["A1", "a", "a-1", "a0", "a00", "a1", "a01", "a1b", "a1b2", "a01b2", "a9", "a10", "a010", "a10b", "aa", "b"]
    encodings = [encode("name.txt:natural", name__txt=name.encode()) for name in names]
    assert encodings == sorted(encodings)  # type: ignore[type-var]
    assert len(set(encodings)) == len(names)


def test_runs_of_hundreds_of_digits_and_zeros_have_their_place() -> None:
    sizes = [1, 253, 254, 255, 507, 508, 509, 800]
    for names in ([b"1" * size for size in sizes], [b"0" * size + b"7" for size in sizes]):
        encodings = [encode("t:natural", t=name) for name in names]
        assert encodings == sorted(set(encodings))  # type: ignore[type-var]


def test_json_orders_false_true_numbers_texts() -> None:
    values = [False, True, float("-inf"), -1, 0.5, 1, "", "0", "a", "false"]
    encodings = [encode("m.json:v", m__json=json.dumps({"v": value}).encode()) for value in values]
    assert encodings == sorted(set(encodings))  # type: ignore[type-var]


@pytest.mark.parametrize("text", ["cls:int", "cls:int:desc"])
def test_missing_and_unparsable_share_a_place_that_desc_does_not_move(text: str) -> None:
    values = [encode(text, cls=b"%d" % number) for number in (-(2**700), 0, 2**700)]
    for missing, is_there in [("first", max), ("last", min)]:
        gone = encode(text, missing)
        assert gone == encode(text, missing, cls=b"x")
        assert is_there([gone, *values]) != gone  # type: ignore[type-var]
        assert sorted([gone, *values])[0 if missing == "first" else -1] == gone  # type: ignore[type-var]


# --- keys and their raw bytes ------------------------------------------------------------------------------------


@given(st.binary(max_size=12) | st.sampled_from([b"", b"\0", b"a\0\0", b"\xed\xb2\x80", "größe".encode()]))
def test_encode_name_gives_what_encode_gives(stem: bytes) -> None:
    name = stem.decode("utf-8", "surrogateescape")
    coder = encoder("__key__")
    assert coder.plain_key
    assert encode_name(stem) == coder.encode(record(name))


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=6))
def test_keys_that_are_no_utf8_sort_by_their_bytes(stems: list[bytes]) -> None:
    records = [record(stem.decode("utf-8", "surrogateescape")) for stem in stems]
    for text in ("__key__", "__key__:bytes", "__key__:str,__url__"):
        coded = [encoder(text).encode(one) for one in records]
        check(coded, lambda one, other: compared(stems[one], stems[other]))  # type: ignore[arg-type]
    orders = [natural_order(stem.decode("latin-1")) for stem in stems]
    coded = [encoder("__key__:natural").encode(one) for one in records]
    check(coded, lambda one, other: compared(orders[one], orders[other]))  # type: ignore[arg-type]


def test_only_the_ascending_key_alone_is_plain() -> None:
    assert encoder("__key__:str:asc").plain_key
    for text in ("__key__:desc", "__key__:bytes", "__key__:natural", "__url__", "cls:str", "__key__,cls"):
        assert not encoder(text).plain_key
    assert not encoder("script", script=str).plain_key
    assert not encoder("__key__,script", script=str).plain_key


def test_a_key_with_a_lone_surrogate_that_stands_for_no_byte_is_not_refused() -> None:
    assert encoder("__key__").encode(record("a\ud800")) is not None


# --- the language ------------------------------------------------------------------------------------------------


def facts(key: SortKey) -> tuple[Any, ...]:
    column = key.column
    return (
        None if column is None else (column.special or column.fields, column.path),
        key.kind,
        "desc" if key.descending else "asc",
    )


@pytest.mark.parametrize(
    ("text", "source", "kind", "direction"),
    [
        ("meta.json:score:float:desc", (("meta.json",), ("score",)), "float", "desc"),
        ("__key__:desc", ("__key__", None), "str", "desc"),
        ("__key__", ("__key__", None), "str", "asc"),
        ("__key__:natural", ("__key__", None), "natural", "asc"),
        ("__url__", ("__url__", None), "str", "asc"),
        ("__url__:bytes:desc", ("__url__", None), "bytes", "desc"),
        ("cls:int", (("cls",), None), "int", "asc"),
        ("cls", (("cls",), None), "bytes", "asc"),
        ("cls:bytes:asc", (("cls",), None), "bytes", "asc"),
        ("cls:str", (("cls",), None), "str", "asc"),
        ("name.txt:natural", (("name.txt",), None), "natural", "asc"),
        ("jpg|png:desc", (("jpg", "png"), None), "bytes", "desc"),
        ("script:int:desc", None, "int", "desc"),
        ("script", None, "script", "asc"),
        ("script:desc", None, "script", "desc"),
        ("`script`:int", (("script",), None), "int", "asc"),
        ("meta.json:score", (("meta.json",), ("score",)), "json", "asc"),
        ("meta.json:score:desc", (("meta.json",), ("score",)), "json", "desc"),
        ("meta.json:name:bytes", (("meta.json",), ("name",)), "bytes", "asc"),
        ("meta.json:a.b[-1].c", (("meta.json",), ("a", "b", -1, "c")), "json", "asc"),
        ("meta.json:.int", (("meta.json",), ("int",)), "json", "asc"),
        ("meta.json:.desc:desc", (("meta.json",), ("desc",)), "json", "desc"),
        ("meta.json:`int`:int", (("meta.json",), ("int",)), "int", "asc"),
        ("meta.json:int", (("meta.json",), None), "int", "asc"),
        ("meta.json:int.x", (("meta.json",), ("int", "x")), "json", "asc"),
        ("meta.json:.width", (("meta.json",), ("width",)), "json", "asc"),
        ("meta.json:script", (("meta.json",), ("script",)), "json", "asc"),
        ("meta.json:`a:b,c`:str", (("meta.json",), ("a:b,c",)), "str", "asc"),
        ("`a,b|``:int`|c:int", (("a,b|`:int", "c"), None), "int", "asc"),
        ("  cls:int  ", (("cls",), None), "int", "asc"),
    ],
)
def test_a_key_names_source_type_and_direction(text: str, source: Any, kind: str, direction: str) -> None:
    (key,) = parse_sort_keys([text])
    assert facts(key) == (source, kind, direction)
    assert key.text == text.strip()


def test_commas_and_several_texts_give_several_keys() -> None:
    keys = parse_sort_keys(["cls:int , __key__", "meta.json:a:desc,`x,y`"])
    assert [key.text for key in keys] == ["cls:int", "__key__", "meta.json:a:desc", "`x,y`"]
    assert parse_sort_keys([]) == ()


def test_the_same_source_in_two_types_is_two_keys() -> None:
    assert len(parse_sort_keys(["cls:int,cls:str,script,script:str"])) == 4


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("", 0, "expected the name of a field, or __key__, __url__, script, found the end"),
        ("cls,", 4, "expected the name of a field"),
        (",cls", 0, "expected the name of a field"),
        ("a||b", 2, "expected the name of a field, or __key__, __url__, script, found '|'"),
        ("cls:", 4, "expected a JSON path, or one of str, int"),
        ("cls::int", 4, "expected a JSON path, or one of str, int"),
        ("cls:int:", 8, "expected one of str, int"),
        ("cls:foo:bar", 8, "no further JSON path, found 'bar'"),
        ("cls:int:float", 4, "this type is out of place"),
        ("cls:desc:int", 4, "this direction is out of place"),
        ("cls:asc:desc", 4, "a JSON key called asc is written .asc"),
        ("a,meta.json:str:str", 12, "a JSON key called str is written .str"),
        ("__key__:foo", 8, "and no JSON path, found 'foo'"),
        ("__fields__", 0, "__fields__ is a list and has no order"),
        ("a,__foo__:int", 2, "`__foo__`"),
        ("jpg:width", 4, "width is no type to sort by"),
        ("meta.json:text", 10, "written .text"),
        ("script:a.b", 7, "no JSON path"),
        ("a|script", 0, "written `script`"),
        ("cls x", 3, "expected the end"),
        ("cls,`ab", 4, "no partner"),
        ("meta.json:a..b", 12, "expected a JSON key"),
        ("cls:int,__key__,cls:int:desc", 16, "cls:int is named twice"),
        ("meta.json:.a,meta.json:`a`", 13, "named twice"),
        ("a,a", 2, "a is named twice"),
        ("script,script:desc", 7, "named twice"),
        ("__key__:str,__key__", 12, "named twice"),
    ],
)
def test_an_error_marks_the_place_and_gives_an_example(text: str, at: int, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_sort_keys([text])
    message, shown, mark, example = caught.value.message.split("\n")
    assert says in message
    assert shown == "  " + text
    assert mark == "  " + " " * at + "^"
    assert example.startswith("for example: -k ")
    assert caught.value.position == at


def test_a_key_named_twice_is_found_across_texts() -> None:
    with pytest.raises(UsageError, match="sort key cls:int is named twice"):
        parse_sort_keys(["cls:int", "__key__,cls:int:desc"])


@given(st.lists(st.sampled_from([*"ab`:::|,.[]0 -_", "script", "int", "desc", "__key__"]), max_size=12).map("".join))
def test_every_text_is_read_or_refused_with_a_place_in_it(text: str) -> None:
    try:
        keys = parse_sort_keys([text])
    except UsageError as error:
        position = error.position
    else:
        position = 0
        assert parse_sort_keys([",".join(key.text for key in keys)]) == keys
        KeyEncoder(keys, "last", str)
    assert 0 <= position <= len(text)


def test_keys_cross_to_workers() -> None:
    keys = parse_sort_keys(["cls:int,meta.json:a[0]:desc,script"])
    assert pickle.loads(pickle.dumps(keys)) == keys


# --- the encoder -------------------------------------------------------------------------------------------------


def test_needs_are_the_fields_of_all_keys_and_everything_with_a_script() -> None:
    assert encoder("__key__,__url__").needs == frozenset()
    assert encoder("a|b:int,m.json:x,c:bytes").needs == {"a", "b", "m.json", "c"}
    assert encoder("cls,script", script=str).needs is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__key__", "d/0042"),
        ("__key__:bytes", b"d/0042"),
        ("__url__", URL),
        ("cls", b" 7\n"),
        ("cls:bytes", b" 7\n"),
        ("cls:str", " 7\n"),
        ("cls:natural", " 7\n"),
        ("cls:int", 7),
        ("cls:float", 7.0),
        ("png|cls:int", 7),
        ("m.json:score", 0.5),
        ("m.json:score:str", "0.5"),
        ("m.json:name:bytes", "größe".encode()),
        ("m.json:label:int", 7),
        ("m.json:list:bytes", b"[1,2]"),
        ("m.json:list[1]", 2),
        ("m.json:list", None),
        ("m.json:none", None),
        ("m.json:nowhere", None),
        ("m.json:name:float", None),
        ("png", None),
        ("m.json:big", None),
        ("cls:int,png,__key__", (7, None, "d/0042")),
        ("script", (1, "a")),
        ("__key__,script", ("d/0042", (1, "a"))),
    ],
)
def test_value_is_the_typed_key_and_agrees_with_the_encoding(text: str, expected: Any) -> None:
    meta = {"score": 0.5, "name": "größe", "label": "7", "list": [1, 2], "none": None, "big": 256**100}
    one = record(cls=b" 7\n", m__json=json.dumps(meta).encode())
    coder = encoder(text, missing="last", script=lambda record: (1, "a"))
    found = coder.value(one)
    assert (type(found), found) == (type(expected), expected)
    assert not coder.placed
    coder.encode(one)
    assert bool(coder.placed) == (expected is None or (type(expected) is tuple and None in expected))


@pytest.mark.parametrize(
    ("text", "contents", "reason", "says"),
    [
        ("cls:int", None, "missing-key", "found no field cls"),
        ("cls|txt", None, "missing-key", "found no field cls or txt"),
        ("cls:int", b"x7", "unparsable-key", "b'x7' is no int"),
        ("cls:int", b"1_000", "unparsable-key", "b'1_000' is no int"),
        ("cls:int", "٣".encode(), "unparsable-key", "is no int"),
        ("cls:int", b"", "unparsable-key", "b'' is no int"),
        ("cls:int", b"9" * 241, "unparsable-key", "an integer of 101 bytes is too large; sort keys hold at most 100"),
        ("cls:int", b"9" * 5000, "unparsable-key", "is no int"),
        ("cls:float", b"half", "unparsable-key", "b'half' is no float"),
        ("cls:str", b"\xff", "unparsable-key", "'utf-8' codec can't decode byte 0xff"),
        ("cls:natural", b"\xff", "unparsable-key", "can't decode"),
        ("cls:a", b"{", "unparsable-key", "not JSON ("),
        ("cls:a", b'{"b": 1}', "missing-key", "found nothing at its JSON path, or null"),
        ("cls:a", b'{"a": null}', "missing-key", "found nothing at its JSON path, or null"),
        ("cls:a:int", None, "missing-key", "found no field cls"),
        ("cls:a", b'{"a": [1]}', "unparsable-key", "found a list, which has no order"),
        ("cls:a", b'{"a": {}}', "unparsable-key", "found an object, which has no order"),
        ("cls:a", b'{"a": %d}' % 256**100, "unparsable-key", "an integer of 101 bytes is too large"),
        ("cls:a:int", b'{"a": 1.5}', "unparsable-key", "1.5 is no int"),
        ("cls:a:int", b'{"a": true}', "unparsable-key", "true is no int"),
        ("cls:a:float", b'{"a": "x"}', "unparsable-key", "'x' is no float"),
        ("__key__:int", None, "unparsable-key", "'d/0042' is no int"),
    ],
)
@pytest.mark.parametrize("more", ["", ",__url__"])
def test_a_key_that_is_not_there_is_an_error_a_place_or_a_drop(
    text: str, more: str, contents: bytes | None, reason: str, says: str
) -> None:
    one = record() if contents is None else record(cls=contents)
    with pytest.raises(SampleError) as caught:
        encoder(text + more).encode(one)
    error = caught.value
    assert error.message == (
        f"sample 'd/0042' of {URL}: sort key {text}: {error.message.split(f'{text}: ', 1)[1].rsplit('; ', 1)[0]}; "
        "place such samples or leave them out with --missing first|last|drop"
    )
    assert says in error.message
    assert "--on-error" not in error.message
    assert (error.reason, error.key, error.shard, error.sort_key) == (reason, "d/0042", URL, text)
    for missing in ("first", "last"):
        coder = encoder(text + more, missing=missing)
        assert coder.encode(one) is not None
        assert (coder.placed, coder.dropped) == ({reason: 1}, {})
    coder = encoder(text + more, missing="drop")
    assert coder.encode(one) is None
    assert (coder.placed, coder.dropped) == ({}, {reason: 1})


def test_a_sample_with_two_faults_is_counted_once_for_the_first() -> None:
    for missing, expected in (("first", "placed"), ("drop", "dropped")):
        coder = encoder("a:int,b", missing=missing)
        coder.encode(record(a=b"x"))
        assert getattr(coder, expected) == {"unparsable-key": 1}


def test_a_good_sample_counts_nowhere() -> None:
    coder = encoder("cls:int", missing="drop")
    assert coder.encode(record(cls=b"1")) is not None
    assert not coder.placed
    assert not coder.dropped


def test_the_alias_key_is_no_field_but_a_field_of_that_name_is() -> None:
    coder = encoder("key", missing="drop")
    assert coder.encode(record()) is None
    assert coder.encode({**record(), "key": b"x"}) == encode("cls", cls=b"x")


def test_an_unknown_place_for_the_missing_is_refused() -> None:
    with pytest.raises(SpecError, match="expected one of first, last, error, drop"):
        encoder("cls", missing="middle")


def test_encoders_with_the_same_documents_parse_a_field_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: calls.append(text) or loads(text))
    documents = Documents()
    one = record(m__json=b'{"a": 1, "b": 2}')
    for text in ("m.json:a,m.json:b:int", "m.json:b"):
        KeyEncoder(parse_sort_keys([text]), "error", None, documents).encode(one)
    assert len(calls) == 1


def test_unparsable_samples_leave_no_cycles_behind() -> None:
    code = (  # in a process of its own, since garbage is everybody's
        "import gc\n"
        "from tarmill.formats.sort_keys import KeyEncoder, parse_sort_keys\n"
        "coders = [KeyEncoder(parse_sort_keys([text]), 'last', None) for text in ('cls:int', 'cls:int,__key__')]\n"
        "one = {'__key__': 'k', '__url__': 'x.tar', 'key': 'k', 'cls': b'x'}\n"
        "gc.collect()\n"
        "gc.disable()\n"
        "print([coder.encode(one) and 0 for coder in coders], gc.collect())\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[0, 0] 0\n"


# --- scripts -----------------------------------------------------------------------------------------------------


class Level(enum.IntEnum):
    LOW = 1


class Name(str):
    pass


@pytest.mark.parametrize(
    ("text", "value", "same_as"),
    [
        ("script", Level.LOW, 1),
        ("script", Name("a"), "a"),
        ("script", np.float64(0.5), 0.5),
        ("script", [1, "a"], (1, "a")),
        ("script:int", "7", 7),
        ("script:int", b" 7\n", 7),
        ("script:int", 7.0, 7),
        ("script:int", True, 1),
        ("script:float", 7, 7.0),
        ("script:float", "0.5", 0.5),
        ("script:str", b"a", "a"),
        ("script:natural", b"a10", "a10"),
        ("script:bytes", "ö", "ö".encode()),
    ],
)
def test_a_script_may_return_what_means_the_same(text: str, value: Any, same_as: Any) -> None:
    assert scripted(text, value) == scripted(text, same_as)


def test_a_typed_script_sorts_as_a_field_of_that_type() -> None:
    for text in ("7", "-7"):
        for kind in ("str", "int", "float", "bytes", "natural"):
            for direction in ("", ":desc"):
                expected = encode(f"cls:{kind}{direction}", cls=text.encode())
                assert scripted(f"script:{kind}{direction}", text) == expected


@pytest.mark.parametrize(
    ("text", "value", "says"),
    [
        ("script", {"a": 1}, "sort_key gave dict {'a': 1}; expected None (missing), bool, int, float, str, bytes"),
        ("script", 1j, "sort_key gave complex 1j"),
        ("script", (1, {2}), "sort_key gave set {2}"),
        ("script", bytearray(b"a"), "sort_key gave bytearray"),
        ("script:int", (1,), "sort_key gave tuple (1,); expected str or bytes or int or float for script:int, or None"),
        ("script:str", 1, "sort_key gave int 1; expected str or bytes for script:str, or None"),
        ("script:bytes:desc", 1.5, "expected str or bytes for script:bytes:desc"),
    ],
)
def test_a_script_that_returns_no_key_is_at_fault_whatever_missing_says(text: str, value: Any, says: str) -> None:
    for missing in ("error", "first", "drop"):
        for keys in (text, f"cls,{text}"):
            coder = encoder(keys, missing=missing, script=lambda record: value)
            for function in (coder.encode, coder.value):
                with pytest.raises(ScriptError) as caught:
                    function(record(cls=b"1"))
                assert says in caught.value.message
                assert (caught.value.key, caught.value.shard, caught.value.reason) == ("d/0042", URL, "bad-result")


def test_a_list_that_holds_itself_is_the_scripts_fault() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ScriptError, match="not nested as deeply"):
        scripted("script", loop)


@pytest.mark.parametrize(
    ("text", "value", "reason", "says"),
    [
        ("script", None, "missing-key", "sort_key gave None"),
        ("script", (1, None), "missing-key", "sort_key gave (1, None), with a None in it"),
        ("script:int", None, "missing-key", "sort_key gave None"),
        ("script:int", "x", "unparsable-key", "b'x' is no int"),
        ("script:int", 1.5, "unparsable-key", "1.5 is no int"),
        ("script:int", math.inf, "unparsable-key", "inf is no int"),
        ("script:int", math.nan, "unparsable-key", "nan is no int"),
        pytest.param("script:float", 10**400, "unparsable-key", "is too large for a float", id="400-float"),
        pytest.param("script:float", 10**5000, "unparsable-key", "is too large for a float", id="5000-float"),
        ("script:str", b"\xff", "unparsable-key", "can't decode"),
        ("script", 256**100, "unparsable-key", "an integer of 101 bytes is too large"),
        pytest.param("script", -(10**5000), "unparsable-key", "is too large", id="5000"),
        ("script", (1, 256**100), "unparsable-key", "an integer of 101 bytes is too large"),
    ],
)
def test_a_scripts_none_is_missing_and_what_does_not_fit_unparsable(
    text: str, value: Any, reason: str, says: str
) -> None:
    with pytest.raises(SampleError) as caught:
        scripted(text, value)
    assert says in caught.value.message
    assert caught.value.reason == reason
    coder = encoder(text, missing="drop", script=lambda record: value)
    assert coder.encode(record()) is None
    assert coder.dropped == {reason: 1}
    assert coder.value(record()) is None


def test_what_a_script_raises_passes_through() -> None:
    def sort_key(record: dict[str, Any]) -> int:
        return int("x")

    for text in ("script", "script:int", "__key__,script"):
        with pytest.raises(ValueError, match="invalid literal"):
            encoder(text, missing="drop", script=sort_key).encode(record())


def test_a_script_key_without_a_script_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match=r"script:int asks for a script and none is given; expected --script FILE"):
        encoder("__key__,script:int")


@given(SCRIPT, SCRIPT)
def test_equal_values_of_a_script_and_only_those_have_equal_encodings(one: Any, other: Any) -> None:
    assume("nan" not in repr((one, other)))
    assert (scripted("script", one) == scripted("script", other)) == (script_order(one) == script_order(other))
