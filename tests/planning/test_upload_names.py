"""Globs, and names that cannot be stored."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill.errors import SpecError
from tarmill.planning.upload_names import (
    another_key,
    fault_of_field,
    fault_of_key,
    folder_test,
    glob_regex,
    label_numbers,
    name_test,
    split_glob,
)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.jpg", ["a.jpg", "d/a.jpg", "d/e/.jpg"], ["a.jpeg", "a.jpg/b"]),
        ("/*.jpg", ["a.jpg"], ["d/a.jpg"]),
        ("d/*.jpg", ["d/a.jpg"], ["d/e/a.jpg", "a.jpg", "x/d/a.jpg"]),
        ("d/**/*.jpg", ["d/a.jpg", "d/e/a.jpg", "d/e/f/a.jpg"], ["x/d/a.jpg"]),
        ("d/**", ["d/a", "d/e/a"], ["d", "dd/a"]),
        ("[a-c]?.txt", ["a1.txt", "x/c2.txt"], ["d1.txt", "a.txt", "a/.txt"]),
        ("[!a].txt", ["b.txt"], ["a.txt", "/.txt"]),
        ("[]].txt", ["].txt"], ["a.txt"]),
        ("a\nb*", ["a\nb.c"], ["a.b"]),
    ],
)
def test_globs_match_as_people_expect(pattern: str, yes: list[str], no: list[str]) -> None:
    test = name_test([pattern], [])
    assert test is not None
    assert [name for name in yes if not test(name)] == []
    assert [name for name in no if test(name)] == []


@given(pattern=st.text("ab*?.[]!-", max_size=8), name=st.text("ab.!-]", max_size=8))
def test_a_glob_without_folders_is_what_fnmatch_takes_it_for(pattern: str, name: str) -> None:
    try:
        found = re.fullmatch(glob_regex(pattern), name) is not None
    except (SpecError, re.error):
        return
    if "[" not in pattern and "**" not in pattern:
        assert found == fnmatch.fnmatchcase(name, pattern)


def test_include_and_exclude_together() -> None:
    test = name_test(["*.jpg", "*.txt"], ["bad*"])
    assert test is not None
    assert [name for name in ("a.jpg", "d/a.txt", "bad.jpg", "d/bad.txt", "a.png") if test(name)] == [
        "a.jpg",
        "d/a.txt",
    ]
    folder = folder_test(["thumbs/", "*.jpg", "/top/"])
    assert folder is not None
    assert [name for name in ("thumbs", "d/thumbs", "top", "d/top") if folder(name)] == ["thumbs", "d/thumbs", "top"]
    assert name_test([], ["thumbs/"]) is None
    with pytest.raises(SpecError, match=r"'\[' without"):
        name_test(["a[b"], [])


def test_a_glob_divides_before_its_first_wildcard() -> None:
    assert split_glob("a/b/c*/d.?") == ("a/b/", "c*/d.?")
    assert split_glob("*.jpg") == ("", "*.jpg")


@pytest.mark.parametrize("key", ["", "a.b", "d/", ".x", "__x__/a", "a\0b", "d/.h", "a\ud800"])
def test_keys_that_would_not_read_back_are_told(key: str) -> None:
    assert fault_of_key(key) is not None


@pytest.mark.parametrize("key", ["a", "d.x/a", "a\nb", "é", "a\udcff", "x" * 300, "__x"])
def test_odd_keys_that_read_back_are_taken(key: str) -> None:
    assert fault_of_key(key) is None


def test_fields_that_cannot_be() -> None:
    assert [name for name in ("jpg", "", "seg.png", "__x", "a/b", "a\0") if fault_of_field(name)] == [
        "__x",
        "a/b",
        "a\0",
    ]


def test_another_key_is_one_that_nobody_has() -> None:
    assert another_key("a", {"a", "a-1", "a-2"}.__contains__) == "a-3"


@given(names=st.lists(st.text(max_size=3)), known=st.dictionaries(st.text(max_size=3), st.integers(0, 1), max_size=0))
def test_classes_are_numbered_by_name_and_keep_their_numbers(names: list[str], known: dict[str, int]) -> None:
    numbers = label_numbers(names, known)
    assert list(numbers) == sorted(set(names))
    assert sorted(numbers.values()) == list(range(len(numbers)))
    more = label_numbers([*names, "new"], numbers)
    assert {name: more[name] for name in numbers} == numbers
