r"""Key functions: how a member's name gives a sample's key and a field.

| member name | base_plus_ext | dir_plus_file | last_dir |
|---|---|---|---|
| `a.jpg` | a, jpg | - | - |
| `d.x/a.seg.jpg` | d.x/a, seg.jpg | d.x, a.seg.jpg | d.x, a.seg.jpg |
| `e/d/a.jpg` | e/d/a, jpg | e/d, a.jpg | d, a.jpg |
| `./a.jpg` | ./a, jpg (the prefix is kept) | ., a.jpg | ., a.jpg |
| `/a.jpg` | /a, jpg | - | - |
| `d/a`, `a` (no dot) | - | d, a; - | d, a; - |
| `a.` | a, the empty field | - | - |
| `a..b` | a, .b | - | - |
| `1.5 x.mp3` | 1, `5 x.mp3` | - | - |
| `.hidden`, `.hidden.txt` | - | - | - |
| `d/.hidden.txt`, `d/._a.jpg` | - | d, .hidden.txt; d, ._a.jpg | the same |
| `d/`, the empty name | - | - | - |
| `__x__`, `__x__/a.jpg` (metadata) | - | - | - |

"-" is a member of no sample: None, which readers count. The rule of `base_plus_ext` is webdataset's: directories are
kept, the first dot of the last path component divides, case is kept. One difference: webdataset gives all hidden files
of a folder the key `d/`, which makes one sample of unrelated files; here they are no members, as at the top level (and
as in DALI and Hugging Face datasets). `dir_plus_file` and `last_dir` are htpar's; they take hidden files too, since the
folder alone is the key. A regular expression is searched in the name; its first group is the key, its second the field.

A top-level name `__x__`, and all under a top-level folder of such a name, is reserved for metadata, as in webdataset.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tarmill.errors import SpecError

KeyFunction = Callable[[str], tuple[str, str] | None]
"""Name of a member -> (key, field), or None when it belongs to no sample."""

_RESERVED = r"__[^/]*__(?:$|/)"


def _is_reserved(name: str) -> bool:
    return name[:2] == "__" and re.match(_RESERVED, name) is not None


def base_plus_ext(name: str) -> tuple[str, str] | None:
    """Split at the first dot of the last path component; names without one, and hidden files, give None."""
    start = name.rfind("/") + 1
    dot = name.find(".", start)
    if dot <= start or (name[:2] == "__" and _is_reserved(name)):
        return None
    return name[:dot], name[dot + 1 :]


def dir_plus_file(name: str) -> tuple[str, str] | None:
    """Take the whole folder as key and the file's name as field; files outside any folder give None."""
    folder, _, file = name.rpartition("/")
    folder = folder.rstrip("/")
    return (folder, file) if folder and file and not _is_reserved(name) else None


def last_dir(name: str) -> tuple[str, str] | None:
    """Take the innermost folder alone as key and the file's name as field; files outside any folder give None."""
    found = dir_plus_file(name)
    return (found[0].rpartition("/")[2], found[1]) if found is not None else None


KEY_FUNCTIONS: dict[str, KeyFunction] = {
    "base_plus_ext": base_plus_ext,
    "dir_plus_file": dir_plus_file,
    "last_dir": last_dir,
}


def key_function(name_or_regex: str) -> KeyFunction:
    """Get a key function by its name, or make one from a regular expression (anything with a parenthesis).

    Names in which the expression is not found, or finds an empty key, give None.

    Raises:
        SpecError: for an unknown name, an expression that cannot be read, or one without exactly two groups.
    """
    known = KEY_FUNCTIONS.get(name_or_regex)
    if known is not None:
        return known
    if "(" not in name_or_regex:
        import difflib

        near = difflib.get_close_matches(name_or_regex, KEY_FUNCTIONS, n=1)
        raise _error(
            name_or_regex,
            f"is no key function{f' (did you mean {near[0]!r}?)' if near else ''}; expected one of "
            f"{', '.join(KEY_FUNCTIONS)}, or a regular expression with two groups, key and field, as '^(.*)_(\\w+)$'",
        )
    try:
        pattern = re.compile(name_or_regex)
    except (re.error, OverflowError, RecursionError) as error:
        raise _error(
            name_or_regex, f"is no regular expression: {error}; write '\\(' for a parenthesis that stands for itself"
        ) from error
    if pattern.groups != 2:
        raise _error(
            name_or_regex,
            f"has {pattern.groups} groups; expected two, the key and the field ('(?:...)' groups without counting)",
        )
    search = pattern.search

    def by_regex(name: str) -> tuple[str, str] | None:
        found = search(name)
        if found is None or _is_reserved(name):
            return None
        key, field = found.groups()
        return (key, field) if key and field is not None else None

    return by_regex


def _error(value: str, message: str) -> SpecError:
    return SpecError(f"key function {value!r} {message}", field="key_function", value=value)
