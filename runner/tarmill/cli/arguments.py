"""Command lines without click: its import and its machinery cost more than the rest of a command's start-up.

What `plain_values` understands, it reads as click reads it (a test holds the two against each other). Everything else,
help and mistakes above all, it leaves to click, which has the words for it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tarmill.quantities import read_bytes, read_seconds
from tarmill.spec_base import Option, Spec, option_of
from tarmill.values import Field, fields


def base_of(field: Field) -> str:
    """Name the type of a spec's field, without what is in its brackets: "str", "tuple"."""
    return field.annotation.partition("[")[0]


def flags_of(field: Field, known: Option) -> tuple[str, ...]:
    """Name the flags of a field that is an option."""
    return known.flags or ("--" + field.name.replace("_", "-"),)


def split_values(kind: type[Spec], values: dict[str, Any]) -> dict[str, Any]:
    """Take a spec's fields out of a command line's values: lists split at commas, K=V pairs into dicts.

    Raises:
        click.BadParameter: a pair without '='.
    """
    found = {}
    for field in fields(kind):
        if values.get(field.name) is None:  # not asked for, or an option without a default of its own
            continue
        value = values[field.name]
        if base_of(field) == "tuple" and option_of(field).argument:
            value = tuple(value)  # names of files: the shell has separated them
        elif base_of(field) == "tuple":
            value = tuple(part for item in value for part in item.split(",") if part)
        elif base_of(field) == "dict":
            value = dict(split_pair(item, field.name) for item in value)
        found[field.name] = value
    return found


def split_pair(text: str, name: str) -> tuple[str, str]:
    """Split K=V at the first '='.

    Raises:
        click.BadParameter: there is none, or nothing before it.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        import click

        flag = "--" + name.rstrip("s").replace("_", "-")
        raise click.BadParameter(f"{text!r} is no K=V pair; write it as {flag} size=224")
    return key, value


def plain_values(arguments: Sequence[str], *kinds: type[Spec]) -> dict[str, Any] | None:
    """Read the values of all fields of some specs from a command line, in the form in which click gives them.

    Returns:
        Field name -> value (`split_values` goes on from there), or None for what is left to click: anything that is not
        plainly right, `--help`, `--`, values that begin with a dash, flags run together, shell completion.
    """
    if any(name.endswith("_COMPLETE") for name in os.environ):
        return None
    places: list[Field] = []
    by_flag: dict[str, Field] = {}
    values: dict[str, Any] = {}
    required: set[str] = set()
    for field in (one for kind in kinds for one in fields(kind)):
        known = option_of(field)
        if known.hidden:
            continue
        if known.argument:
            places.append(field)
            continue
        by_flag.update(dict.fromkeys(flags_of(field, known), field))
        if base_of(field) in ("tuple", "dict"):
            values[field.name] = ()
        elif field.required:
            required.add(field.name)
        else:
            values[field.name] = field.default
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word == "-" or not word.startswith("-"):
            words.append(word)
            continue
        flag, attached = _flag_and_value(word)
        if (found := by_flag.get(flag)) is None:
            return None
        if base_of(found) == "bool":
            if attached is not None:
                return None
            values[found.name] = True
            continue
        text = attached if attached is not None else next(rest, None)
        if text is None or (attached is None and text.startswith("-") and text != "-"):
            return None
        try:
            value = _convert(found, text)
        except ValueError:
            return None
        values[found.name] = (*values[found.name], value) if base_of(found) in ("tuple", "dict") else value
    if len(words) < len(places) or not required <= values.keys():
        return None
    for behind, place in zip(reversed(range(len(places))), places, strict=True):
        count = len(words) - behind if base_of(place) == "tuple" else 1
        values[place.name] = tuple(words[:count]) if base_of(place) == "tuple" else words[0]
        del words[:count]
    return None if words else values


def _flag_and_value(word: str) -> tuple[str, str | None]:
    """Divide `--flag=value` and `-fvalue`; the value is None where there is none."""
    if not word.startswith("--"):
        return word[:2], word[2:] or None
    flag, equals, value = word.partition("=")
    return flag, value if equals else None


def _convert(field: Field, text: str) -> Any:
    known = option_of(field)
    if known.choices and base_of(field) != "tuple":
        if text not in known.choices:
            raise ValueError(f"{text!r} is none of {known.choices}")
        return text
    if known.unit == "bytes":
        return read_bytes(text)
    if known.unit == "seconds":
        return read_seconds(text)
    base = base_of(field)
    return int(text) if base == "int" else float(text) if base == "float" else text
