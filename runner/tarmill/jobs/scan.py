"""The first pass of a shuffle or sort, in a worker: where the samples of each input shard lie, and their keys."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing, redirect_stdout
from dataclasses import replace

import numpy as np
from xxhash import xxh3_128_intdigest

from tarmill import storage
from tarmill.engine.meter import Meter, current
from tarmill.errors import ChangedError, FormatError, NotFoundError, StorageError
from tarmill.formats.digest import MASK_128, sample_digest, to_hex
from tarmill.formats.index import index_shard
from tarmill.formats.samples import OnError, ReadOptions, Record, Tally
from tarmill.formats.span_order import Array, KeyColumn, pack_arrays, unpack_arrays
from tarmill.formats.tar_headers import NotPlain
from tarmill.formats.tar_scan import Spans, as_array, scan_plain
from tarmill.formats.tar_span import encode_sample, fields_of_record
from tarmill.jobs.ordering import Ordering
from tarmill.jobs.scratch_files import MEMORY, ScratchFile, Tee
from tarmill.jobs.shard_io import open_contents, open_samples
from tarmill.planning.counts import Counts
from tarmill.planning.span_tasks import InputShard, Job, ScanDone, ScanTask, ShardSpans, Source
from tarmill.planning.tasks import Shard
from tarmill.storage.urls import local_path


def scan_shards(task: ScanTask) -> ScanDone:
    """Find the samples of the task's shards; the function that engines run.

    Raises:
        FormatError, ScriptError: a bad sample under `--on-error fail`.
        StorageError: reading or writing failed for good.
    """
    storage.configure(task.job.settings)
    with redirect_stdout(sys.stderr):  # what a script prints must not mix with data on standard output
        found = [scan_shard(shard, task.job) for shard in task.shards]
    counts = Counts()
    for spans in found:
        counts.merge(spans.counts)
    if task.job.scratch == MEMORY or not task.job.state:
        return ScanDone(task.index, counts, found)
    storage.write_bytes(scan_file(task.job.state, task.index), _pack(found), owner=task.job.job)
    return ScanDone(task.index, counts)


def scan_shard(found: InputShard, job: Job) -> ShardSpans:
    """Find the samples of one shard, copied to scratch where the shard itself is no plain local file."""
    meter, ordering, shard = current(), Ordering(job.spec), found.shard
    before = meter.read_bytes
    counts = Counts()
    with ExitStack() as stack:
        raw, codec = stack.enter_context(open_contents(shard, meter))
        tee: Tee | None = None
        copy: ScratchFile | None = None
        if codec != "none" or storage.scheme_of(shard.url) != "file":
            copy = ScratchFile(job.scratch, f"copy-{found.ordinal:07d}.tar", job.job)
            stack.callback(copy.abort)
            tee = Tee(raw, copy)
        path = local_path(shard.url) if copy is None else copy.path
        source = Source(path, shard.version or "", shard.label, found.part)
        try:
            if job.spec.key_function != "base_plus_ext":
                raise NotPlain("another key function")
            seen = meter.samples
            spans = scan_plain(
                raw if tee is None else tee,
                shard.label,
                key_of=ordering.key_of,
                load=ordering.load,
                key_of_stem=ordering.key_of_stem,
                tick=lambda samples: setattr(meter, "samples", seen + samples),
            )
            if spans.has_equal_keys():
                raise NotPlain("equal keys, or members that are not adjacent")
            counts.read = spans.samples
        except NotPlain:
            _drain(tee)
        except FormatError:
            if job.spec.on_error == OnError.FAIL:
                raise  # else the complete reader meets it again at the same place, and counts it
        else:
            _drain(tee)
            if copy is not None:
                copy.commit()
                source = replace(source, version=storage.stat(copy.path).version)
            counts.dropped += ordering.dropped
            counts.kept_damaged += ordering.placed
            counts.read_bytes = meter.read_bytes - before
            return _columns(found, source, spans, ordering, counts, scratch=copy is not None)
        if copy is not None:
            copy.commit()
            source = replace(source, version=storage.stat(copy.path).version)
    return _scan_with_care(found, job, source, copy is not None, meter)


def _drain(tee: Tee | None) -> None:
    if tee is not None:
        tee.drain()


def _scan_with_care(found: InputShard, job: Job, source: Source, scratch: bool, meter: Meter) -> ShardSpans:
    """Find the samples of a shard that is not plain, by the complete reader; errors are told or treated here.

    Samples whose bytes cannot be copied as they are, and all of a shard that is damaged, are written anew to scratch.
    """
    spec, ordering, counts, tally, shard = job.spec, Ordering(job.spec), Counts(), Tally(), found.shard
    plain = Shard(source.path, shard.label, None, source.version) if scratch else shard
    where: tuple[Sequence[int], Sequence[int], Sequence[int]] | None = None
    try:
        with storage.open_read(plain.url, version=plain.version) as stream:
            index = index_shard(stream, shard.label, spec.key_function)
        where = index.starts, index.lengths, index.bounds
    except FormatError:
        if spec.on_error == OnError.FAIL:
            raise
    rewrite = where is None or any(where[2])
    spans = Spans()
    with ExitStack() as stack:
        out: ScratchFile | None = None
        if rewrite:
            out = ScratchFile(job.scratch, f"anew-{found.ordinal:07d}.tar", job.job)
            stack.callback(out.abort)
        fd = os.open(local_path(plain.url), os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        options = ReadOptions(spec.key_function, None, False, spec.on_error, spec.max_member)
        samples = stack.enter_context(open_samples(plain, options, tally, Meter(), verify=False))
        stack.enter_context(closing(samples))  # type: ignore[type-var]  # a generator
        for number, record in enumerate(samples):
            meter.samples += 1
            key = record["__key__"]
            if not _take_key(ordering, record, spans):
                continue
            if where is None or where[2][number]:
                data, digest, _ = encode_sample(record, key, spec.key_function)
            else:
                data = _read_range(fd, where[0][number], where[1][number], shard.label)
                digest = sample_digest(key, fields_of_record(record))
            start = out.write(data) if out is not None else where[0][number]  # type: ignore[index]  # else rewrite
            stem = key.encode("utf-8", "surrogateescape") + b"."
            spans.add(start, len(data), stem, digest, xxh3_128_intdigest(data))
        samples.close()  # type: ignore[attr-defined]
        if out is not None:
            out.commit()
            source = replace(source, path=out.path, version=storage.stat(out.path).version)
    spans.members = tally.members
    counts.add_tally(tally)
    counts.dropped += ordering.dropped
    counts.kept_damaged += ordering.placed
    counts.read_bytes = found.shard.size_bytes or 0
    return _columns(found, source, spans, ordering, counts, scratch=scratch or out is not None)


def _read_range(fd: int, start: int, length: int, label: str) -> bytes:
    """Read a range of a file whole: one call gives at most 2 GiB."""
    pieces: list[bytes] = []
    while length:
        piece = os.pread(fd, length, start)
        if not piece:
            raise ChangedError(f"{label} has become shorter while it was read; run the command again", url=label)
        pieces.append(piece)
        start, length = start + len(piece), length - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _take_key(ordering: Ordering, record: Record, spans: Spans) -> bool:
    if ordering.key_of is not None:
        encoded = ordering.key_of(record)
        if encoded is None:
            return False
        spans.keys.append(encoded)
    elif ordering.key_of_stem is not None:
        spans.keys.append(ordering.key_of_stem(record["__key__"].encode("utf-8", "surrogateescape")))
    return True


def _columns(
    found: InputShard, source: Source, spans: Spans, ordering: Ordering, counts: Counts, *, scratch: bool
) -> ShardSpans:
    starts, lengths, stems = as_array(spans.starts), as_array(spans.lengths), as_array(spans.stems)
    keys: KeyColumn | None = None
    if ordering.key_of is not None or ordering.key_of_stem is not None:
        keys = KeyColumn()
        keys.extend(spans.keys)
    groups = stems if ordering.by_key else None if ordering.groups is None else as_array(ordering.groups)
    if len(lengths) and lengths.max() < 1 << 32:
        lengths = lengths.astype(np.uint32)
    return ShardSpans(
        ordinal=found.ordinal,
        source=source,
        starts=starts,
        lengths=lengths,
        stems=stems.astype(np.uint32),
        keys=keys.array() if keys is not None else None,
        keys_cut=keys.cut if keys is not None else False,
        groups=groups,
        digest=spans.digest & MASK_128,
        raw_digest=spans.raw_digest & MASK_128,
        members=spans.members,
        counts=counts,
        scratch=scratch,
    )


# -- the columns as a file -------------------------------------------------------------------------------------------

_COLUMNS = ("starts", "lengths", "stems", "keys", "groups")


def scan_file(state: str, index: int) -> str:
    """Name the file with the columns that a scan task found."""
    return f"{state}scan-{index:07d}.bin"


def load_scan(task: ScanTask) -> list[ShardSpans] | None:
    """Read what a scan task of this job found, if it has; None when it has to be done (again).

    Scratch copies must still be there, in the version that was written.
    """
    try:
        found = _unpack(storage.read_bytes(scan_file(task.job.state, task.index)))
    except (NotFoundError, ValueError, KeyError, TypeError):
        return None
    if [spans.ordinal for spans in found] != [shard.ordinal for shard in task.shards]:
        return None
    return found if all(_is_there(spans.source) for spans in found if spans.scratch) else None


def _is_there(source: Source) -> bool:
    try:
        return storage.stat(source.path).version == source.version
    except StorageError:
        return False


def _pack(found: Sequence[ShardSpans]) -> list[bytes | memoryview]:
    meta = []
    arrays: dict[str, Array] = {}
    for number, spans in enumerate(found):
        source = spans.source
        meta.append(
            {
                "ordinal": spans.ordinal,
                "source": [source.path, source.version, source.label, source.part],
                "keys_cut": spans.keys_cut,
                "digest": to_hex(spans.digest),
                "raw_digest": to_hex(spans.raw_digest),
                "members": spans.members,
                "counts": spans.counts.to_dict(),
                "scratch": spans.scratch,
            }
        )
        for name in _COLUMNS:
            if (column := getattr(spans, name)) is not None:
                arrays[f"{number}.{name}"] = column
    return pack_arrays({"shards": meta}, arrays)


def _unpack(data: bytes) -> list[ShardSpans]:
    meta, arrays = unpack_arrays(data)
    return [
        ShardSpans(
            ordinal=facts["ordinal"],
            source=Source(*facts["source"]),
            starts=arrays[f"{number}.starts"],
            lengths=arrays[f"{number}.lengths"],
            stems=arrays[f"{number}.stems"],
            keys=arrays.get(f"{number}.keys"),
            groups=arrays.get(f"{number}.groups"),
            keys_cut=facts["keys_cut"],
            digest=int(facts["digest"], 16),
            raw_digest=int(facts["raw_digest"], 16),
            members=facts["members"],
            counts=Counts.from_dict(facts["counts"]),
            scratch=facts["scratch"],
        )
        for number, facts in enumerate(meta["shards"])
    ]
