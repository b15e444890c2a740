"""Classes of named fields, as `dataclasses` makes them, at a tenth of their price.

`dataclasses` writes and compiles source text for each class, 0.5 to 2 ms each, and imports `inspect`: with the forty
classes that a command needs this was half of its start-up. Here all classes share their methods. Making an instance
takes a few microseconds, which is nothing for what exists once in a job or a shard; what exists once in a member has a
class of its own, written out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, dataclass_transform, overload

T = TypeVar("T")

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()
"""The default of a field that must be given."""


class FrozenError(AttributeError):
    """Someone tried to change a value."""


class Field:
    """What is known of one field of a class."""

    __slots__ = ("annotation", "default", "default_factory", "init", "metadata", "name")

    def __init__(
        self, default: Any, default_factory: Callable[[], Any] | None, init: bool, metadata: Mapping[str, Any]
    ) -> None:
        self.name = self.annotation = ""
        self.default = default
        self.default_factory = default_factory
        self.init = init
        self.metadata = metadata

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is MISSING and self.default_factory is None

    def make_default(self) -> Any:
        """Give the default, a fresh one where it can be changed."""
        return self.default if self.default_factory is None else self.default_factory()


def field(
    *,
    default: Any = MISSING,
    default_factory: Callable[[], Any] | None = None,
    init: bool = True,
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """Declare a field with more than a plain default.

    Args:
        default: its value where none is given.
        default_factory: makes the default.
        init: False for what `__post_init__` derives from the other fields; it is not compared.
        metadata: for whoever asks.
    """
    return Field(default, default_factory, init, metadata or {})


@overload
def valueclass(cls: type[T], /) -> type[T]: ...
@overload
def valueclass(*, frozen: bool = True, kw_only: bool = False) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def valueclass(cls: type[T] | None = None, /, *, frozen: bool = True, kw_only: bool = False) -> Any:
    """Make a class of its annotated fields: `__init__`, `__repr__`, comparison, and a hash where it is frozen.

    Args:
        cls: the class, where the decorator stands without parentheses.
        frozen: whether its fields stay as they are.
        kw_only: whether they are given by name only.
    """

    def decorate(kind: type[T]) -> type[T]:
        known: dict[str, Field] = dict(getattr(kind, "__fields__", {}))
        for name, annotation in kind.__annotations__.items():
            if not annotation.startswith("ClassVar"):
                known[name] = _declared(kind, name, annotation)
        methods: dict[str, Any] = {
            "__fields__": known,
            "__plan__": _Plan(kind, known, kw_only),
            "__init__": _init,
            "__repr__": _repr,
            "__eq__": _equal,
            "__hash__": _hash if frozen else None,
        }
        if frozen:
            methods |= {"__setattr__": _refuse, "__delattr__": _refuse}
        own = vars(kind)
        for name, method in methods.items():
            if name not in own or name == "__hash__":
                setattr(kind, name, method)
        return kind

    return decorate if cls is None else decorate(cls)


def fields(value_or_class: Any) -> tuple[Field, ...]:
    """Give the fields of a value or of its class, in order."""
    found: dict[str, Field] = value_or_class.__fields__
    return tuple(found.values())


def replace(instance: T, /, **changes: Any) -> T:
    """Make a value of another one with some fields changed."""
    same = {one.name: getattr(instance, one.name) for one in fields(instance) if one.init}
    return type(instance)(**(same | changes))


def _declared(kind: type, name: str, annotation: str) -> Field:
    given = vars(kind).get(name, MISSING)
    known = given if isinstance(given, Field) else Field(given, None, True, {})
    known.name, known.annotation = name, annotation
    if known is given:
        if known.default is MISSING:
            delattr(kind, name)
        else:
            setattr(kind, name, known.default)
    return known


class _Plan:
    """What `_init` needs to know of a class, looked up once."""

    __slots__ = ("defaults", "factories", "finish", "names", "places")

    def __init__(self, kind: type, known: Mapping[str, Field], kw_only: bool) -> None:
        given = {name: one for name, one in known.items() if one.init}
        self.names = given.keys()
        self.places = () if kw_only else tuple(given)
        self.defaults = {name: one.default for name, one in given.items() if one.default is not MISSING}
        self.factories = [(name, one.default_factory) for name, one in given.items() if one.default_factory]
        self.finish = hasattr(kind, "__post_init__")


def _init(self: Any, *args: Any, **given: Any) -> None:
    plan, values = type(self).__plan__, self.__dict__  # a frozen value refuses setattr, not this
    values.update(plan.defaults)
    values.update(zip(plan.places, args, strict=False))
    values.update(given)
    for name, make in plan.factories:
        if name not in values:
            values[name] = make()
    if (
        values.keys() != plan.names
        or len(args) > len(plan.places)
        or not given.keys().isdisjoint(plan.places[: len(args)])
    ):
        values.clear()
        raise TypeError(_complaint(type(self), len(args), given))
    if plan.finish:
        self.__post_init__()


def _complaint(kind: Any, count: int, given: Mapping[str, Any]) -> str:
    plan = kind.__plan__
    if count > len(plan.places):
        return f"{kind.__name__} takes {len(plan.places)} values, not {count}"
    placed = plan.places[:count]
    if twice := [name for name in placed if name in given]:
        return f"{kind.__name__} got {twice[0]!r} twice"
    if unknown := [name for name in given if name not in plan.names]:
        return f"{kind.__name__} has no field {unknown[0]!r}"
    optional = plan.defaults.keys() | {name for name, _ in plan.factories}
    needed = [name for name in plan.names if name not in optional and name not in given and name not in placed]
    return f"{kind.__name__} needs {', '.join(map(repr, needed))}"


def _compared(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, one.name) for one in fields(self) if one.init)


def _repr(self: Any) -> str:
    shown = ", ".join(f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if one.init)
    return f"{type(self).__name__}({shown})"


def _equal(self: Any, other: object) -> Any:
    return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))


def _refuse(self: Any, name: str, *_: Any) -> None:
    raise FrozenError(f"{type(self).__name__}.{name} cannot be changed; make another one with replace()")
