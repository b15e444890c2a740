"""The filter language: what holds, what is needed, what is refused and how."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill.errors import SampleError, UsageError
from tarmill.formats.where import MAX_DEPTH, Where

RECORD = {
    "__key__": "d/0042",
    "__url__": "x.tar",
    "key": "d/0042",
    "cls": b"3",
    "txt": "ein größerer Hund's Ball".encode(),
    "bin": b"a\xff",
    "jpg": 5000,
    "or": b"x",
    "meta.json": json.dumps(
        {"score": 0.75, "ok": True, "no": False, "one": 1, "lang": "de", "tags": ["cat", 3], "nil": None, "o": {"a": 1}}
    ).encode(),
}


def holds(text: str) -> bool:
    return Where.parse(text).compile()(RECORD)


@pytest.mark.parametrize(
    "text",
    [
        "cls:int == 3",
        "3 == cls:int",
        "cls == '3'",
        'cls == "3"',
        "cls:int != 4",
        "cls:int >= 3 and cls:int <= 3.0",
        "cls:int < 4 and not cls:int > 3",
        "cls > '2'",
        "meta.json:score:float > 0.5 and cls:int == 3",
        "meta.json:score > .5",
        "meta.json:score == 7.5e-1",
        "meta.json:score > -1",
        "cls:int in (1, 2, 3)",
        "cls in ('3')",
        "cls not in ('4', '5')",
        "not cls in ('4')",
        "meta.json:one in (1.0, 'x')",
        "meta.json:one not in (true)",
        "meta.json:nil in (null, 1)",
        "meta.json:ok",
        "not meta.json:no",
        "not meta.json:nil",
        "meta.json:o",
        "meta.json:one != true",
        "meta.json:ok == true",
        "meta.json:ok != 1",
        "meta.json:ok != 'true'",
        "jpg",
        "not png",
        "png == null",
        "null == png",
        "jpg != null",
        "png != 'x'",
        "not png:int < 3",
        "not png ~ 'x'",
        "jpg:bytes == 5000",
        "jpg:bytes > cls:int",
        "txt ~ 'gr.ße'",
        "txt ~ '^ein'",
        r"txt ~ 'Hund\'s\s+B'",
        r"txt contains 'd\'s'",
        'txt contains "größer"',
        "meta.json:tags contains 'cat'",
        "meta.json:tags contains 3",
        "not meta.json:tags contains 'ca'",
        "not meta.json:tags contains true",
        "__fields__ contains 'jpg'",
        "bin == 'a\\\\xff'",
        "`or` == 'x'",
        "png|cls == '3'",
        "__key__ ~ '42$'",
        "false or false or true",
        "true or cls:int == 4 and false",
        "(false or true) and true",
        "not not true",
        "meta.json:lang in('de','en')and(cls:int==3)",
        "meta.json:one in (1) or txt:int == 0",
        "false and txt:int == 0 or true",
    ],
)
def test_it_holds_and_its_negation_does_not(text: str) -> None:
    assert holds(text) is True
    assert holds(f"not ({text})") is False


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("", 0, "expected a column"),
        ("cls:int >", 9, "expected a column"),
        ("cls:int = 3", 8, "=="),
        ("(cls:int == 3", 13, "expected ')'"),
        ("cls:int == 3)", 12, "expected 'and', 'or' or the end"),
        ("cls:int == 3 cls", 13, "expected 'and', 'or' or the end"),
        ("a == 'x", 5, "no partner"),
        ("a == `x", 5, "no partner"),
        ("a in 3", 5, "expected '('"),
        ("a in ()", 6, "expected a text"),
        ("a:int in (3; 4)", 10, "expected a text"),
        ("a not 3", 6, "expected 'in'"),
        ("a and and b", 6, "expected a column"),
        ("a ~ b", 4, "regular expression in quotes"),
        ("a ~ '('", 4, "no regular expression"),
        ("a:int ~ 'x'", 0, "a:int is a number"),
        ("a contains b", 11, "after 'contains'"),
        ("cls == 3", 7, "cls:int"),
        ("3 < cls", 4, "cls:int"),
        ("cls:int < 'x'", 10, "cannot compare"),
        ("cls:int in (1, 'x')", 15, "cannot compare"),
        ("a < true", 4, "orders numbers or texts"),
        ("a == 'x' and json:width > 3", 18, "json:.width"),
        ("a | b", 2, "expected 'and', 'or' or the end"),
        ("a < b < c", 6, "expected 'and', 'or' or the end"),
    ],
)
def test_an_error_points_at_the_place_and_shows_an_example(text: str, position: int, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Where.parse(text)
    message, shown, caret, example = caught.value.message.split("\n")
    assert says in message
    assert caught.value.position == position
    assert caret.index("^") == 2 + caught.value.position
    assert shown == "  " + text
    assert "for example" in example


@pytest.mark.parametrize("text", ["meta.json:lang > 3", "meta.json:one < 'x'", "meta.json:one ~ '1'", "txt:int == 3"])
def test_types_that_only_the_sample_shows_to_be_wrong_make_it_a_bad_sample(text: str) -> None:
    with pytest.raises(SampleError) as caught:
        holds(text)
    assert (caught.value.reason, caught.value.key) == ("unparsable", "d/0042")


@pytest.mark.parametrize(
    ("text", "needs", "sizes"),
    [
        ("jpg", set(), True),
        ("jpg != null and cls == '3'", {"cls"}, True),
        ("jpg:bytes > 3", set(), True),
        ("a|b ~ 'x' or m.json:x", {"a", "b", "m.json"}, False),
        ("__key__ ~ 'x'", set(), False),
        ("jpg and jpg == 'x'", {"jpg"}, True),
    ],
)
def test_it_needs_contents_only_where_they_matter(text: str, needs: set[str], sizes: bool) -> None:
    found = Where.parse(text)
    assert (found.needs, found.needs_sizes) == (needs, sizes)


def test_depth_and_length_are_bounded() -> None:
    ok = "(" * (MAX_DEPTH - 1) + "true" + ")" * (MAX_DEPTH - 1)
    assert holds(ok)
    for text in ("(" * 5000 + "true", "not " * 2000 + "true"):
        with pytest.raises(UsageError, match="levels of parentheses"):
            Where.parse(text)
    with pytest.raises(UsageError, match="at most"):
        Where.parse("a" * 10_001)
    assert holds(" and ".join(["true"] * 1000))
    assert holds(" or ".join(["false"] * 1000 + ["true"]))


@given(st.text(alphabet="ab'\"`\\()<>=!~,.:|[]0 19-andortif", max_size=40))
def test_any_text_is_a_filter_or_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        assert Where.parse(text).text == text


_LEAVES = st.sampled_from(["true", "false", "cls == '3'", "cls == '4'", "png", "jpg", "cls:int > 2"])
_TREES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        inner.map(lambda a: ("not", a)),
        st.tuples(st.sampled_from(["and", "or"]), inner, inner),
    ),
    max_leaves=12,
)


def _text(tree: Any) -> str:
    if isinstance(tree, str):
        return tree
    if tree[0] == "not":
        return f"not ({_text(tree[1])})"
    return f"({_text(tree[1])}) {tree[0]} ({_text(tree[2])})"


def _truth(tree: Any) -> bool:
    if isinstance(tree, str):
        return tree in ("true", "cls == '3'", "jpg", "cls:int > 2")
    if tree[0] == "not":
        return not _truth(tree[1])
    left, right = _truth(tree[1]), _truth(tree[2])
    return left and right if tree[0] == "and" else left or right


@given(_TREES)
def test_and_or_not_mean_what_they_mean(tree: Any) -> None:
    assert holds(_text(tree)) is _truth(tree)


@given(
    st.lists(st.tuples(st.sampled_from(["and", "or", "and not", "or not"]), st.booleans()), max_size=8), st.booleans()
)
def test_precedence_is_that_of_python(rest: list[tuple[str, bool]], first: bool) -> None:
    words = [str(first), *(f"{sign} {value}" for sign, value in rest)]
    assert holds(" ".join(words).lower()) is eval(" ".join(words))
