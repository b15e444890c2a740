"""Which names an upload takes, and what is wrong with keys and fields that cannot be stored: pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from tarmill.errors import ScriptError, SpecError
from tarmill.formats.tar_write import check_key

WILDCARDS = "*?["

NameTest = Callable[[str], bool]


def glob_regex(pattern: str) -> str:
    """Write a glob over paths as a regular expression: `*` and `?` stay within a folder, `**/` is any folders.

    Raises:
        SpecError: it cannot be read.
    """
    pieces, at = [], 0
    while at < len(pattern):
        char = pattern[at]
        if pattern.startswith("**/", at) and (at == 0 or pattern[at - 1] == "/"):
            pieces.append("(?:.*/)?")
            at += 3
        elif pattern.startswith("**", at) and at + 2 == len(pattern):
            pieces.append(".*")
            at += 2
        elif char == "*":
            pieces.append("[^/]*")
            at += 1
        elif char == "?":
            pieces.append("[^/]")
            at += 1
        elif char == "[":
            found = re.compile(r"\[([!^]?)(\][^\]/]*|[^\]/]+)\]").match(pattern, at)
            if found is None:
                raise SpecError(
                    f"glob {pattern!r} has a '[' without its ']'; write '[[]' for the character itself",
                    field="glob",
                    value=pattern,
                )
            inside = re.sub(r"([\\\[^&~|])", r"\\\1", found[2]).replace("]", r"\]").replace("--", r"\-\-")
            pieces.append(f"(?![/])[{'^' if found[1] else ''}{inside}]")
            at = found.end()
        else:
            pieces.append(re.escape(char))
            at += 1
    return "".join(pieces)


def name_test(include: Sequence[str], exclude: Sequence[str]) -> NameTest | None:
    """Make the test that the path of a file, relative to its source, must pass; None where everything passes.

    A pattern without a "/" is about the name in any folder; one that begins with "/" begins at the source.
    """
    files = [pattern for pattern in exclude if not pattern.endswith("/")]
    wanted, unwanted = _any_of(include), _any_of(files)
    if wanted is None and unwanted is None:
        return None
    return lambda name: (wanted is None or wanted(name)) and (unwanted is None or not unwanted(name))


def folder_test(exclude: Sequence[str]) -> NameTest | None:
    """Make the test whether a folder, named relative to its source, is left out: patterns that end in "/"."""
    return _any_of([pattern.rstrip("/") for pattern in exclude if pattern.endswith("/")])


def glob_test(pattern: str) -> NameTest:
    """Make the test whether a path, relative to the folder of a glob, is one that it stands for."""
    test = _any_of([f"/{pattern}"])
    assert test is not None
    return test


def _any_of(patterns: Sequence[str]) -> NameTest | None:
    if not patterns:
        return None
    anywhere = ((pattern if "/" in pattern else f"**/{pattern}").removeprefix("/") for pattern in patterns)
    try:
        match = re.compile("(?s:" + "|".join(map(glob_regex, anywhere)) + ")").fullmatch
    except re.error as error:
        raise SpecError(
            f"glob in {', '.join(patterns)} cannot be read: {error}", field="glob", value=list(patterns)
        ) from None
    return lambda name: match(name) is not None


def has_wildcard(text: str) -> bool:
    """Tell whether a source is written with wildcards."""
    return any(char in text for char in WILDCARDS)


def split_glob(text: str) -> tuple[str, str]:
    """Divide a glob at the last "/" before its first wildcard: folder ("" for the current one) and pattern."""
    first = min(at for char in WILDCARDS if (at := text.find(char)) >= 0)
    cut = text.rfind("/", 0, first) + 1
    return text[:cut], text[cut:]


def fault_of_field(field: str) -> tuple[str, str] | None:
    """Tell why a field's name cannot be stored so that it reads back: (reason, message), or None."""
    if field.startswith("__"):
        return "reserved-field", f"the field name {field!r} begins with '__', which is reserved"
    if "/" in field or "\0" in field:
        return "bad-field", f"{field!r} is no field name; expected one without '/' or NUL, such as 'jpg'"
    return None


def fault_of_key(key: str) -> tuple[str, str] | None:
    """Tell why a key cannot be stored so that it reads back: (reason, message), or None."""
    if not key:
        return "bad-key", "the key is empty"
    try:
        check_key(key)
    except ScriptError as error:
        return "bad-key", error.message
    return None


def another_key(key: str, is_taken: Callable[[str], bool]) -> str:
    """Give a key for a sample whose own is taken, as a shuffle does: a dash and a number behind it."""
    number = 1
    while is_taken(f"{key}-{number}"):
        number += 1
    return f"{key}-{number}"


def label_numbers(names: Sequence[str], known: dict[str, int]) -> dict[str, int]:
    """Number classes: those that are known keep their numbers, others follow in the order of their names."""
    numbers = dict(known)
    following = max(known.values(), default=-1) + 1
    for name in sorted(set(names) - known.keys()):
        numbers[name] = following
        following += 1
    return numbers
