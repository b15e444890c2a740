"""Shard patterns: what each notation stands for, what is never taken for notation, and what errors suggest."""

from __future__ import annotations

import doctest
import pickle
import re

import pytest
from braceexpand import braceexpand
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tarmill.errors import ShardPatternError
from tarmill.formats import shards
from tarmill.formats.shard_grammar import escape
from tarmill.formats.shards import ShardPattern


def expand(text: str) -> list[str]:
    return ShardPattern.parse(text).expand()


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(shards).failed == 0
    assert doctest.testmod(shards).attempted > 5


@pytest.mark.parametrize(
    ("text", "first", "last", "count"),
    [
        ("x-@017-y", "x-000-y", "x-016-y", 17),
        ("name-@1000.tgz", "name-0000.tgz", "name-0999.tgz", 1000),
        ("d@5/x-@10.tar", "d@5/x-00.tar", "d@5/x-09.tar", 10),
        ("@0100.tar", "0000.tar", "0099.tar", 100),
        ("@017", "000", "016", 17),
        ("x/@3", "x/0", "x/2", 3),
        ("x-@1.tar", "x-0.tar", "x-0.tar", 1),
        ("x-{000000..000999}.tar", "x-000000.tar", "x-000999.tar", 1000),
        ("x-{0..10..2}.tar", "x-0.tar", "x-10.tar", 6),
        ("x-{0..10..3}.tar", "x-0.tar", "x-9.tar", 4),
        ("x-{9..0}.tar", "x-9.tar", "x-0.tar", 10),
        ("x-{08..10}.tar", "x-08.tar", "x-10.tar", 3),
        ("x-{8..010}.tar", "x-008.tar", "x-010.tar", 3),
        ("{a,b}{0..1}.tar", "a0.tar", "b1.tar", 4),
        ("{a,b-{0..9},}.tar", "a.tar", ".tar", 12),
        ("{a..e}.tar", "a.tar", "e.tar", 5),
        ("{train,val}/x-@10.tar", "train/x-00.tar", "val/x-09.tar", 20),
        ("a.tar::b-@2.tar::{c,d}.tar", "a.tar", "d.tar", 5),
        ("http://cdn{1..2}.x/a-@3.tar?t=1", "http://cdn1.x/a-0.tar?t=1", "http://cdn2.x/a-2.tar?t=1", 6),
        ("s3://{a/x,b/y}/z-{0..1}.tar", "s3://a/x/z-0.tar", "s3://b/y/z-1.tar", 4),
        ("mem://x-@2.tar", "mem://x-0.tar", "mem://x-1.tar", 2),
        ("file:///d/x-@2.tar", "file:///d/x-0.tar", "file:///d/x-1.tar", 2),
        ("http://[::1]:80/a-@2.tar::http://[::2]/b.tar", "http://[::1]:80/a-0.tar", "http://[::2]/b.tar", 3),
    ],
)
def test_notation_stands_for(text: str, first: str, last: str, count: int) -> None:
    names = expand(text)
    assert (names[0], names[-1], len(names), ShardPattern.parse(text).count) == (first, last, count, count)


@pytest.mark.parametrize(
    "text",
    [
        "a.tar",
        "-",
        "mail@home.tar",
        "icon@2.0.tar",
        "user:pw@10.0.0.1",
        "user:pw@10.0.0.1/a.tgz",
        "http://u:p@10.0.0.1/a.tgz",
        "http://u:p@10.0.0.1:8080",
        "http://u:{p,*[@10.0.0.1/a.tgz",
        "sftp://user@10/a.tar",
        "http://h/a%20b.tar",
        "http://h/a.tar?X-Amz-Signature=a*b[c]@10{d,e}",
        "http://h?file=x-{0..9}.tar",
        "https://h/a.tar?download",
        "s3://b/a.tar?versionId=x@10",
        "http://[::1]/a.tar",
        "http://[fe80::1%25eth0]:8080/a.tar",
        "s3://b@10/a.tar",
        "a[b.tar",
        "a:b.tar",
    ],
)
def test_is_one_literal_shard(text: str) -> None:
    pattern = ShardPattern.parse(text)
    assert pattern.expand() == [text]
    assert not pattern.needs_listing
    assert not pattern.list_files


@pytest.mark.parametrize(
    "text", ["x-{0..10}", "x-{00..10..5}-{a,b}", "{a,{b,c}d}e", "{3..-3}", "{-01..1}", "{b..f..2}"]
)
def test_braces_agree_with_braceexpand(text: str) -> None:
    assert expand(text) == list(braceexpand(text))


@given(st.integers(-30, 130), st.integers(-30, 130), st.integers(1, 9), st.booleans())
def test_ranges_agree_with_braceexpand(first: int, last: int, step: int, padded: bool) -> None:
    low = f"{first:03d}" if padded else str(first)
    text = f"x-{{{low}..{last}..{step}}}.tar"
    assert expand(text) == list(braceexpand(text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty; write at least one shard"),
        ("  ", "is empty"),
        ("a.tar::", "empty part"),
        ("::", "empty part"),
        ("x-@0.tar", "count 0"),
        ("x-@10-@20.tar", "two counts"),
        ("x-@10-@.tar", "two counts"),
        ("x-{0..9", r"'\{' without '\}'; write a range as '\{000\.\.999\}'"),
        ("x-0..9}", r"'\}' without '\{'"),
        ("x-{0-9}.tar", r"'\{0-9\}', which is neither a range nor a list; write '\{000\.\.999\}'"),
        ("x-{0...9}.tar", "neither a range nor a list"),
        ("x-{a..9}.tar", "neither a range nor a list"),
        ("x-{}.tar", "neither a range nor a list"),
        ("${HOME}/x.tar", "neither a range nor a list"),
        ("x-{0..9..0}.tar", "step 0"),
        ("{a@10,b@20}.tar", "count inside braces; write 'a-@10.tar::b-@20.tar'"),
        ("x-*-@10.tar", "a count and a wildcard"),
        ("x-%06d.tar", r"place is written '@', as in 'x-@\.tar', or '@0100' for 100"),
        ("@", "names no list; write the file .* as in '@shards.txt'"),
        ("x-[z-a].tar", "wildcard that cannot be read"),
        ("{" * 30 + "a,b" + "}" * 30, "neither a range|deeper than"),
        ("{a," * 500 + "b" + "}" * 500, "nests braces deeper"),
        ("x-@10000001.tar", "stands for 10,000,001 shards; at most 10,000,000"),
        ("x-@99999999999999999999999999.tar", "count of 26 digits"),
        ("x-{0..9999999999999}.tar", "at most 10,000,000"),
        ("x-{0..99999999999999999999}.tar", "more than 18 digits"),
        ("{0..999}" * 9, "at most 10,000,000"),
        ("x-{0..9" + "9" * 5000 + "}.tar", "more than 18 digits"),
    ],
)
def test_bad_notation_is_refused_with_one_that_works(text: str, says: str) -> None:
    with pytest.raises(ShardPatternError, match=says):
        ShardPattern.parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train-@.tgz", "'train-@.tgz' has no count; write the number of shards after '@', as in 'train-@0100.tgz'"),
        ("a/*.tar", "only after listing"),
        ("a/", "only after listing"),
        ("@x.txt", "only after reading its list"),
    ],
)
def test_expanding_what_the_pattern_does_not_say_is_an_error(text: str, says: str) -> None:
    with pytest.raises(ShardPatternError, match=re.escape(says)):
        expand(text)
    with pytest.raises(ShardPatternError, match=re.escape(says)):
        ShardPattern.parse(text).format(0)
    assert ShardPattern.parse(text).count is None


def test_passwords_and_signatures_stay_out_of_errors_and_repr() -> None:
    text = "http://joe:secret@h/x-{0-9}.tar?X-Amz-Signature=secret"
    with pytest.raises(ShardPatternError) as caught:
        ShardPattern.parse(text)
    assert "secret" not in caught.value.message
    assert "secret" not in str(caught.value.facts)
    assert "http://joe:***@h/x-" in caught.value.message
    assert "secret" not in repr(ShardPattern.parse("http://joe:secret@h/x.tar?sig=secret"))


# Patterns of all notations that need no store, mixed; the plain text has characters that mean something elsewhere.
plain = st.text(st.sampled_from("ab-_.%$=é "), min_size=1, max_size=5)
ranges = st.builds("{{{:02d}..{}..{}}}".format, st.integers(0, 12), st.integers(0, 12), st.integers(1, 3))
choices = st.recursive(
    plain | ranges,
    lambda inner: st.lists(inner, min_size=2, max_size=3).map(lambda options: f"{{{','.join(options)}}}"),
    max_leaves=5,
)
roots = st.sampled_from(["", "d/", "s3://b/", "http://u:p@10.0.0.1/", "http://[::1]/"])
counts = st.integers(1, 30).map("@{:03d}".format)
names = st.builds("{}x{}_{}_z{}".format, roots, st.lists(choices, max_size=2).map("".join), counts | plain, plain)
patterns = st.lists(names, min_size=1, max_size=2).map("::".join)


@settings(max_examples=200)
@given(patterns)
@example("a-@012.tar::http://u:p@10.0.0.1/{b,c{1..3}}-@02.tar")
def test_pattern_agrees_with_itself(text: str) -> None:
    pattern = ShardPattern.parse(text)
    assume((pattern.count or 0) < 300)
    names = pattern.expand()
    assert str(pattern) == text
    assert ShardPattern.parse(str(pattern)) == pattern == pickle.loads(pickle.dumps(pattern))
    assert pattern.count == len(names)
    assert [pattern.format(index) for index in range(len(names))] == names
    assert all(name.startswith(pattern.folder) for name in names)
    assert pattern.folder == "" or pattern.folder.endswith("/")
    assert [name for each in pattern.parts for name in each.expand()] == names


@given(
    st.integers(1, 2000),
    st.integers(0, 3),
    st.sampled_from(["x-", "s3://b/d/", ""]),
    st.sampled_from(["", ".tar", "-y.tgz"]),
)
def test_numbered_shards_are_distinct_sorted_and_equally_long(count: int, zeros: int, before: str, after: str) -> None:
    names = expand(f"{before or './'}@{'0' * zeros}{count}{after}")
    assert len(set(names)) == count
    assert names == sorted(names)
    assert len({len(name) for name in names}) == 1


@given(st.text(min_size=1).filter(str.strip))
def test_any_text_is_read_or_refused_never_a_crash(text: str) -> None:
    try:
        pattern = ShardPattern.parse(text)
    except ShardPatternError:
        return
    assert pattern.stem
    assert "/" not in pattern.stem
    assert isinstance(pattern.folder, str)
    assert isinstance(pattern.extension, str)


@given(
    st.text(st.sampled_from("ab/@1.{},*?[]!\\:%-"), min_size=1), st.sampled_from(["", "s3://b/", "http://u:p@[::1]/"])
)
def test_escaped_name_stands_for_itself(name: str, before: str) -> None:
    url = before + name
    if url.endswith("/") or (before.startswith("http") and "?" in name):
        return
    pattern = ShardPattern.parse(escape(url))
    assert pattern.expand() == [url]
    assert ShardPattern.from_lines([url]).expand() == [url] if ".." not in name and not url.startswith("#") else True


def test_open_count_closes_at_six_digits_or_more() -> None:
    pattern = ShardPattern.parse("s3://b/out-@.tar.gz")
    assert pattern.is_open
    assert pattern.with_count(3).expand() == [f"s3://b/out-00000{i}.tar.gz" for i in range(3)]
    assert pattern.format(2, 3) == "s3://b/out-000002.tar.gz"
    assert pattern.with_count(1_000_000).format(999_999) == "s3://b/out-0999999.tar.gz"
    assert pattern.with_count(7).count == 7
    assert not pattern.with_count(7).is_open


def test_count_that_disagrees_is_refused() -> None:
    with pytest.raises(ShardPatternError, match="has 10 shards where 7 are needed; leave the count open"):
        ShardPattern.parse("x-@10.tar").with_count(7)
    assert ShardPattern.parse("x-@10.tar").format(3, 10) == "x-03.tar"
    with pytest.raises(ShardPatternError, match="at least one"):
        ShardPattern.parse("x-@.tar").with_count(0)
    with pytest.raises(ShardPatternError, match="open beside other"):
        ShardPattern.parse("{a,b}-@.tar").with_count(2)


def test_index_out_of_range_is_refused() -> None:
    for index in (-1, 10):
        with pytest.raises(ShardPatternError, match=f"no shard {index}; its 10 shards are 0 to 9"):
            ShardPattern.parse("x-@10.tar").format(index)


@pytest.mark.parametrize(
    ("text", "prefix", "matching", "others"),
    [
        ("*.tar", "./", ["a.tar", "./a.tar"], [".a.tar", "d/a.tar", "a.tar.gz"]),
        ("d/x-?.tar", "d/", ["d/x-1.tar"], ["d/x-.tar", "d/x-10.tar"]),
        ("d/x-[0-3a].tar", "d/", ["d/x-2.tar", "d/x-a.tar"], ["d/x-4.tar", "d/x-b.tar"]),
        ("d/x-[!0-3].tar", "d/", ["d/x-4.tar"], ["d/x-2.tar", "d/x-/.tar"]),
        ("d/**/x.tar", "d/", ["d/x.tar", "d/e/x.tar", "d/e/f/x.tar"], ["x.tar", "d/.e/x.tar"]),
        ("s3://b/{train,val}/*.tar", "s3://b/", ["s3://b/train/1.tar", "s3://b/val/2.tar"], ["s3://b/test/1.tar"]),
        ("s3://b/x-{00..01}-*.tar", "s3://b/", ["s3://b/x-00-a.tar"], ["s3://b/x-02-a.tar"]),
        ("s3://b/x-??.tar", "s3://b/", ["s3://b/x-01.tar"], ["s3://b/x-1.tar"]),
        (r"d/\[a\]-*.tar", "d/", ["d/[a]-1.tar"], ["d/a-1.tar"]),
        ("mem://*.tar", "mem://", ["mem://a.tar"], ["mem://d/a.tar"]),
        ("http://h/d/*.tar", "http://h/d/", ["http://h/d/a.tar"], ["http://h/e/a.tar"]),
        (
            "d/t/",
            "d/t/",
            ["d/t/a.tar", "d/t/e/a.tar.zst", "d/t/a.tgz"],
            ["d/t/x.json", "d/t/_tarmill/a.tar", "d/t/.a.tar"],
        ),
        ("d/*/", "d/", ["d/t/a.tar"], ["d/a.tar"]),
    ],
)
def test_wildcards_and_folders_match(text: str, prefix: str, matching: list[str], others: list[str]) -> None:
    pattern = ShardPattern.parse(text)
    assert pattern.needs_listing
    assert pattern.listing_prefix == prefix
    assert [url for url in matching if not pattern.match(url)] == []
    assert [url for url in others if pattern.match(url)] == []


def test_what_cannot_be_listed_says_so() -> None:
    with pytest.raises(ShardPatternError, match="several hosts or buckets"):
        _ = ShardPattern.parse("s3://{a,b}/x-*.tar").listing_prefix
    with pytest.raises(ShardPatternError, match="several parts"):
        _ = ShardPattern.parse("a/*.tar::b/*.tar").listing_prefix


def test_mixed_pattern_is_resolved_in_its_order() -> None:
    stored = ["d/b.tar", "d/a.tar", "d/note.txt"]
    asked = []
    lists = {"l.txt": ["# mine\n", "\n", "x@1.tar\n", "s3://b/y z.tar\r\n"]}

    def list_urls(prefix: str) -> list[str]:
        asked.append(prefix)
        return stored

    found = ShardPattern.parse("z-@2.tar::d/::@l.txt::d/b*.tar").resolve(list_urls, lists.__getitem__)
    assert found == ["z-0.tar", "z-1.tar", "d/a.tar", "d/b.tar", "x@1.tar", "s3://b/y z.tar", "d/b.tar"]
    assert asked == ["d/", "d/"]
    with pytest.raises(ShardPatternError, match="'d/c.\\.tar' matches no shard under 'd/'".replace("c.", "c\\*")):
        ShardPattern.parse("d/c*.tar").resolve(list_urls, lists.__getitem__)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["", "# only this"], "lists no shards"),
        (["a.tar", "x-{0..9}.tar"], "range 'x-{0..9}.tar' as entry 2"),
        (["d/"], "folder 'd/' as entry 1"),
    ],
)
def test_list_that_names_no_shards_is_refused(lines: list[str], says: str) -> None:
    with pytest.raises(ShardPatternError, match=re.escape(says)):
        ShardPattern.from_lines(lines, "l.txt")


@pytest.mark.parametrize("text", ["@x.txt", "@d/2024-shards.txt", "@http://u:p@h/l.txt?a=1", "@-"])
def test_list_file_is_exposed(text: str) -> None:
    assert ShardPattern.parse(text).list_files == (text[1:],)


@pytest.mark.parametrize(
    ("text", "stem", "folder", "extension"),
    [
        ("train-@0100.tar.gz", "train", "", ".tar.gz"),
        ("x/{000..999}.tar", "shards", "x/", ".tar"),
        ("out.tar", "out", "", ".tar"),
        ("a.b.tar", "a.b", "", ".tar"),
        ("s3://b/d/laion-{00..12}.tgz", "laion", "s3://b/d/", ".tgz"),
        ("train-@10-a.tar.zst", "train-a", "", ".tar.zst"),
        ("http://h/d/x-@10.tar?t=a/b.c", "x", "http://h/d/", ".tar"),
        ("d/t/", "t", "d/t/", ""),
        ("d/t-*.tar", "t", "d/", ".tar"),
        ("@l/train.txt", "train", "", ""),
        ("d/{a,b}/x-@10.tar", "x", "d/", ".tar"),
        ("d/a/x.tar::d/b/y.tar", "x", "d/", ".tar"),
        ("http://a/x.tar::http://b/x.tar", "x", "", ".tar"),
        ("s3://{a,b}/x.tar", "x", "", ".tar"),
        ("/x.tar", "x", "/", ".tar"),
        ("mem://x-@2.tar", "x", "mem://", ".tar"),
        ("x.{tar,tgz}", "x", "", ""),
        ("-", "shards", "", ""),
    ],
)
def test_stem_folder_and_extension(text: str, stem: str, folder: str, extension: str) -> None:
    pattern = ShardPattern.parse(text)
    assert (pattern.stem, pattern.folder, pattern.extension) == (stem, folder, extension)
