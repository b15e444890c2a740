"""Statistics of columns that merge: moments by Chan's formula, quantiles by t-digest, distinct values by HyperLogLog.

Both sketches are those of Apache DataSketches, which other systems read too. Of its quantile sketches the t-digest is
taken because it is the one without random choices (KLL and REQ toss coins): the same shards give the same numbers. With
k = 2000 its ranks were within 0.1 % on 200,000 normal, lognormal and integer values in 10 or 200 parts. The distinct
count is nearly exact up to about a thousand values and within 1.6 % (two standard errors) above.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xxhash import xxh3_64_intdigest

from tarmill.errors import UsageError
from tarmill.planning.aggregates import Aggregate, Table

DIGEST_K = 2000
HLL_LG_K = 14
QUANTILES = {"p01": 0.01, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}
MAX_SHOWN = 256
"""Texts are compared, and shown, as min and max by so many first bytes."""

NAMES = ("column", "n", "missing", "texts", "not_finite", "min", "max", "mean", "std", *QUANTILES, "distinct")

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode


@dataclass(slots=True)
class Moments:
    """Count, mean and sum of squared differences from the mean of finite numbers."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def add(self, values: Sequence[float]) -> None:
        """Take in values: exactly summed among themselves, then merged."""
        if values:
            mean = _sum(values) / len(values)
            self.merge(Moments(len(values), mean, _sum([(value - mean) * (value - mean) for value in values])))

    def merge(self, other: Moments) -> None:
        """Chan, Golub, LeVeque: Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (1979)."""
        n = self.n + other.n
        if other.n == 0:
            return
        if self.n == 0:
            self.n, self.mean, self.m2 = other.n, other.mean, other.m2
            return
        delta = other.mean - self.mean
        self.mean += delta * (other.n / n)
        self.m2 += other.m2 + delta * delta * (self.n * (other.n / n))
        self.n = n

    @property
    def std(self) -> float | None:
        """The sample's standard deviation (divided by n - 1); None for fewer than two values."""
        return math.sqrt(self.m2 / (self.n - 1)) if self.n > 1 else None


def _sum(values: Sequence[float]) -> float:
    try:
        return math.fsum(values)
    except OverflowError:  # near the largest float
        return sum(values)


class ColumnStats:
    """Statistics of one column. Numbers are int and float; anything else that is there counts as a text."""

    def __init__(self) -> None:
        self._sketches = _library()
        self.missing = 0
        self.texts = 0
        self.not_finite = 0
        self.moments = Moments()
        self.low: int | float | None = None
        self.high: int | float | None = None
        self.first: bytes | None = None
        self.last: bytes | None = None
        self._digest = self._sketches.tdigest_double(DIGEST_K)
        self._distinct = self._sketches.hll_sketch(HLL_LG_K)

    def update(self, values: Sequence[Any]) -> None:
        """Take in the column's values of some rows."""
        numbers: list[int | float] = []
        see = self._distinct.update
        for value in values:
            kind = type(value)
            if value is None:
                self.missing += 1
            elif kind is float or kind is int:
                if kind is float and not math.isfinite(value):
                    self.not_finite += 1
                elif kind is float or -(2**1000) < value < 2**1000:
                    numbers.append(value)
                else:
                    self.not_finite += 1
                see(float(value) if kind is float or -(2**53) <= value <= 2**53 else _hash(str(value).encode()))
            else:
                text = _contents(value)
                self.texts += 1
                see(_hash(text))
                text = text[:MAX_SHOWN]
                if self.first is None or text < self.first:
                    self.first = text
                if self.last is None or text > self.last:
                    self.last = text
        if numbers:
            self._number_range(min(numbers), max(numbers))
            floats = [float(number) for number in numbers]
            self.moments.add(floats)
            for number in floats:
                self._digest.update(number)

    def _number_range(self, low: int | float | None, high: int | float | None) -> None:
        if low is not None and (self.low is None or low < self.low):
            self.low = low
        if high is not None and (self.high is None or high > self.high):
            self.high = high

    def merge(self, other: ColumnStats) -> None:
        """Take in what another has seen, as if it came after."""
        self.missing += other.missing
        self.texts += other.texts
        self.not_finite += other.not_finite
        self.moments.merge(other.moments)
        self._number_range(other.low, other.high)
        if other.first is not None and (self.first is None or other.first < self.first):
            self.first = other.first
        if other.last is not None and (self.last is None or other.last > self.last):
            self.last = other.last
        self._digest.merge(other._digest)
        union = self._sketches.hll_union(HLL_LG_K)
        union.update(self._distinct)
        union.update(other._distinct)
        self._distinct = union.get_result(self._sketches.tgt_hll_type.HLL_8)

    def to_dict(self) -> dict[str, Any]:
        """Give the state as JSON-able values; sketches in their library's own form, as base64."""
        return {
            "missing": self.missing,
            "texts": self.texts,
            "not_finite": self.not_finite,
            "moments": [self.moments.n, self.moments.mean, self.moments.m2],
            "range": [self.low, self.high],
            "text_range": [_to_base64(self.first), _to_base64(self.last)],
            "digest": _to_base64(self._digest.serialize()),
            "distinct": _to_base64(self._distinct.serialize_compact()),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `to_dict` gave."""
        self.missing, self.texts, self.not_finite = state["missing"], state["texts"], state["not_finite"]
        self.moments = Moments(*state["moments"])
        self.low, self.high = state["range"]
        self.first, self.last = map(_from_base64, state["text_range"])
        self._digest = self._sketches.tdigest_double.deserialize(_from_base64(state["digest"]))
        self._distinct = self._sketches.hll_sketch.deserialize(_from_base64(state["distinct"]))

    def result(self) -> tuple[Any, ...]:
        """Give the values for `NAMES`, without the column's name.

        min and max are those of the numbers or, where there are none, of the texts.
        """
        numbers = self.moments.n
        low, high = (self.low, self.high) if numbers else (self.first, self.last)
        quantiles = [self._digest.get_quantile(rank) if numbers else None for rank in QUANTILES.values()]
        return (
            numbers + self.texts + self.not_finite,
            self.missing,
            self.texts,
            self.not_finite,
            low,
            high,
            self.moments.mean if numbers else None,
            self.moments.std,
            *quantiles,
            round(self._distinct.get_estimate()),
        )


class Stats(Aggregate):
    """Statistics of each column."""

    kind = "stats"

    def __init__(self, names: Sequence[str]) -> None:
        self._columns = {name: ColumnStats() for name in names}

    def update(self, rows: Sequence[Sequence[Any]]) -> None:
        """Take in rows."""
        if rows:
            for column, values in zip(self._columns.values(), zip(*rows, strict=True), strict=True):
                column.update(values)

    def merge(self, other: Stats) -> None:
        """Take in what another has seen, as if it came after."""
        for name, column in self._columns.items():
            column.merge(other._columns[name])

    def to_dict(self) -> dict[str, Any]:
        """Give the state of each column."""
        return {"columns": {name: column.to_dict() for name, column in self._columns.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over the state of each column."""
        for name, column in self._columns.items():
            column.load(state["columns"][name])

    def result(self) -> Table:
        """Give a row for each column."""
        return Table(NAMES, [(name, *column.result()) for name, column in self._columns.items()])


def _contents(value: Any) -> bytes:
    if type(value) is bytes:
        return value
    text = value if type(value) is str else _compact(value)
    return text.encode("utf-8", "surrogatepass")


def _hash(text: bytes) -> int:
    """Hash a text into what the sketch takes: it has no bytes, and passes over an empty text."""
    return xxh3_64_intdigest(text) - (1 << 63)


def _to_base64(contents: bytes | None) -> str | None:
    return None if contents is None else base64.b64encode(contents).decode("ascii")


def _from_base64(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def _library() -> Any:
    try:
        import datasketches
    except ImportError:
        raise UsageError(
            "--stats needs the package datasketches, which is not installed; install it with: "
            "pip install 'tarmill[stats]'"
        ) from None
    return datasketches
