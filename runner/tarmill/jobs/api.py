"""The library's front door: iterate samples, write shards, run jobs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

from tarmill.engine.meter import Meter
from tarmill.errors import SpecError
from tarmill.formats.samples import ReadOptions, Record, Tally
from tarmill.formats.shards import ShardPattern
from tarmill.formats.tar_write import check_key
from tarmill.jobs.inputs import find_shards
from tarmill.jobs.listener import Listener
from tarmill.jobs.report import Report
from tarmill.jobs.shard_io import ShardOutput, open_samples
from tarmill.planning.tasks import OutputShard
from tarmill.spec import ExtractSpec, JobSpec, MapSpec, ReorderSpec, RunOptions, UploadSpec

if TYPE_CHECKING:
    import random


def open_shards(
    shards: str | Iterable[str],
    *,
    fields: Iterable[str] | None = None,
    shuffle: bool | int = False,
    seed: int = 0,
    part: tuple[int, int] = (0, 1),
    key_function: str = "base_plus_ext",
    on_error: str = "fail",
    tally: Tally | None = None,
) -> Iterator[Record]:
    """Iterate the samples of shards, one after the other, as `{"__key__": ..., "__url__": ..., field: bytes}`.

    >>> for sample in open_shards("train-@0100.tar", fields=["jpg", "cls"]):  # doctest: +SKIP
    ...     image, label = sample["jpg"], int(sample["cls"])

    Args:
        shards: a shard pattern, or several.
        fields: load only these; None for all.
        shuffle: True or a buffer size (True: 1000): shards in random order, and samples through a buffer. That is no
            global shuffle; it is repeatable for a seed.
        seed: of the order.
        part: (i, n): only every n-th shard, beginning with the i-th, for process i of n.
        key_function, on_error: as on the command line.
        tally: takes the counts of what was read and dropped.

    Raises:
        FormatError, StorageError: what is wrong with a shard; nothing is dropped in silence.
    """
    options = ReadOptions(key_function, None if fields is None else frozenset(fields), on_error=on_error)
    index, parts = part
    if not 0 <= index < parts:
        raise SpecError(f"part is {part!r}; expected (i, n) with 0 <= i < n", field="part", value=part)
    patterns = [shards] if isinstance(shards, str) else list(shards)
    found = [shard for pattern in patterns for shard in find_shards(ShardPattern.parse(pattern))]
    if not shuffle:
        return _iterate(found[index::parts], options, tally or Tally())
    import random

    order = random.Random(seed)
    order.shuffle(found)
    samples = _iterate(found[index::parts], options, tally or Tally())
    size = 1000 if shuffle is True else int(shuffle)
    return _buffered(samples, size, order) if size > 1 else samples


def _iterate(shards: Iterable[Any], options: ReadOptions, tally: Tally) -> Iterator[Record]:
    for shard in shards:
        with (
            open_samples(shard, options, tally, Meter(), verify=options.load is None) as samples,
            closing(samples),  # type: ignore[type-var]  # a generator; closing it completes the tally
        ):
            yield from samples


def _buffered(samples: Iterator[Record], size: int, order: random.Random) -> Iterator[Record]:
    held: list[Record] = []
    for sample in samples:
        if len(held) < size:
            held.append(sample)
            continue
        place = order.randrange(size)
        sample, held[place] = held[place], sample
        yield sample
    order.shuffle(held)
    yield from held


class ShardWriter:
    """Writes samples into shards that appear whole or not at all, cut by count or size.

    >>> with ShardWriter("out-@.tar", samples_per_shard=1000) as writer:  # doctest: +SKIP
    ...     writer.write({"__key__": "000001", "jpg": image, "cls": "7"})

    An exception inside the `with` leaves the finished shards and drops the unfinished one.

    Args:
        pattern: with an open count (`out-@.tar`: numbered from 0, six digits), or of a single shard. The ending chooses
            the compression.
        samples_per_shard: begin a new shard after so many.
        shard_size: begin a new shard before contents (bytes, headers not counted) would exceed this; never exceeded
            unless one sample is larger.
        level: of compression; None for the codec's default.
    """

    def __init__(
        self, pattern: str, *, samples_per_shard: int = 0, shard_size: int = 0, level: int | None = None
    ) -> None:
        self._pattern = ShardPattern.parse(pattern)
        if not self._pattern.is_open and self._pattern.count != 1:
            raise SpecError(
                f"{pattern!r} fixes the number of shards; leave it open, as in 'out-@.tar'",
                field="pattern",
                value=pattern,
            )
        self._many = self._pattern.is_open
        self._limit = samples_per_shard if self._many else 0
        self._size_limit = shard_size if self._many else 0
        self._level = -1 if level is None else level
        self._current: ShardOutput | None = None
        self._payload = 0
        self.shards: list[OutputShard] = []

    def write(self, sample: Mapping[str, Any]) -> None:
        """Write one sample: `__key__` and its fields, bytes-like or str.

        Raises:
            ScriptError: it cannot be stored so that it reads back as itself.
        """
        key = sample["__key__"]
        check_key(key)
        size = sum(len(value) for name, value in sample.items() if not name.startswith("__") and name != "key")
        full = self._limit and self._current and self._current.sink.samples >= self._limit
        if full or (self._size_limit and self._current and self._payload and self._payload + size > self._size_limit):
            self._close_shard()
        if self._current is None:
            self._open_shard()
        assert self._current is not None
        self._current.sink.add(dict(sample), key)
        self._payload += size

    def close(self) -> None:
        """Publish the last shard."""
        if self._current is not None:
            self._close_shard()

    def _open_shard(self) -> None:
        number = len(self.shards)
        pattern = self._pattern.with_count(max(number + 1, 1)) if self._many else self._pattern
        url = pattern.format(number if self._many else 0)
        self._current = ShardOutput(url, os.path.basename(url), f"writer-{os.getpid()}", self._level, Meter())
        self._payload = 0

    def _close_shard(self) -> None:
        assert self._current is not None
        current, self._current = self._current, None
        with current:
            self.shards.append(current.commit())

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            self.close()
        elif self._current is not None:
            self._current.__exit__(kind, error, trace)


def run(spec: JobSpec, options: RunOptions | None = None, listener: Listener | None = None) -> Report:
    """Run a job, as the command of its kind does.

    Raises:
        UsageError, JobFailed, Interrupted: see the job's own `run`.
    """
    if isinstance(spec, MapSpec):
        from tarmill.jobs.map import run as run_map

        return run_map(spec, options, listener)
    if isinstance(spec, ExtractSpec):
        from tarmill.jobs.extract import run as run_extract

        return run_extract(spec, options, listener)
    if isinstance(spec, ReorderSpec):
        from tarmill.jobs.reorder import run as run_reorder

        return run_reorder(spec, options, listener)
    if isinstance(spec, UploadSpec):
        from tarmill.jobs.upload import run as run_upload

        return run_upload(spec, options, listener)
    raise SpecError(f"{type(spec).__name__} is no job that this version runs", field="spec", value=type(spec).__name__)
