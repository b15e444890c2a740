"""The grammar of shard patterns: from text to tokens. `shards` has the notation's description.

Which characters mean something depends on where in a URL they stand: none does in user, password or query; only braces
do in a host; a count only in the last path component.
"""

from __future__ import annotations

import itertools
import re

from tarmill.formats.shard_tokens import (
    MAX_SHARDS,
    Choice,
    Count,
    Glob,
    Part,
    Text,
    Token,
    Tokens,
    Values,
    failure,
    has_glob,
    literal_prefix,
    masked,
    regex_of,
)
from tarmill.values import valueclass

_MAX_DIGITS = 18
_MAX_NESTING = 20
_SPECIAL = "{}@*?[\\"
_ANY_SPECIAL = r"[{}@*?\[\\]"

# Patterns are kept as text: `re` compiles each when it is first used, and remembers it.
_EXTENSION = r"\.(?:tar(?:\.(?!idx$)\w+)?|tgz|taz|tbz2?|tb2|txz|tzst|tlz4)"
SHARD_EXTENSION = f"(?i:{_EXTENSION})$"
UNDER_FOLDER = rf"(?:(?![._])[^/]+/)*(?!\.)[^/]+(?i:{_EXTENSION})"
_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]*)://"
_NO_HOST = frozenset({"file", "mem", "memory"})
_COUNT = r"@([0-9]+)(?![0-9]|\.[0-9])"
_OPEN_COUNT = r"@(?=[._-]|$)"
_LONE_COUNT = rf"@[0-9]*(?i:{_EXTENSION})?$"
_NUMBERS = r"(-?[0-9]+)\.\.(-?[0-9]+)(?:\.\.(-?[0-9]+))?$"
_LETTERS = r"([A-Za-z])\.\.([A-Za-z])(?:\.\.(-?[0-9]+))?$"
_CLASS = r"\[([!^]?)(\]?[^\]/]+)\]"
_PRINTF = r"%0[0-9]+d"
_UNESCAPED_QUESTION = r"(?<!\\)\?"
_QUERY = r"(?<!\\)\?[A-Za-z][\w.-]*="


@valueclass
class Regions:
    """Where in a part the zones begin: host (after user and password), path, last path component, query."""

    host: int
    path: int
    last: int
    query: int


def find_regions(part: str) -> Regions:
    """Find the zones of a URL or path that holds notation; a query of http(s) begins at the first "?"."""
    scheme = re.match(_SCHEME, part)
    if scheme is None:
        return Regions(0, 0, _last_component(part, 0, len(part)), len(part))
    start, query = scheme.end(), len(part)
    path = start
    if scheme[1].lower() not in _NO_HOST:
        ends = [at for mark in "/?" if (at := part.find(mark, start)) >= 0]
        path = min(ends, default=len(part))
    begin = _UNESCAPED_QUESTION if scheme[1].lower() in ("http", "https") else _QUERY
    if (found := re.compile(begin).search(part, path)) is not None:
        query = found.start()
    host = start if path == start else max(part.rfind("@", start, path) + 1, start)
    return Regions(host, path, _last_component(part, path, query), query)


def _last_component(part: str, start: int, end: int) -> int:
    """Position after the last "/" that stands outside braces."""
    if "{" not in part and "\\" not in part:
        return max(start, part.rfind("/", start, end) + 1)
    depth, last, pos = 0, start, start
    while pos < end:
        if part[pos] == "\\":
            pos += 1
        elif part[pos] == "{":
            depth += 1
        elif part[pos] == "}":
            depth -= 1
        elif part[pos] == "/" and depth <= 0:
            last = pos + 1
        pos += 1
    return min(last, end)


def names_folder(prefix: str) -> bool:
    """Tell whether a prefix that ends in "/" is a folder of a store, and not a scheme whose host is missing."""
    scheme = re.match(_SCHEME, prefix)
    return scheme is None or scheme[1].lower() in _NO_HOST or "/" in prefix[scheme.end() :]


def file_name(url: str) -> str:
    """Give the last path component of a plain URL or path, without its query."""
    zones = find_regions(url)
    return url[zones.last : zones.query]


def escape(url: str) -> str:
    """Write a plain URL or path as a pattern that stands for just this one shard."""
    zones = find_regions(url)
    path = "".join("\\" + char if char in _SPECIAL else char for char in url[zones.path : zones.query])
    return url[: zones.path] + re.sub(":(?=:)", r"\\:", path) + url[zones.query :]


def split_parts(pattern: str) -> list[str]:
    """Split at "::", but neither inside brackets (IPv6 hosts, wildcards) or braces nor after a backslash."""
    parts, start, pos, depth = [], 0, 0, 0
    while pos < len(pattern):
        char = pattern[pos]
        if char == "\\":
            pos += 1
        elif char == "[" and (close := pattern.find("]", pos)) > 0 and "/" not in pattern[pos:close]:
            pos = close
        elif char in "{}":
            depth = max(0, depth + (1 if char == "{" else -1))
        elif depth == 0 and pattern.startswith("::", pos):
            parts.append(pattern[start:pos])
            start = pos + 2
            pos += 1
        pos += 1
    return [*parts, pattern[start:]]


def parse_part(text: str, pattern: str) -> Part:
    """Read one part of a pattern.

    Raises:
        ShardPatternError: with the notation that would have worked.
    """
    if not text.strip():
        raise failure(pattern, "has an empty part; write at least one shard, as in 'train-@0100.tar' or 'a.tar::b.tar'")
    if text.startswith("@") and (text == "@" or not re.match(_LONE_COUNT, text)):
        if text == "@":
            raise failure(pattern, "names no list; write the file that lists the shards after '@', as in '@shards.txt'")
        zones = find_regions(text[1:])
        return Part(text, (), (Text(text[1 + zones.last : 1 + zones.query]),), "", list_file=text[1:])
    parser = _Parser(text, pattern)
    zones = parser.zones
    printf = re.compile(_PRINTF).search(text, zones.path, zones.query)
    if printf is not None and text[printf.start() - 1 : printf.start()] != "\\":
        better = masked(text.replace(printf[0], "@"))
        raise failure(
            pattern,
            f"has {printf[0]!r}; the number's place is written '@', as in {better!r}, or '@0100' for 100 shards",
        )
    tokens = parser.sequence(0, len(text), 0)
    counts = [token for token in tokens if isinstance(token, Count)]
    if len(counts) > 1:
        raise failure(pattern, "has two counts ('@'); leave one, and write '\\@' for an '@' that belongs to the name")
    name = parser.sequence(zones.last, zones.query, 0)
    prefix = literal_prefix(parser.sequence(0, zones.query, 0))
    folder = not name and zones.query == len(text) and text.endswith("/")
    if not folder and not has_glob(tokens):
        return Part(text, tokens, name, prefix)
    if counts:
        raise failure(pattern, "has a count and a wildcard; use one of them, as in 'train-@0100.tar' or 'train-*.tar'")
    if folder:
        name = parser.sequence(_last_component(text, zones.path, len(text) - 1), len(text) - 1, 0)
    regex = regex_of(tokens, pattern) + (UNDER_FOLDER if folder else "")
    try:
        return Part(text, tokens, name, prefix, regex=re.compile(regex, re.DOTALL))
    except re.error as error:
        raise failure(
            pattern, f"has a wildcard that cannot be read ({error}); write a range of characters as in '[0-9]'"
        ) from error


class _Parser:
    """Recursive descent over one part."""

    def __init__(self, part: str, pattern: str) -> None:
        self.part = part
        self.pattern = pattern
        self.zones = find_regions(part)

    def sequence(self, pos: int, end: int, depth: int) -> Tokens:
        """Read tokens from `pos` to `end`."""
        tokens: list[Token] = []
        text = ""
        while pos < end:
            found = re.compile(_ANY_SPECIAL).search(self.part, pos, end)
            plain = found.start() if found else end
            text, pos = text + self.part[pos:plain], plain
            if pos == end:
                break
            char, after = self.part[pos], pos + 1
            token: Token | None = None
            if self.zones.host <= pos < self.zones.query:
                if char == "\\" and after < end:
                    char, after = self.part[after], after + 1
                elif char == "{":
                    token, after = self.braces(pos, end, depth)
                elif char == "}":
                    raise failure(
                        self.pattern, "has a '}' without '{'; write '\\}' for a brace that belongs to the name"
                    )
                elif pos >= self.zones.path:
                    token, after = self.count(pos, depth) if char == "@" else self.wildcard(pos, end)
            if token is None:
                text += char
            else:
                tokens += [Text(text), token] if text else [token]
                text = ""
            pos = after
        return (*tokens, Text(text)) if text else tuple(tokens)

    def count(self, pos: int, depth: int) -> tuple[Token | None, int]:
        """Read the count at an "@", when it is one."""
        found = re.compile(_COUNT).match(self.part, pos, self.zones.query)
        if pos < self.zones.last:
            return None, pos + 1
        if found is None:
            is_open = depth == 0 and re.compile(_OPEN_COUNT).match(self.part, pos, self.zones.query)
            return (Count(None, 0, pos) if is_open else None), pos + 1
        if depth:
            raise failure(
                self.pattern, "has a count inside braces; write 'a-@10.tar::b-@20.tar', or '\\@' for a plain '@'"
            )
        digits = found[1]
        if len(digits) > _MAX_DIGITS:
            raise failure(
                self.pattern, f"has a count of {len(digits)} digits; at most {MAX_SHARDS:,} shards can be written"
            )
        if int(digits) == 0:
            raise failure(self.pattern, "has the count 0, which gives no shard; write the number of shards after '@'")
        return Count(int(digits), len(digits), pos), found.end()

    def braces(self, pos: int, end: int, depth: int) -> tuple[Token, int]:
        """Read a range or alternatives."""
        if depth >= _MAX_NESTING:
            raise failure(self.pattern, f"nests braces deeper than {_MAX_NESTING}; write the alternatives with '::'")
        close, commas = self.match_braces(pos, end)
        if commas:
            edges = [pos, *commas, close]
            options = [self.sequence(left + 1, right, depth + 1) for left, right in itertools.pairwise(edges)]
            return Choice(tuple(options)), close + 1
        return self.span(self.part[pos + 1 : close]), close + 1

    def match_braces(self, pos: int, end: int) -> tuple[int, list[int]]:
        """Find the brace that closes the one at `pos`, and the commas between them."""
        commas: list[int] = []
        level, at = 0, pos
        while at < end:
            char = self.part[at]
            if char == "\\":
                at += 1
            elif char == "{":
                level += 1
            elif char == "}":
                level -= 1
                if level == 0:
                    return at, commas
            elif char == "," and level == 1:
                commas.append(at)
            at += 1
        raise failure(self.pattern, "has a '{' without '}'; write a range as '{000..999}', or '\\{' for a plain brace")

    def span(self, body: str) -> Values:
        """Read what stands between the braces of a range."""
        letters = re.match(_LETTERS, body)
        found = letters or re.match(_NUMBERS, body)
        if found is None or (letters is not None and letters[1].islower() != letters[2].islower()):
            raise failure(
                self.pattern,
                f"has '{{{body}}}', which is neither a range nor a list; write '{{000..999}}' or '{{a,b}}', "
                "or '\\{' and '\\}' for braces that belong to the name",
            )
        first, last, step = found.groups()
        if max(len(first), len(last), len(step or "")) > _MAX_DIGITS:
            raise failure(
                self.pattern, f"has a number of more than {_MAX_DIGITS} digits; a range has at most {MAX_SHARDS:,}"
            )
        stride = abs(int(step)) if step is not None else 1
        if stride == 0:
            raise failure(self.pattern, "has a range with step 0; write a step of 1 or more, as in '{0..10..2}'")
        low, high = (int(first), int(last)) if letters is None else (ord(first), ord(last))
        codes = range(low, high + 1, stride) if low <= high else range(low, high - 1, -stride)
        padded = any(re.match("-?0[0-9]", text) for text in (first, last))
        return Values(codes, max(len(first), len(last)) if padded else 0, letters is not None)

    def wildcard(self, pos: int, end: int) -> tuple[Token | None, int]:
        """Read `*`, `**`, `?` or `[...]`; a "[" that is never closed stands for itself."""
        part = self.part
        begins = pos == self.zones.path or part[pos - 1] == "/"
        visible = r"(?!\.)" if begins else ""
        if part.startswith("**/", pos) and begins:
            return Glob(r"(?:(?!\.)[^/]+/)*"), pos + 3
        if part.startswith("**", pos):
            return Glob(visible + ".*"), pos + 2
        if part[pos] == "*":
            return Glob(visible + "[^/]*"), pos + 1
        if part[pos] == "?":
            return Glob(visible + "[^/]"), pos + 1
        found = re.compile(_CLASS).match(part, pos, min(end, self.zones.query))
        if found is None:
            return None, pos + 1
        members = re.sub(r"([\\\[\]&~|^])", r"\\\1", found[2]).replace("--", r"\--")
        return Glob(f"{visible}(?!/)[{'^' if found[1] else ''}{members}]"), found.end()
