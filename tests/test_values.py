"""Classes of named fields: what they promise, held against `dataclasses` where both can do it."""

from __future__ import annotations

import copy
import pickle
from typing import ClassVar

import pytest

from tarmill.values import FrozenError, field, fields, replace, valueclass


@valueclass
class Point:
    names: ClassVar[str] = "xy"
    x: int
    y: int = 0
    seen: list[int] = field(default_factory=list)
    sum: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sum", self.x + self.y)


@valueclass
class Placed(Point):
    place: str = ""


@valueclass(frozen=False)
class Count:
    n: int = 0


@valueclass(kw_only=True)
class Named:
    name: str


def test_fields_come_by_place_or_name_with_defaults_that_are_not_shared():
    one, two = Point(1), Point(y=2, x=1)
    assert (one.x, one.y, one.sum, two.sum) == (1, 0, 1, 3)
    one.seen.append(5)
    assert two.seen == []
    assert [f.name for f in fields(Point)] == ["x", "y", "seen", "sum"]
    assert Placed(1, 2, [], "here").place == "here"


@pytest.mark.parametrize(
    "call", [lambda: Point(), lambda: Point(1, z=2), lambda: Point(1, x=1), lambda: Point(*range(4))]
)
def test_wrong_calls_are_refused(call):
    with pytest.raises(TypeError, match="Point"):
        call()
    with pytest.raises(TypeError):
        Named("by place")  # type: ignore[misc]


def test_values_compare_and_print_by_their_fields_and_stay_as_they_are():
    assert Point(1, 2) == Point(1, 2) != Point(1, 3)
    assert Point(1) != Placed(1)
    assert repr(Point(1, 2)) == "Point(x=1, y=2, seen=[])"
    assert hash(Named(name="a")) == hash(Named(name="a"))
    with pytest.raises(FrozenError, match=r"Point\.x"):
        Point(1).x = 2  # type: ignore[misc]
    with pytest.raises(FrozenError):
        del Point(1).x
    count = Count()
    count.n += 1
    assert count == Count(1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(count)


def test_values_are_replaced_copied_and_pickled():
    point = Point(1, 2, [3])
    assert replace(point, x=5) == Point(5, 2, [3])
    assert replace(point, x=5).sum == 7
    assert pickle.loads(pickle.dumps(point)) == copy.deepcopy(point) == point
