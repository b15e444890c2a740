"""The tokens of shard patterns and the names they stand for; `shard_grammar` reads them from text.

The shards of a sequence of tokens are the product of the tokens' values, the last token varying fastest, as shells
expand braces.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence

from tarmill.errors import ShardPatternError
from tarmill.values import valueclass

MAX_SHARDS = 10_000_000
_MAX_GLOB_CHOICES = 10_000
_PASSWORD = r"(://[^/@:]*:)[^/@]*(?=@)"
_QUERY_VALUES = r"(\?)[A-Za-z][\w.-]*=[^\s]*?(?=::|$)"


def masked(text: str) -> str:
    """Hide the passwords and the queries (signatures, tokens) of the URLs in a text that is shown to people."""
    return re.sub(_QUERY_VALUES, r"\1***", re.sub(_PASSWORD, r"\1***", text))


def failure(pattern: str, message: str) -> ShardPatternError:
    """Make the error about a pattern; the message goes on after its text."""
    shown = masked(pattern)
    return ShardPatternError(f"shard pattern {shown!r} {message}", pattern=shown)


@valueclass
class Text:
    """Characters that stand for themselves."""

    value: str


@valueclass
class Values:
    """Numbers or letters in steps, both ends included: `{000..999}`, `{a..e}`, `{10..0..5}`."""

    codes: range
    width: int
    letters: bool = False

    def __getitem__(self, index: int) -> str:
        code = self.codes[index]
        return chr(code) if self.letters else str(code).zfill(self.width)

    def __len__(self) -> int:
        return len(self.codes)


@valueclass
class Count:
    """`@0100`: the number of shards, written as wide as their indices are; None when it is left open."""

    count: int | None
    width: int
    at: int
    """Position of the "@" in the part."""

    def __getitem__(self, index: int) -> str:
        return str(index).zfill(self.width)

    def __len__(self) -> int:
        return self.count or 0


@valueclass
class Choice:
    """Alternatives: `{train,val-{0..9}}`."""

    options: tuple[tuple[Token, ...], ...]


@valueclass
class Glob:
    """A wildcard, as the regular expression it stands for."""

    regex: str


Token = Text | Values | Count | Choice | Glob
Tokens = tuple[Token, ...]


@valueclass
class Part:
    """One part of a pattern, read."""

    text: str
    tokens: Tokens
    name: Tokens
    """The tokens of the last path component."""
    prefix: str
    """The characters that all its URLs begin with, the query left out."""
    list_file: str | None = None
    regex: re.Pattern[str] | None = None
    """What a listed URL must match, when a store must be listed."""


def has_glob(tokens: Sequence[Token]) -> bool:
    """Tell whether a store must be listed to know the shards."""
    return any(
        isinstance(token, Glob) or (isinstance(token, Choice) and any(map(has_glob, token.options))) for token in tokens
    )


def size_of(tokens: Sequence[Token]) -> int:
    """Count the names that tokens stand for, without making them."""
    return math.prod(
        sum(map(size_of, token.options)) if isinstance(token, Choice) else len(token)
        for token in tokens
        if isinstance(token, Choice | Values | Count)
    )


def names_of(tokens: Sequence[Token]) -> Iterator[str]:
    """Make all names, the last token varying fastest."""
    return map("".join, itertools.product(*map(_values_of, tokens)))


def _values_of(token: Token) -> Sequence[str]:
    if isinstance(token, Text):
        return [token.value]
    if isinstance(token, Choice):
        return [name for option in token.options for name in names_of(option)]
    assert not isinstance(token, Glob), "a store is listed for wildcards"
    return [token[index] for index in range(len(token))]


def nth_name(tokens: Sequence[Token], index: int) -> str:
    """Make the name at `index` of `names_of` alone (0 <= index < size)."""
    pieces = []
    for token in reversed(tokens):
        if isinstance(token, Text):
            pieces.append(token.value)
            continue
        index, place = divmod(index, size_of([token]))
        if isinstance(token, Choice):
            for option in token.options:
                if place < (size := size_of(option)):
                    pieces.append(nth_name(option, place))
                    break
                place -= size
        elif not isinstance(token, Glob):
            pieces.append(token[place])
    return "".join(reversed(pieces))


def literal_prefix(tokens: Sequence[Token]) -> str:
    """Give the characters that all names begin with (where alternatives differ, up to there)."""
    prefix = ""
    for token in tokens:
        if isinstance(token, Text):
            prefix += token.value
            continue
        if isinstance(token, Choice):
            prefix += common_start([literal_prefix(option) for option in token.options])
        break
    return prefix


def regex_of(tokens: Sequence[Token], pattern: str) -> str:
    """Write tokens with wildcards as a regular expression."""
    pieces = []
    for token in tokens:
        if isinstance(token, Text):
            pieces.append(re.escape(token.value))
        elif isinstance(token, Glob):
            pieces.append(token.regex)
        elif isinstance(token, Choice):
            pieces.append("(?:" + "|".join(regex_of(option, pattern) for option in token.options) + ")")
        elif len(token) > _MAX_GLOB_CHOICES:
            raise failure(
                pattern, f"has a range of {len(token):,} beside a wildcard; write the range as a wildcard as well"
            )
        else:
            pieces.append("(?:" + "|".join(re.escape(value) for value in _values_of(token)) + ")")
    return "".join(pieces)


def common_start(texts: Iterable[str]) -> str:
    """Give the characters that all texts begin with."""
    first, last = min(texts := list(texts)), max(texts)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(char for char, _ in same)
