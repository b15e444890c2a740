"""htextract in a worker: the samples of one shard into rows or an aggregate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from tarmill import storage
from tarmill.engine.meter import Meter, current
from tarmill.errors import SampleError
from tarmill.formats.column_values import Documents
from tarmill.formats.rows import NULL_CELL, encode_contents, row_encoder
from tarmill.formats.samples import OnError, Record, Tally
from tarmill.jobs.extract_places import RowSpool, ShardPart
from tarmill.jobs.extract_request import Request
from tarmill.jobs.shard_io import open_samples, open_values
from tarmill.planning.counts import Counts
from tarmill.planning.extract_tasks import ExtractDone, ExtractTask
from tarmill.spec import ExtractSpec

if TYPE_CHECKING:
    from tarmill.planning.aggregates import Aggregate

BATCH_BYTES = 64 << 10
BATCH_ROWS = 512


def _aggregate(spec: ExtractSpec, request: Request) -> Aggregate | None:
    if not request.aggregate:
        return None
    from tarmill.planning.aggregates import make_aggregate

    return make_aggregate(request.aggregate, request.names, spec.top)


def extract_shard(task: ExtractTask) -> ExtractDone:
    """Take rows or an aggregate from one shard; the function that engines run.

    Raises:
        FormatError: a bad sample under `--on-error fail`, or a missing value under `--missing error`.
        StorageError: reading or writing failed for good.
    """
    spec, meter = task.spec, current()
    storage.configure(task.settings)
    request = Request.of(spec)
    with ExitStack() as stack:
        place: ShardPart | RowSpool = ShardPart(task.output, task.job, meter) if task.output else RowSpool(task, meter)
        stack.enter_context(place)
        aggregate = _aggregate(spec, request)
        rows = None if aggregate is not None else _row_sink(spec, request, place.write, whole=bool(task.output))
        run = _ShardExtract(spec, request, meter, aggregate, rows, place.write)
        options = request.read_options(spec)
        if (field := request.only_contents(spec)) and spec.on_error == OnError.FAIL:
            values = stack.enter_context(open_values(task.shard, field, options, run.tally, meter))
            run.run_contents(values)
        else:
            samples = stack.enter_context(open_samples(task.shard, options, run.tally, meter, verify=False))
            run.run(samples)
            samples.close()  # type: ignore[attr-defined]  # a generator: its counts are complete when it has ended
        if aggregate is not None:
            place.write(json.dumps(aggregate.to_dict(), separators=(",", ":")).encode())
        elif rows is not None:
            rows.finish()
        payload, part = place.commit()
    counts = run.counts
    counts.add_tally(run.tally)
    counts.read_bytes = meter.read_bytes
    counts.written_bytes = meter.written_bytes if task.output else 0
    return ExtractDone(task.index, counts, payload, part)


class RowSink(Protocol):
    """Takes rows and writes them in some form."""

    def add(self, rows: Sequence[Any]) -> None:
        """Write rows."""

    def finish(self) -> None:
        """Write what comes after the last row."""


class EncodedRows:
    """Rows as text, JSON lines or CSV."""

    def __init__(self, name: str, columns: Sequence[str], write: Callable[[bytes], Any], *, header: bool) -> None:
        self._encoder = row_encoder(name, columns)
        self._write = write
        if header and (first := self._encoder.header()):
            write(first)

    def add(self, rows: Sequence[Any]) -> None:
        """Encode and write rows."""
        self._write(self._encoder.encode(rows))

    def finish(self) -> None:
        """Nothing comes after the last row."""


def _row_sink(spec: ExtractSpec, request: Request, write: Callable[[bytes], Any], *, whole: bool) -> RowSink:
    if spec.format == "parquet":
        from tarmill.jobs.parquet import ArrowRows, ParquetRows

        return ParquetRows(request.columns, write) if whole else ArrowRows(request.columns, write)
    return EncodedRows(spec.format, request.names, write, header=whole)


class _ShardExtract:
    """One shard's samples through filter and columns: the hot loops, and what they do seldom."""

    def __init__(
        self,
        spec: ExtractSpec,
        request: Request,
        meter: Meter,
        aggregate: Aggregate | None,
        rows: RowSink | None,
        write: Callable[[bytes], Any],
    ) -> None:
        documents = Documents()
        self._spec = spec
        self._request = request
        self._meter = meter
        self._take: Callable[[Sequence[Any]], None] = (
            aggregate.update if aggregate is not None else rows.add if rows is not None else _nowhere
        )
        self._write = write
        self._getters = [column.compile(documents) for column in request.columns]
        self._where = request.where.compile(documents) if request.where else None
        # statistics count what is missing, so they need no policy about it
        self._missing = "null" if spec.missing == "error" and request.aggregate == "stats" else spec.missing
        self._stopped = False
        self.counts = Counts()
        self.tally = Tally()

    def run(self, samples: Iterator[Record]) -> None:
        """Take everything from the samples of the shard."""
        request = self._request
        if request.aggregate == "count" and self._where is None and not request.columns:
            self._take_count(sum(1 for _ in samples))
        elif field := request.only_contents(self._spec):
            self.run_contents(_batches(samples, field))
        else:
            self._run_any(samples)
        if self._stopped:
            self.counts.dropped["after-stop"] += sum(1 for _ in samples)

    def _take_count(self, samples: int) -> None:
        self._take(range(samples))
        self._meter.samples = self.counts.written = samples

    def run_contents(self, batches: Iterable[list[bytes] | Record]) -> None:
        """Write one field's contents as lines of text: no record, no row, no cell, no call for each sample.

        Args:
            batches: contents of samples in a row that have the field, and each sample that has not (see `iter_values`).
        """
        meter, write, written = self._meter, self._write, 0
        for batch in batches:
            if isinstance(batch, list):
                write(encode_contents(batch))
                written += len(batch)
            elif self._without(batch, [None]) is not None:
                write(NULL_CELL + b"\n")
                written += 1
            elif self._stopped:
                break
            meter.samples = written
        self.counts.written = written

    def _run_any(self, samples: Iterator[Record]) -> None:
        meter, getters, where, take = self._meter, self._getters, self._where, self._take
        keys = self._request.aggregate == "keys"
        heavy = [place for place, column in enumerate(self._request.columns) if column.kind in ("binary", "text")]
        rows: list[Any] = []
        by_where = seen = written = size = 0
        for record in samples:
            meter.key = record["__key__"]
            seen += 1
            row: Any
            try:
                if where is not None and not where(record):
                    by_where += 1
                    continue
                row = record if keys else [get(record) for get in getters]
            except SampleError as error:
                row = self._bad(record, error)
            else:
                if not keys and None in row:
                    row = self._without(record, row)
            if self._stopped:
                break
            if row is None:
                continue
            rows.append(row)
            if heavy:
                for place in heavy:
                    value = row[place]
                    if value is not None:
                        size += len(value)
            if size >= BATCH_BYTES or len(rows) >= BATCH_ROWS:
                take(rows)
                written += len(rows)
                meter.samples = seen
                rows = []
                size = 0
        if rows:
            take(rows)
        meter.samples = seen
        self.counts.written = written + len(rows)
        if by_where:
            self.counts.dropped["by-where"] += by_where

    def _without(self, record: Record, row: list[Any]) -> list[Any] | None:
        """Decide about a sample that lacks a value: its row, or None when it is left out."""
        if self._missing == "null":
            return row
        if self._missing == "skip":
            self.counts.dropped["missing"] += 1
            return None
        column = self._request.names[row.index(None)]
        key, shard = record["__key__"], record["__url__"]
        error = SampleError(
            f"sample {key!r} of {shard} has no {column}; leave such samples out with --missing skip, or write an empty "
            "value with --missing null",
            shard=shard,
            key=key,
            column=column,
            reason="missing-field",
        )
        return self._reject(record, error, row)

    def _bad(self, record: Record, error: SampleError) -> list[Any] | None:
        """Decide about a sample with a value that cannot be read."""
        if self._spec.on_error != OnError.IGNORE:
            return self._reject(record, error, None)
        if self._where is not None and _failing(self._where, record):
            self.counts.dropped[error.reason] += 1  # nobody can tell whether it was wanted
            return None
        row = [None if _failing(get, record) else get(record) for get in self._getters]
        return self._reject(record, error, row)

    def _reject(self, record: Record, error: SampleError, row: list[Any] | None) -> list[Any] | None:
        policy = self._spec.on_error
        if policy == OnError.FAIL:
            raise error
        if policy == OnError.IGNORE:
            self.counts.kept_damaged[error.reason] += 1
            return row
        self.counts.dropped[error.reason] += 1
        self._stopped = policy == OnError.STOP
        return None


def _batches(samples: Iterable[Record], field: str) -> Iterator[list[bytes] | Record]:
    """Gather one field's contents, as `iter_values` does, from records."""
    values: list[bytes] = []
    held = 0
    for record in samples:
        value = record.get(field)
        if value is not None:
            values.append(value)
            held += len(value)
            if held < BATCH_BYTES and len(values) < BATCH_ROWS:
                continue
        yield values
        values, held = [], 0
        if value is None:
            yield record
    yield values


def _failing(get: Callable[[Record], Any], record: Record) -> bool:
    try:
        get(record)
    except SampleError:
        return True
    return False


def _nowhere(rows: Sequence[Any]) -> None:
    raise AssertionError("rows come either into an aggregate or into a sink")
