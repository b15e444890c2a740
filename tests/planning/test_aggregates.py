"""Aggregates: parts merged are the whole; exact ones to the last digit, sketches within their promise."""

from __future__ import annotations

import bisect
import json
import math
import random
import statistics
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill.errors import UsageError
from tarmill.planning.aggregates import Aggregate, Top, make_aggregate
from tarmill.planning.column_stats import NAMES, Moments

VALUES = st.one_of(
    st.none(), st.binary(max_size=3), st.text(max_size=3), st.integers(-5, 5), st.booleans(),
    st.sampled_from([0.5, 1.0, -0.0, math.nan]), st.lists(st.integers(0, 1), max_size=2),
)  # fmt: skip
ROWS = st.lists(st.tuples(VALUES, VALUES), max_size=12)
KINDS = ["count", "top", "keys", "stats"]


def aggregate(kind: str, rows: list[Any]) -> Aggregate:
    made = make_aggregate(kind, ["a", "b"], 1000)
    if kind == "keys":
        rows = [{"__key__": "k", "key": "k"} | {repr(v): i for i, v in enumerate(row) if v is not None} for row in rows]
    made.update(rows)
    return made


def crossed(kind: str, made: Aggregate) -> Aggregate:
    other = make_aggregate(kind, ["a", "b"], 1000)
    other.load(json.loads(json.dumps(made.to_dict())))
    return other


def shown(made: Aggregate) -> str:
    return repr(made.result())


@pytest.mark.parametrize("kind", KINDS)
@given(rows=ROWS)
def test_an_aggregate_survives_the_way_to_the_driver(kind: str, rows: list[Any]) -> None:
    made = aggregate(kind, rows)
    assert shown(crossed(kind, made)) == shown(made)


@pytest.mark.parametrize("kind", ["count", "top", "keys"])
@given(rows=ROWS, cut=st.integers(0, 12))
def test_parts_merged_are_the_whole(kind: str, rows: list[Any], cut: int) -> None:
    first, second = aggregate(kind, rows[:cut]), aggregate(kind, rows[cut:])
    first.merge(crossed(kind, second))
    assert shown(first) == shown(aggregate(kind, rows))


@pytest.mark.parametrize("kind", ["count", "top", "keys"])
@given(parts=st.tuples(ROWS, ROWS, ROWS))
def test_merging_is_associative_and_an_empty_part_changes_nothing(kind: str, parts: tuple[list[Any], ...]) -> None:
    a, b, c = (aggregate(kind, rows) for rows in parts)
    right, last = aggregate(kind, parts[1]), aggregate(kind, parts[2])
    right.merge(last)
    whole = aggregate(kind, parts[0])
    whole.merge(right)
    a.merge(b)
    a.merge(aggregate(kind, []))
    a.merge(c)
    assert shown(a) == shown(whole)


@given(ROWS)
def test_top_counts_what_json_calls_equal_and_orders_by_count_then_value(rows: list[Any]) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, bool | list):
            return json.dumps(value, separators=(",", ":"))
        if isinstance(value, bytes):
            return value.decode("utf-8", "surrogateescape")
        return "NaN" if value != value else value

    expected = Counter(tuple(map(plain, row)) for row in rows)
    found = aggregate("top", rows).result().rows
    assert {row[1:]: row[0] for row in found} == expected
    assert [row[0] for row in found] == sorted(expected.values(), reverse=True)


def test_top_shows_the_first_n_with_ties_by_value_and_numbers_as_numbers() -> None:
    top = Top(["n"], 4)
    top.update([(n,) for n in (10, 9, 9, 10, 2, "2", None, 7)])
    assert top.result().names == ("count", "n")
    assert top.result().rows == [(2, 9), (2, 10), (1, None), (1, 2)]
    assert top.distinct == 6


@pytest.mark.parametrize("limits", [{"max_distinct": 2}, {"max_value_bytes": 5}])
def test_top_ends_at_its_bound_and_says_what_to_do(limits: dict[str, int]) -> None:
    top = Top(["a"], 3, **limits)
    top.update([("aa",), ("bb",), ("bb",)])
    with pytest.raises(UsageError, match=r"--where.*--stats"):
        top.update([("cc",)])


def test_keys_show_samples_fields_and_bytes() -> None:
    keys = make_aggregate("keys", [])
    keys.update(
        [{"__key__": "a", "__url__": "u", "key": "a", "jpg": 10, "cls": 1}, {"__key__": "b", "key": 3, "jpg": 4}]
    )
    assert keys.result().rows == [("__key__", 2, 18), ("cls", 1, 1), ("jpg", 2, 14), ("key", 1, 3)]


def stats(values: list[Any], parts: int = 1) -> dict[str, Any]:
    whole = make_aggregate("stats", ["x"])
    size = max(1, math.ceil(len(values) / parts))
    for start in range(0, len(values), size):
        part = make_aggregate("stats", ["x"])
        part.update([(value,) for value in values[start : start + size]])
        other = make_aggregate("stats", ["x"])
        other.load(json.loads(json.dumps(part.to_dict())))
        whole.merge(other)
    (row,) = whole.result().rows
    return dict(zip(NAMES, row, strict=True))


FINITE = st.floats(-1e6, 1e6)


@given(st.lists(st.one_of(FINITE, st.integers(-1000, 1000)), min_size=2, max_size=40), st.integers(1, 5))
def test_moments_are_those_of_the_statistics_module_however_they_are_cut(values: list[float], parts: int) -> None:
    found = stats(values, parts)
    assert (found["n"], found["min"], found["max"]) == (len(values), min(values), max(values))
    assert found["mean"] == pytest.approx(statistics.fmean(values), rel=1e-9, abs=1e-6)
    assert found["std"] == pytest.approx(statistics.stdev(values), rel=1e-9, abs=1e-6)
    assert found["distinct"] == len({float(value) for value in values})
    assert min(values) <= found["p50"] <= max(values)


@given(st.lists(st.lists(FINITE, max_size=8), min_size=3, max_size=3))
def test_moments_merge_in_any_grouping(parts: list[list[float]]) -> None:
    def moments(*lists: list[float]) -> Moments:
        made = Moments()
        for values in lists:
            made.add(values)
        return made

    left, right = moments(parts[0], parts[1]), moments(parts[1], parts[2])
    left.merge(moments(parts[2]))
    other = moments(parts[0])
    other.merge(right)
    assert left.n == other.n
    assert left.mean == pytest.approx(other.mean, rel=1e-9, abs=1e-6)
    assert left.m2 == pytest.approx(other.m2, rel=1e-6, abs=1e-3)


def test_a_small_spread_far_from_zero_is_not_lost() -> None:
    values = [1e9 + n % 2 for n in range(1000)]
    assert stats(values, 7)["std"] == pytest.approx(statistics.stdev(values), rel=1e-9)


def test_quantiles_and_distinct_stay_within_their_promise_and_are_the_same_each_time() -> None:
    source = random.Random(5)
    values = [source.lognormvariate(3, 1) for _ in range(20_000)]
    found = stats(values, 16)
    ranked = sorted(values)
    for name in ("p01", "p05", "p25", "p50", "p75", "p95", "p99"):
        rank = bisect.bisect(ranked, found[name]) / len(ranked)
        assert rank == pytest.approx(int(name[1:]) / 100, abs=0.003)
    assert found["distinct"] == pytest.approx(20_000, rel=0.03)
    assert stats(values, 16) == found


def test_what_is_missing_not_finite_or_text_is_counted_apart() -> None:
    found = stats([1, None, 2.5, math.nan, math.inf, "x", 10**400, True])
    assert [found[name] for name in ("n", "missing", "texts", "not_finite")] == [7, 1, 2, 3]
    assert (found["min"], found["max"], found["mean"]) == (1, 2.5, 1.75)


def test_texts_have_min_max_and_distinct_but_no_mean() -> None:
    found = stats([b"b", b"", b"a" * 1000, b"b", "b"])
    assert (found["min"], found["max"], found["distinct"]) == (b"", b"b", 3)
    assert found["mean"] is found["std"] is found["p50"] is None


def test_nothing_seen_gives_a_row_without_numbers() -> None:
    assert stats([]) == dict.fromkeys(NAMES) | {
        "column": "x", "n": 0, "missing": 0, "texts": 0, "not_finite": 0, "distinct": 0,
    }  # fmt: skip


def test_stats_without_its_library_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketches", None)
    with pytest.raises(UsageError, match=r"tarmill\[stats\]"):
        make_aggregate("stats", ["x"])
