"""The column language: what a column takes from a sample, what it needs, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tarmill.errors import SampleError, UsageError
from tarmill.formats import column_values
from tarmill.formats.column_values import Documents
from tarmill.formats.columns import MISSING, parse_column, parse_columns

META = {
    "caption": {"lang": "de", "texts": ["eins", "zwei"]},
    "score": 0.5,
    "label": "7",
    "whole": 3.0,
    "ok": True,
    "nothing": None,
    "width": 640,
    "a.b": 1,
}
RECORD = {
    "__key__": "d/0042",
    "__url__": "x.tar",
    "key": "d/0042",
    "cls": b" 7\n",
    "txt": "größe".encode(),
    "bin": b"\xff\x00",
    "meta.json": json.dumps(META).encode(),
    "5 x.mp3": b"mp3",
    "jpg": 1234,
}


def value(column: str, **fields: Any) -> Any:
    return parse_column(column).compile()({**RECORD, **fields})


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("cls", b" 7\n"),
        ("cls:int", 7),
        ("cls:float", 7.0),
        ("cls:bytes", 3),
        ("jpg:bytes", 1234),
        ("txt:bytes", 7),
        ("txt:text", "größe"),
        ("txt:sha256", hashlib.sha256("größe".encode()).hexdigest()),
        ("png|txt|cls", "größe".encode()),
        ("png|cls:int", 7),
        ("png|webp", MISSING),
        ("png:int", MISSING),
        ("png:bytes", MISSING),
        ("`5 x.mp3`", b"mp3"),
        ("__key__", "d/0042"),
        ("__key__:bytes", 6),
        ("__url__:sha256", hashlib.sha256(b"x.tar").hexdigest()),
        ("__fields__", ["5 x.mp3", "bin", "cls", "jpg", "meta.json", "txt"]),
        ("meta.json:caption.lang", "de"),
        ("meta.json:caption.texts[1]", "zwei"),
        ("meta.json:caption.texts[-1]", "zwei"),
        ("meta.json:caption.texts[2]", MISSING),
        ("meta.json:caption[0]", MISSING),
        ("meta.json:caption.lang.x", MISSING),
        ("meta.json:nothing", MISSING),
        ("meta.json:nothing:int", MISSING),
        ("meta.json:score", 0.5),
        ("meta.json:score:text", "0.5"),
        ("meta.json:label:int", 7),
        ("meta.json:label:float", 7.0),
        ("meta.json:whole:int", 3),
        ("meta.json:ok", True),
        ("meta.json:ok:text", "true"),
        ("meta.json:caption.texts:text", '["eins","zwei"]'),
        ("meta.json:caption.lang:bytes", 2),
        ("meta.json:caption.lang:sha256", hashlib.sha256(b"de").hexdigest()),
        ("meta.json:.width", 640),
        ("meta.json:`width`", 640),
        ("meta.json:`a.b`", 1),
        ("info.json|meta.json:score", 0.5),
    ],
)
def test_a_column_takes_what_it_names(column: str, expected: Any) -> None:
    found = value(column)
    assert found == expected
    assert type(found) is type(expected) or column == "__fields__"


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ("txt:int", "is no int"),
        ("bin:text", "utf-8"),
        ("txt:caption", "not JSON"),
        ("meta.json:score:int", "0.5 is no int"),
        ("meta.json:ok:int", "true is no int"),
        ("meta.json:caption:float", "is no float"),
        ("meta.json:caption.lang:int", "'de' is no int"),
        ("__key__:int", "is no int"),
        ("bin:width", "no image"),
    ],
)
def test_what_is_there_but_cannot_be_read_is_unparsable(column: str, says: str) -> None:
    with pytest.raises(SampleError, match=says) as caught:
        value(column)
    assert (caught.value.reason, caught.value.key, caught.value.shard) == ("unparsable", "d/0042", "x.tar")


def test_numbers_with_underscores_and_foreign_digits_are_refused() -> None:
    for contents in (b"1_000", "१२".encode()):
        with pytest.raises(SampleError, match="is no int"):
            value("n:int", n=contents)


def test_the_alias_of_the_key_is_no_field_but_a_field_called_key_is() -> None:
    assert value("key") is MISSING
    assert value("key", key=b"field") == b"field"
    assert "key" in value("__fields__", key=b"field")


def test_deeply_nested_json_is_unparsable_and_does_not_crash() -> None:
    with pytest.raises(SampleError, match="nested too deeply"):
        value("deep.json:a", **{"deep.json": b"[" * 1_000_000})


@pytest.mark.parametrize(("kind", "name"), [("PNG", "png"), ("JPEG", "jpg"), ("GIF", "gif")])
def test_image_accessors_read_the_header_only(kind: str, name: str) -> None:
    stream = io.BytesIO()
    Image.effect_noise((31, 17), 90).resize((310, 170)).save(stream, kind)
    start = stream.getvalue()[: stream.tell() * 9 // 10]  # the pixels are cut, the header is whole
    record = {**RECORD, name: start}
    assert [parse_column(f"{name}:{part}").compile()(record) for part in ("width", "height", "format")] == [
        310,
        170,
        kind,
    ]


def test_a_header_that_claims_a_gigantic_image_is_read_without_a_warning() -> None:
    stream = io.BytesIO()
    Image.new("1", (1, 1)).save(stream, "PNG")
    huge = bytearray(stream.getvalue())
    huge[16:24] = (50_000).to_bytes(4, "big") * 2
    huge[29:33] = __import__("zlib").crc32(huge[12:29]).to_bytes(4, "big")
    assert value("png:width", png=bytes(huge)) == 50_000
    assert Image.MAX_IMAGE_PIXELS


def test_image_accessors_without_pillow_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"tarmill\[images\]"):
        parse_column("jpg:width").compile()


def test_columns_that_share_documents_parse_each_json_field_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []

    def loads(contents: bytes) -> Any:
        parsed.append(contents)
        return json.loads(contents)

    monkeypatch.setattr(column_values, "json", type("J", (), {"loads": staticmethod(loads)}))
    documents = Documents()
    getters = [column.compile(documents) for column in parse_columns(["meta.json:score", "meta.json:ok,x.json:a"])]
    for number in range(3):
        record = {**RECORD, "x.json": b'{"a": %d}' % number}
        assert [get(record) for get in getters] == [0.5, True, number]
    assert len(parsed) == 1 + 3  # the first field's contents stayed the same object


@pytest.mark.parametrize(
    ("column", "needs", "sizes", "kind"),
    [
        ("cls", {"cls"}, False, "binary"),
        ("a|b:int", {"a", "b"}, False, "int"),
        ("jpg:bytes", set(), True, "int"),
        ("meta.json:x:bytes", {"meta.json"}, False, "int"),
        ("meta.json:x", {"meta.json"}, False, "json"),
        ("jpg:format", {"jpg"}, False, "text"),
        ("__key__", set(), False, "text"),
        ("__fields__", set(), True, "list"),
    ],
)
def test_a_column_tells_what_must_be_read_for_it(column: str, needs: set[str], sizes: bool, kind: str) -> None:
    parsed = parse_column(column)
    assert (parsed.needs, parsed.needs_sizes, parsed.kind) == (needs, sizes, kind)


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("", 0, "expected the name of a field"),
        ("cls,", 4, "expected the name of a field"),
        ("a|", 2, "expected the name of a field"),
        ("a b", 2, "expected ',' and another column"),
        ("`a", 0, "no partner"),
        ("__size__", 0, "`__size__`"),
        ("a|__key__", 2, "cannot stand here"),
        ("m.json:", 7, "expected a JSON key"),
        ("m.json:a..b", 9, "expected a JSON key"),
        ("m.json:a:b", 9, "one of bytes, sha256"),
        ("m.json:a[x]", 8, "expected ',' and another column"),
        ("__key__:x", 8, "one of bytes, sha256"),
        ("__fields__:int", 11, "takes no accessor"),
        ("json:width", 5, "json:.width"),
        ("m.json:a:width", 9, "no image"),
        ("cls:int:int", 7, "expected ','"),
    ],
)
def test_an_error_points_at_the_place_and_shows_an_example(text: str, position: int, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_columns([text])
    message, shown, caret, example = caught.value.message.split("\n")
    assert says in message
    assert caught.value.position == position
    assert caret.index("^") == 2 + position
    assert shown == "  " + text
    assert "-f" in example


def test_a_column_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="'cls' is asked for twice"):
        parse_columns(["cls,txt", "cls"])


def test_a_path_of_too_many_steps_is_refused() -> None:
    with pytest.raises(UsageError, match="at most 64"):
        parse_column("m.json:" + ".".join("a" * 65))


@given(st.text(min_size=0, max_size=12))
def test_any_field_name_can_be_asked_for_in_backticks(name: str) -> None:
    column = parse_column("`" + name.replace("`", "``") + "`")
    assert column.fields == (name,)
    assert column.compile()({"__key__": "k", "__url__": "u", "key": "k", name: b"found"}) == b"found"


@given(st.text(max_size=30))
def test_any_text_is_a_column_or_a_usage_error(text: str) -> None:
    try:
        columns = parse_columns([text])
    except UsageError:
        return
    assert parse_columns([",".join(column.text for column in columns)]) == columns
