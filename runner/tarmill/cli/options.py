"""Click's options made from the fields of the specs; `arguments` has what needs no click."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from tarmill.cli.arguments import base_of, flags_of, split_pair, split_values
from tarmill.quantities import read_bytes, read_seconds, show_bytes, show_seconds
from tarmill.spec import RunOptions
from tarmill.spec_base import Option, Spec, option_of
from tarmill.values import Field, fields

__all__ = ["Bytes", "Seconds", "spec_options", "split_pair", "split_values", "store_options", "use_stores"]

_OF_STORES = ("s3_endpoint", "anonymous", "requester_pays", "store_options", "ca_file")

F = TypeVar("F", bound=Callable[..., Any])


class Bytes(click.ParamType[int]):
    """A size: 500MB, 1.5GiB, 4096."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the size in bytes."""
        if isinstance(value, int):
            return value
        try:
            return read_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Seconds(click.ParamType[float]):
    """A duration: 90s, 5m, 1.5h."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the duration in seconds."""
        if isinstance(value, int | float):
            return float(value)
        try:
            return read_seconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def spec_options(kind: type[Spec], *, leave_out: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Make a decorator that adds an option or argument for each field of a spec, in order."""

    def decorate(function: F) -> F:
        for field in reversed(fields(kind)):
            known = option_of(field)
            if not known.hidden and field.name not in leave_out:
                function = _parameter(field, known)(function)
        return function

    return decorate


def store_options(function: F) -> F:
    """Add the options that say how stores are reached, for commands that run no job; see `use_stores`."""
    others = tuple(field.name for field in fields(RunOptions) if field.name not in _OF_STORES)
    return spec_options(RunOptions, leave_out=others)(function)


def use_stores(values: dict[str, Any]) -> None:
    """Reach stores as the values of `store_options` say, in this process from now on.

    Raises:
        SpecError: an option that cannot be.
    """
    from tarmill.jobs.drive import settings_of

    settings_of(RunOptions(**split_values(RunOptions, values)))


def _parameter(field: Field, known: Option) -> Callable[[Any], Any]:
    if known.argument and base_of(field) == "tuple":
        return click.argument(field.name, metavar=known.metavar, nargs=-1, required=True)
    if known.argument:
        return click.argument(field.name, metavar=known.metavar)
    flags = (*flags_of(field, known), field.name)
    settings: dict[str, Any] = {"help": known.help, "metavar": known.metavar}
    base = base_of(field)
    if base == "bool":
        return click.option(*flags, is_flag=True, default=False, help=known.help)
    if base in ("tuple", "dict"):
        return click.option(*flags, multiple=True, **settings)
    if field.required:
        settings["required"] = True
    else:
        settings["default"] = field.default
        settings["show_default"] = field.default not in ("", 0, 0.0, -1)
    if known.choices:
        settings["type"] = click.Choice(known.choices)
        settings["metavar"] = None
        settings["default"] = field.default or None
    elif known.unit == "bytes":
        settings["type"] = Bytes()
        settings["default"] = show_bytes(settings["default"])
    elif known.unit == "seconds":
        settings["type"] = Seconds()
        settings["default"] = show_seconds(settings["default"])
    elif base in ("int", "float"):
        settings["type"] = int if base == "int" else float
    return click.option(*flags, **settings)
