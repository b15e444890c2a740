"""Shard patterns: how a data set of many tar files is written as one word.

| notation | stands for |
|---|---|
| `train-@0100.tar` | 100 shards, `train-0000.tar` to `train-0099.tar`: as wide as the digits that are written |
| `train-{000..099}.tar` | a range, both ends included; padded when either end has a leading zero; `{9..0}` descends |
| `train-{0..99..10}.tar` | a range in steps |
| `{train,val}-@10.tar` | alternatives; several and nested ones multiply, the last varying fastest |
| `a-@10.tar::b-@20.tar` | one list after the other |
| `@shards.txt` | the shards that a file lists, one per line (not after a "/": there an "@" is no list) |
| `train-*.tar`, `?`, `[0-9]`, `**/` | what a store has; hidden names only where the "." is written |
| `data/train/` | all shards under a folder, where names begin with neither "." nor, for folders, "_" |
| `out-@.tar` | an output whose count is open; the job decides |
| `\\@`, `\\{`, `\\*`, ... | a backslash takes the meaning from the character that follows |

A count is an "@" with digits in the last path component, unless ".digit" follows (`pkg@1.2.tar`, `u:p@10.0.0.1`);
an open count is an "@" before ".", "-", "_" or the end. Any other "@" is itself: `mail@home.tar` is one file. Nothing
in a URL's user, password, port, IPv6 address or query has a meaning. A query begins at "?" in http(s), else at "?x=".
The count is the ancestor's (htpar): `@017` is 000 to 016. (AIStore's `@017` has 18 shards.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from tarmill.formats.shard_grammar import SHARD_EXTENSION, escape, names_folder, parse_part, split_parts
from tarmill.formats.shard_tokens import (
    MAX_SHARDS,
    Count,
    Part,
    Text,
    common_start,
    failure,
    masked,
    names_of,
    nth_name,
    size_of,
)
from tarmill.values import field, valueclass

DEFAULT_STEM = "shards"
_MIN_WIDTH = 6


@valueclass
class ShardPattern:
    r"""A list of shards, written as one word; equal when written alike, printed as written.

    >>> ShardPattern.parse("train-@0003.tar").expand()
    ['train-0000.tar', 'train-0001.tar', 'train-0002.tar']
    >>> ShardPattern.parse("s3://b/{train,val}-{08..10}.tgz").expand()[1:4]
    ['s3://b/train-09.tgz', 's3://b/train-10.tgz', 's3://b/val-08.tgz']
    >>> ShardPattern.parse("a{0..4..2}.tar::http://u:p@10.0.0.1/b%20c.tar?sig=*").expand()
    ['a0.tar', 'a2.tar', 'a4.tar', 'http://u:p@10.0.0.1/b%20c.tar?sig=*']
    >>> ShardPattern.parse("train-@1000000.tar").format(77)
    'train-0000077.tar'
    >>> out = ShardPattern.parse("x/out-@.tar.gz")
    >>> out.count, out.with_count(12).format(3), out.stem, out.folder, out.extension
    (None, 'x/out-000003.tar.gz', 'out', 'x/', '.tar.gz')
    >>> ShardPattern.parse("data/train-*.tar").match("data/train-7.tar")
    True
    >>> ShardPattern.parse(r"odd\@10\{\}.tar").expand()
    ['odd@10{}.tar']
    >>> ShardPattern.parse("train-@.tgz").expand()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    tarmill.errors.ShardPatternError: ... has no count; write the number of shards after '@', as in 'train-@0100.tgz'
    """

    text: str
    _parts: tuple[Part, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise failure(self.text, "is empty; write at least one shard, as in 'train-@0100.tar'")
        parts = tuple(parse_part(part, self.text) for part in split_parts(self.text))
        object.__setattr__(self, "_parts", parts)
        total = self._size()
        if total > MAX_SHARDS:
            raise failure(
                self.text, f"stands for {total:,} shards; at most {MAX_SHARDS:,} are possible: write a smaller range"
            )

    @classmethod
    def parse(cls, text: str) -> ShardPattern:
        """Read a pattern.

        Raises:
            ShardPatternError: when it cannot be read; the message shows a notation that would have worked.
        """
        return cls(text)

    @classmethod
    def from_lines(cls, lines: Iterable[str], name: str = "shard list") -> ShardPattern:
        """Make the pattern of a list file: one shard per line, literally; blank and "#" lines are passed over.

        Args:
            lines: the lines, with or without line ends.
            name: what errors call the list.

        Raises:
            ShardPatternError: when no line names a shard, or a line is a notation and not a shard.
        """
        shards = [text for line in lines if (text := line.strip()) and not text.startswith("#")]
        for number, shard in enumerate(shards, 1):
            if parse_part(escape(shard), shard).regex is not None:
                raise failure(
                    name, f"has the folder {masked(shard)!r} as entry {number}; list shards, or give just the folder"
                )
            if "{" in shard and ".." in shard:
                raise failure(
                    name, f"has the range {masked(shard)!r} as entry {number}; a list names each shard by itself"
                )
        if not shards:
            raise failure(name, "lists no shards; write one URL or path per line")
        pattern = cls("::".join(map(escape, shards)))
        if pattern.expand() != shards:
            raise failure(name, "has a URL with '::' in its query; write '%3A%3A' there")
        return pattern

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"ShardPattern({masked(self.text)!r})"

    @property
    def parts(self) -> tuple[ShardPattern, ...]:
        """What "::" joins, each as a pattern of its own."""
        return (self,) if len(self._parts) == 1 else tuple(ShardPattern(part.text) for part in self._parts)

    @property
    def needs_listing(self) -> bool:
        """Whether the shards are known only after a store was listed (wildcards, folders)."""
        return any(part.regex is not None for part in self._parts)

    @property
    def list_files(self) -> tuple[str, ...]:
        """The URLs of the list files in it (`@shards.txt`)."""
        return tuple(part.list_file for part in self._parts if part.list_file is not None)

    @property
    def is_open(self) -> bool:
        """Whether the count is open (`out-@.tar`)."""
        return any(isinstance(token, Count) and token.count is None for part in self._parts for token in part.tokens)

    @property
    def count(self) -> int | None:
        """Number of shards; None when it is open, or known only after listing or reading a list file."""
        return None if self.is_open or self.needs_listing or self.list_files else self._size()

    def _size(self) -> int:
        return sum(size_of(part.tokens) for part in self._parts if part.list_file is None and part.regex is None)

    def expand(self) -> list[str]:
        """List all shards, in order.

        Raises:
            ShardPatternError: when the pattern does not say them: open count, wildcard, folder or list file.
        """
        self._need_names()
        return [name for part in self._parts for name in names_of(part.tokens)]

    def format(self, index: int, count: int | None = None) -> str:
        """Give the shard at `index`, as `expand()[index]` would.

        Args:
            index: from 0.
            count: the number of shards, needed when it is open; otherwise it must agree.

        Raises:
            ShardPatternError: index out of range, count missing or in disagreement.
        """
        if count is not None:
            return self.with_count(count).format(index)
        self._need_names()
        total = self._size()
        if not 0 <= index < total:
            raise failure(self.text, f"has no shard {index}; its {total:,} shards are 0 to {total - 1}")
        tokens = self._parts[0].tokens
        for part in self._parts:
            tokens = part.tokens
            if index < (size := size_of(tokens)):
                break
            index -= size
        return nth_name(tokens, index)

    def with_count(self, count: int) -> ShardPattern:
        """Close an open count: the digits of `count`, at least 6, are the width, so `out-@.tar` gives `out-000000.tar`.

        Raises:
            ShardPatternError: when the pattern has another count already, or cannot have one.
        """
        if not self.is_open:
            if self.count == count:
                return self
            known = "an unknown number of" if self.count is None else f"{self.count:,}"
            raise failure(
                self.text, f"has {known} shards where {count:,} are needed; leave the count open, as in 'out-@.tar'"
            )
        part = self._parts[0]
        if len(self._parts) > 1 or any(not isinstance(token, Text | Count) for token in part.tokens):
            raise failure(self.text, "leaves the count open beside other notations; write the count after '@'")
        if count < 1:
            raise failure(self.text, f"cannot have {count} shards; at least one is needed")
        at = next(token.at for token in part.tokens if isinstance(token, Count))
        return ShardPattern(f"{part.text[:at]}@{count:0{_MIN_WIDTH}d}{part.text[at + 1 :]}")

    def _need_names(self) -> None:
        if self.is_open:
            better = masked(next(self._with_example()))
            raise failure(self.text, f"has no count; write the number of shards after '@', as in {better!r}")
        if self.needs_listing:
            raise failure(
                self.text, "is known only after listing its store; where that is impossible, write a count or a range"
            )
        if self.list_files:
            raise failure(self.text, "is known only after reading its list file; write the shards themselves here")

    def _with_example(self) -> Iterator[str]:
        for part in self._parts:
            for token in part.tokens:
                if isinstance(token, Count) and token.count is None:
                    yield f"{part.text[: token.at]}@0100{part.text[token.at + 1 :]}"

    @property
    def listing_prefix(self) -> str:
        """What to list for a wildcard or folder: the folder ('/' at the end) above the first thing that varies.

        Raises:
            ShardPatternError: for several parts (ask each of `parts`), or where hosts or buckets vary.
        """
        if len(self._parts) > 1:
            raise failure(self.text, "has several parts; each is listed by itself")
        prefix = self._parts[0].prefix
        prefix = prefix[: prefix.rfind("/") + 1]
        if not names_folder(prefix):
            raise failure(self.text, "lists several hosts or buckets; write one pattern for each, joined by '::'")
        return prefix or "./"

    def match(self, url: str) -> bool:
        """Tell whether a listed URL is one of the shards that a wildcard or folder stands for (others: equality)."""
        plain = url.removeprefix("./")
        for part in self._parts:
            if part.regex is not None:
                if part.regex.fullmatch(url) or part.regex.fullmatch(plain) or part.regex.fullmatch("./" + plain):
                    return True
            elif part.list_file is None and url in names_of(part.tokens):
                return True
        return False

    def resolve(
        self,
        list_urls: Callable[[str], Iterable[str]],
        read_lines: Callable[[str], Iterable[str]],
    ) -> list[str]:
        """List all shards, asking for what the pattern does not say.

        Args:
            list_urls: lists what is stored under a prefix.
            read_lines: reads the lines of a list file.

        Raises:
            ShardPatternError: when a wildcard or a list gives no shard.
        """
        shards: list[str] = []
        for pattern in self.parts:
            if pattern.needs_listing:
                found = sorted(url for url in list_urls(pattern.listing_prefix) if pattern.match(url))
                if not found:
                    raise failure(pattern.text, f"matches no shard under {masked(pattern.listing_prefix)!r}")
                shards += found
            elif pattern.list_files:
                name = pattern.list_files[0]
                shards += ShardPattern.from_lines(read_lines(name), name).expand()
            else:
                shards += pattern.expand()
        return shards

    @property
    def stem(self) -> str:
        """The data set's name, after which its manifest is called: the name without numbers, wildcards and extension.

        `train-@0100.tar.gz` gives "train", `a-@10-b.tar` "a-b", `data/train/` and `@train.txt` "train"; "shards" where
        nothing is left, as of `{000..999}.tar`. Of several parts the first counts.
        """
        part = self._parts[0]
        texts = [token.value for token in part.name if isinstance(token, Text)]
        if texts and part.list_file is not None:
            texts = [texts[0].rsplit(".", 1)[0]]
        elif texts:
            texts[-1] = re.sub(SHARD_EXTENSION, "", texts[-1])
        words = [word for text in texts if (word := text.strip("-_. "))]
        return "-".join(words) or DEFAULT_STEM

    @property
    def folder(self) -> str:
        """The folder that holds all shards, with '/' at its end; '' for the current one, or when there is none."""
        folders = [part.prefix[: part.prefix.rfind("/") + 1] for part in self._parts]
        common = common_start(folders)
        common = common[: common.rfind("/") + 1]
        return common if names_folder(common) else ""

    @property
    def extension(self) -> str:
        """What follows the name, as '.tar' or '.tar.gz'; '' where the shards have none or several."""
        last = self._parts[0].name[-1:]
        found = re.search(SHARD_EXTENSION, last[0].value) if last and isinstance(last[0], Text) else None
        return found[0] if found else ""
