"""What every spec is made of: fields with their help and flags, checks, conversion from and to spec files.

A field's help, default and choices stand beside it, by `option`. Names are snake_case in Python and camelCase in files;
`to_dict` and `from_dict` convert.
"""

from __future__ import annotations

import types
import typing
from typing import Any, Self

from tarmill.errors import SpecError
from tarmill.quantities import read_bytes, read_seconds
from tarmill.values import MISSING, Field, field, fields, valueclass


@valueclass
class Option:
    """What a command line, a spec file or a CRD needs to know of a field, besides its type and default."""

    help: str
    file_help: str = ""
    """What it is in a file, where `help` speaks of flags, a terminal or commas; "" for the same."""
    flags: tuple[str, ...] = ()
    """Command line flags; () for `--field-name`, or an argument where `argument` is set."""
    argument: bool = False
    choices: tuple[str, ...] = ()
    """What its value may be; of a field that holds several, each of them."""
    metavar: str | None = None
    unit: str = ""
    """"bytes" for sizes such as 500MB, "seconds" for durations such as 5m."""
    numeric: bool = False
    """Whether a text may be a number, so that files may hold it without quotes."""
    identity: bool = False
    """Whether the value changes the bytes that come out, so that it is part of the job id."""
    hidden: bool = False
    local: bool = False
    """Whether it belongs to one call of a command and not to the job, so that spec files do not hold it."""


def option(default: Any = MISSING, *, help: str, **facts: Any) -> Any:
    """Declare a field of a spec with its `Option`; mutable defaults are copied."""
    metadata = {"option": Option(help=help, **facts)}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def option_of(spec_field: Field) -> Option:
    """Give the `Option` of a field that was declared by `option`."""
    found: Option = spec_field.metadata["option"]
    return found


class Spec:
    """What all specs share: choices are checked, conversion to and from dicts."""

    def __post_init__(self) -> None:
        for spec_field in fields(self):
            known = option_of(spec_field)
            value = getattr(self, spec_field.name)
            if known.choices and value != spec_field.default:
                self._check_choice(spec_field.name, value, known.choices)

    def _check_choice(self, name: str, value: Any, choices: tuple[str, ...]) -> None:
        if not isinstance(value, tuple):
            if value not in choices:
                self.refuse(name, f"expected one of {', '.join(choices)}")
        elif unknown := [item for item in value if item not in choices]:
            told = f"{_flag(type(self), name)} has {unknown[0]!r}; expected some of {', '.join(choices)}"
            raise SpecError(told, field=name, value=value)

    def refuse(self, name: str, expected: str) -> typing.NoReturn:
        """Raise the SpecError for a field's value: found, expected, where."""
        value = getattr(self, name)
        found = "given" if value is True else repr(value)
        raise SpecError(f"{_flag(type(self), name)} is {found}; {expected}", field=name, value=value)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields that differ from their defaults, in camelCase, as JSON-able values; no local ones."""
        found = {}
        for spec_field in fields(self):
            value = getattr(self, spec_field.name)
            if value != spec_field.make_default() and not option_of(spec_field).local:
                found[camel(spec_field.name)] = list(value) if isinstance(value, tuple) else value
        return found

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a spec from what `to_dict` gives or a person wrote; sizes and durations may be text, as in 500MB, 5m.

        Raises:
            SpecError: an unknown field (with the nearest known one), a local one, a value of another type, a missing
                field.
        """
        hints = typing.get_type_hints(cls)
        local = {camel(f.name): f for f in fields(cls) if option_of(f).local}
        names = {camel(f.name): f for f in fields(cls) if not option_of(f).local}
        found = {}
        for name, value in values.items():
            if name in local:
                told = f"field {name!r} belongs to a command line, as {_flag(cls, local[name].name)}; leave it out here"
                raise SpecError(told, field=name, value=value)
            if name not in names:
                raise SpecError(f"unknown field {name!r}{_nearest(str(name), names)}", field=name, value=value)
            known = option_of(names[name])
            if known.numeric and type(value) is int:
                value = str(value)
            found[names[name].name] = _checked(name, _measured(name, value, known.unit), hints[names[name].name])
        for name, spec_field in names.items():
            if spec_field.required and spec_field.name not in found:
                raise SpecError(f"field {name!r} is missing; {option_of(spec_field).help}", field=name, value=None)
        return cls(**found)


def camel(name: str) -> str:
    """`max_member_bytes` -> `maxMemberBytes`."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _flag(kind: type, name: str) -> str:
    known = {f.name: option_of(f) for f in fields(kind)}.get(name)
    if known is None or known.argument:
        return name.upper()
    return known.flags[-1] if known.flags else "--" + name.replace("_", "-")


def _nearest(name: str, names: typing.Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(names))}"


def _measured(name: str, value: Any, unit: str) -> Any:
    """Read a size or duration that is written as text; other values stay as they are."""
    if not unit or not isinstance(value, str):
        return value
    try:
        return read_bytes(value) if unit == "bytes" else read_seconds(value)
    except ValueError as error:
        raise SpecError(f"field {name!r}: {error}", field=name, value=value) from None


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Check a value from a file against the type of its field; lists become tuples."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        base = typing.get_origin(kind) or kind
        if base is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        if base is dict and isinstance(value, dict):
            if wrong := [item for item in value.items() if not all(isinstance(part, str) for part in item)]:
                raise SpecError(
                    f"field {name!r} has {wrong[0][0]!r}: {wrong[0][1]!r}; expected text on both sides: write it in "
                    "quotes",
                    field=name,
                    value=value,
                )
            return value
        if base is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, base) and not (base is int and isinstance(value, bool)):
            return value
    wanted = " or ".join(getattr(typing.get_origin(k) or k, "__name__", str(k)) for k in kinds).replace("tuple", "list")
    raise SpecError(
        f"field {name!r} is {value!r}; expected {wanted.replace('NoneType', 'null')}", field=name, value=value
    )
