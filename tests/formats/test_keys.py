"""Key functions: the table of the module's docstring, checked row by row."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext as webdataset_rule

from tarmill.errors import SpecError
from tarmill.formats.keys import key_function

# name -> base_plus_ext, dir_plus_file, last_dir
TABLE = {
    "a.jpg": (("a", "jpg"), None, None),
    "d.x/a.seg.jpg": (("d.x/a", "seg.jpg"), ("d.x", "a.seg.jpg"), ("d.x", "a.seg.jpg")),
    "e/d/a.jpg": (("e/d/a", "jpg"), ("e/d", "a.jpg"), ("d", "a.jpg")),
    "./a.jpg": (("./a", "jpg"), (".", "a.jpg"), (".", "a.jpg")),
    "../a.jpg": (("../a", "jpg"), ("..", "a.jpg"), ("..", "a.jpg")),
    "/a.jpg": (("/a", "jpg"), None, None),
    "d//a.jpg": (("d//a", "jpg"), ("d", "a.jpg"), ("d", "a.jpg")),
    "d/a": (None, ("d", "a"), ("d", "a")),
    "a": (None, None, None),
    "a.": (("a", ""), None, None),
    "a..b": (("a", ".b"), None, None),
    "1.5 x.mp3": (("1", "5 x.mp3"), None, None),
    "A.JPG": (("A", "JPG"), None, None),
    ".hidden": (None, None, None),
    ".hidden.txt": (None, None, None),
    "d/.hidden.txt": (None, ("d", ".hidden.txt"), ("d", ".hidden.txt")),
    "d/._a.jpg": (None, ("d", "._a.jpg"), ("d", "._a.jpg")),
    "d.x/": (None, None, None),
    "": (None, None, None),
    ".": (None, None, None),
    "..": (None,) * 3,
    "__x__": (None, None, None),
    "__x__/a.jpg": (None, None, None),
    "__x__/d/a.jpg": (None, None, None),
    "__x__.json": (("__x__", "json"), None, None),
    "__x/a.jpg": (("__x/a", "jpg"), ("__x", "a.jpg"), ("__x", "a.jpg")),
    "d/__x__/a.jpg": (("d/__x__/a", "jpg"), ("d/__x__", "a.jpg"), ("__x__", "a.jpg")),
    "d/__x__.json": (("d/__x__", "json"), ("d", "__x__.json"), ("d", "__x__.json")),
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize(("column", "function"), [(0, "base_plus_ext"), (1, "dir_plus_file"), (2, "last_dir")])
def test_names_split_as_the_table_says(name: str, column: int, function: str) -> None:
    assert key_function(function)(name) == TABLE[name][column]


@given(st.text(st.sampled_from("ab./_é\udc80 ")))
def test_default_rule_is_webdatasets_but_for_hidden_files(name: str) -> None:
    found = key_function("base_plus_ext")(name)
    base, extension = webdataset_rule(name)
    if re.match("__[^/]*__(?:$|/)", name) or name.rpartition("/")[2].startswith(".") or base is None:
        assert found is None
    else:
        assert found == (base, extension)


@given(st.text(st.sampled_from("ab./_")))
def test_key_and_field_of_the_default_rule_make_up_the_name(name: str) -> None:
    found = key_function("base_plus_ext")(name)
    assert found is None or ".".join(found) == name


def test_regular_expression_gives_key_and_field() -> None:
    split = key_function(r"([^/]*)_([a-z]+)\.png$")
    assert split("d/7_mask.png") == ("7", "mask")
    assert split("d/7.png") is None
    assert split("__x__/7_mask.png") is None


def test_expression_with_an_empty_key_or_a_group_left_out_gives_no_member() -> None:
    assert key_function("^(.*?)[.](.*)$")(".x") is None
    assert key_function("^(a)|(b)$")("a") is None
    assert key_function("^(a)(b?)$")("a") == ("a", "")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("base_plus_ex", r"did you mean 'base_plus_ext'\?"),
        ("nonsense", "expected one of base_plus_ext, dir_plus_file, last_dir, or a regular expression"),
        ("", "expected one of"),
        ("^(.*)$", r"has 1 groups; expected two.*\(\?:\.\.\.\)"),
        ("(a)(b)(c)", "has 3 groups"),
        ("(", r"is no regular expression: .*; write '\\\('"),
        ("(a{99999999999999999999})(b)", "is no regular expression"),
    ],
)
def test_bad_key_function_is_refused_with_the_cure(bad: str, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        key_function(bad)
    assert caught.value.facts == {"field": "key_function", "value": bad}
