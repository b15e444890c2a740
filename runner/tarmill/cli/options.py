"""Command line options made from the fields of the specs, and values such as 500MB or 5m."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import click

from tarmill.spec import Option, Spec, option_of

F = TypeVar("F", bound=Callable[..., Any])

_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SECONDS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Bytes(click.ParamType[int]):
    """A size: 500MB, 1.5GiB, 4096."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the size in bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", value, re.IGNORECASE)
        if not match:
            self.fail(f"{value!r} is no size; write it as 500MB, 1.5GiB or 4096", param, ctx)
        return int(float(match[1]) * _BYTES[(match[2] or "").lower()])


class Seconds(click.ParamType[float]):
    """A duration: 90s, 5m, 1.5h."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the duration in seconds."""
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*", value)
        if not match:
            self.fail(f"{value!r} is no duration; write it as 90s, 5m or 1.5h", param, ctx)
        return float(match[1]) * _SECONDS[match[2] or ""]


def spec_options(kind: type[Spec], *, leave_out: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Make a decorator that adds an option or argument for each field of a spec, in order."""

    def decorate(function: F) -> F:
        hints = typing.get_type_hints(kind)
        for field in reversed(dataclasses.fields(kind)):  # type: ignore[arg-type]
            known = option_of(field)
            if not known.hidden and field.name not in leave_out:
                function = _parameter(field, known, hints[field.name])(function)
        return function

    return decorate


def _parameter(field: dataclasses.Field[Any], known: Option, hint: Any) -> Callable[[Any], Any]:
    if known.argument:
        return click.argument(field.name, metavar=known.metavar)
    flags = (*known.flags, field.name) if known.flags else ("--" + field.name.replace("_", "-"), field.name)
    settings: dict[str, Any] = {"help": known.help, "metavar": known.metavar}
    base = typing.get_origin(hint) or hint
    if base is bool:
        return click.option(*flags, is_flag=True, default=False, help=known.help)
    if base in (tuple, dict):
        return click.option(*flags, multiple=True, **settings)
    if field.default is dataclasses.MISSING:
        settings["required"] = True
    else:
        settings["default"] = field.default
        settings["show_default"] = field.default not in ("", 0, 0.0, -1)
    if known.choices:
        settings["type"] = click.Choice(known.choices)
        settings["metavar"] = None
    elif known.unit == "bytes":
        settings["type"] = Bytes()
        settings["default"] = _show_bytes(settings["default"])
    elif known.unit == "seconds":
        settings["type"] = Seconds()
    elif base in (int, float):
        settings["type"] = base
    return click.option(*flags, **settings)


def _show_bytes(size: int) -> str:
    if not size:
        return "0"
    return f"{size >> 30}GiB" if size % (1 << 30) == 0 else f"{size}"


def split_values(kind: type[Spec], values: dict[str, Any]) -> dict[str, Any]:
    """Take a spec's fields out of click's values: lists split at commas, K=V pairs into dicts.

    Raises:
        click.BadParameter: a pair without '='.
    """
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in values:
            continue
        value = values[field.name]
        base = typing.get_origin(hints[field.name]) or hints[field.name]
        if base is tuple:
            value = tuple(part for item in value for part in item.split(",") if part)
        elif base is dict:
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
        raise click.BadParameter(f"{text!r} is no K=V pair; write it as --{name.rstrip('s')} size=224")
    return key, value
