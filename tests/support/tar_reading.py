"""The reader under test, asked in the ways that the tests of formats need; what it gave, in forms that compare."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from support.tars import Trickle
from tarmill.errors import FormatError
from tarmill.formats.samples import ReadOptions, Rejection, Tally
from tarmill.formats.tar_read import iter_members, iter_samples
from tarmill.formats.tar_values import iter_values

URL = "shard-000.tar"


def bare(record: dict[str, Any]) -> dict[str, Any]:
    """Give key and fields of a record: without `__url__` and without the alias "key"."""
    return {
        name: value
        for name, value in record.items()
        if name != "__url__" and not (name == "key" and value is record["__key__"])
    }


@dataclass
class Outcome:
    """All that reading a shard gave: the samples handed on, the error that ended it, the counts."""

    records: list[dict[str, Any]]
    error: FormatError | None
    tally: Tally
    rejections: list[Rejection]

    @property
    def reason(self) -> str | None:
        return self.error.reason if self.error else None


def outcome(
    data: bytes, chunks: Sequence[int] | None = None, reopen: bool = True, raw: Any = None, **options: Any
) -> Outcome:
    """Read a whole shard; an error of the format is part of what comes back.

    `chunks` are the sizes that a stream which cannot seek hands out; without them the input can seek.
    """
    rejections: list[Rejection] = []
    tally = Tally(on_rejection=rejections.append)
    if raw is None:
        raw = io.BytesIO(data) if chunks is None else Trickle(data, chunks)
    again = (lambda: io.BytesIO(data)) if reopen else None
    records: list[dict[str, Any]] = []
    error = None
    try:
        records.extend(bare(record) for record in iter_samples(raw, URL, ReadOptions(**options), tally, again))
    except FormatError as caught:
        error = caught
    if error is None:
        assert tally.samples == len(records) + sum(tally.dropped.values()), "in = out + dropped"
    return Outcome(records, error, tally, rejections)


def values_outcome(data: bytes, field: str, raw: Any, **options: Any) -> Outcome:
    """Read one field of a shard by the loop that builds no records: the records that hold just that, or nothing."""
    tally = Tally()
    records: list[dict[str, Any]] = []
    error = None
    try:
        for batch in iter_values(raw, URL, field, ReadOptions(**options), tally, lambda: io.BytesIO(data)):
            if isinstance(batch, list):
                records.extend({field: value} for value in batch)
            else:
                assert field not in batch
                records.append(bare(batch))
    except FormatError as caught:
        error = caught
    return Outcome(records, error, tally, [])


def read(data: bytes, chunks: Sequence[int] | None = None, **options: Any) -> list[dict[str, Any]]:
    """Read a shard that has nothing wrong with it."""
    found = outcome(data, chunks, **options)
    if found.error:
        raise found.error
    return found.records


def listing(data: bytes, **options: Any) -> list[tuple[str, bytes]]:
    """List (name, contents) of what holds data, by the complete slow path."""
    members = iter_members(io.BytesIO(data), URL, ReadOptions(**options), reopen=lambda: io.BytesIO(data))
    return [(member.text, body) for member, body in members if body is not None]


def kinds(data: bytes) -> list[tuple[str, str]]:
    """List (name, kind) of every member."""
    return [
        (member.text, member.kind) for member, _ in iter_members(io.BytesIO(data), URL, reopen=lambda: io.BytesIO(data))
    ]


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
