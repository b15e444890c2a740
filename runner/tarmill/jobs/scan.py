"""The first pass of a shuffle or sort, in a worker: where the samples of each input shard lie, and their keys."""

from __future__ import annotations

import sys
from contextlib import ExitStack, redirect_stdout

from tarmill import storage
from tarmill.engine.meter import Meter, current
from tarmill.errors import FormatError
from tarmill.formats.samples import OnError
from tarmill.formats.tar_header import BLOCK
from tarmill.formats.tar_rows import NotPlain
from tarmill.formats.tar_scan import Spans, scan_plain
from tarmill.formats.tar_window import RawInput
from tarmill.jobs.mapped_files import MappedFiles, kept
from tarmill.jobs.ordering import Ordering
from tarmill.jobs.scan_careful import scan_with_care
from tarmill.jobs.scan_columns import columns_of, pack_columns, scan_file
from tarmill.jobs.scratch_files import MEMORY, ScratchFile, Tee, gather_memory
from tarmill.jobs.shard_io import open_contents
from tarmill.planning.counts import Counts
from tarmill.planning.span_tasks import InputShard, Job, ScanDone, ScanTask, ShardSpans, Source
from tarmill.planning.tasks import Shard
from tarmill.storage.urls import local_path
from tarmill.values import replace


def scan_shards(task: ScanTask) -> ScanDone:
    """Find the samples of the task's shards; the function that engines run.

    Raises:
        FormatError, ScriptError: a bad sample under `--on-error fail`.
        StorageError: reading or writing failed for good.
    """
    storage.configure(task.job.settings)
    with redirect_stdout(sys.stderr):  # what a script prints must not mix with data on standard output
        found = [scan_shard(shard, task.job, kept if task.job.maps else None) for shard in task.shards]
    counts = Counts()
    for spans in found:
        counts.merge(spans.counts)
    if task.job.scratch == MEMORY:
        for spans in found:
            if spans.scratch:
                path, start = gather_memory(spans.source.path)
                spans.source, spans.starts = (
                    Source(path, "", spans.source.label, spans.source.part),
                    spans.starts + start,
                )
        return ScanDone(task.index, counts, found)
    storage.write_bytes(scan_file(task.job.state, task.index), pack_columns(found), owner=task.job.job)
    return ScanDone(task.index, counts)


def scan_shard(found: InputShard, job: Job, maps: MappedFiles | None = None) -> ShardSpans:
    """Find the samples of one shard, copied to scratch where the shard itself is no plain local file.

    Args:
        found: the shard.
        job: it belongs to.
        maps: holds shards that are mapped; None where nothing may be (`span_sources`).
    """
    meter, shard = current(), found.shard
    before, late = meter.read_bytes, None
    with ExitStack() as stack:
        raw, codec = stack.enter_context(open_contents(shard, meter))
        source = Source(local_path(shard.url), shard.version or "", shard.label, found.part)
        if codec == "none" and storage.scheme_of(shard.url) == "file":
            copy = None
            reads = getattr(raw, "positional", None)  # not where all that is read has to be compared with a manifest
            mapped = maps.map(source, reads.fileno()) if maps is not None and reads is not None else None
            spans = _try_plain(raw, shard, job, meter, mapped)
        else:
            copy = ScratchFile(job.scratch, f"copy-{found.ordinal:07d}.tar", job.job)
            stack.callback(copy.abort)
            tee = Tee(raw, copy)
            try:
                spans = _try_plain(tee, shard, job, meter)
                tee.drain()
            except FormatError as error:
                if job.spec.on_error == OnError.FAIL:
                    raise
                spans, late = None, error  # what came before it is in the copy, which the complete reader reads
            copy.commit()
            source = replace(source, path=copy.path, version=storage.stat(copy.path).version)
        read_bytes = meter.read_bytes - before
    if spans is None:
        columns = scan_with_care(found, job, source, copy is not None, late)
    else:
        plain, ordering = spans
        counts = Counts(read=plain.samples, dropped=ordering.dropped, kept_damaged=ordering.placed)
        columns = columns_of(found, source, plain, ordering, counts, scratch=copy is not None)
    columns.counts.read_bytes = read_bytes
    if columns.scratch and job.scratch == MEMORY:
        path, start = gather_memory(columns.source.path)
        columns.source, columns.starts = replace(columns.source, path=path, version=""), columns.starts + start // BLOCK
    return columns


def _try_plain(
    raw: RawInput, shard: Shard, job: Job, meter: Meter, mapped: memoryview | None = None
) -> tuple[Spans, Ordering] | None:
    """Scan a shard as a plain one, where it is mapped or else as a stream; None when it needs the complete reader."""
    ordering, seen = Ordering(job.spec), meter.samples
    if job.spec.key_function != "base_plus_ext":
        return None
    try:
        spans = scan_plain(
            raw,
            shard.label,
            mapped=mapped,
            counter=meter,
            key_of=ordering.key_of,
            load=ordering.load,
            key_of_stem=ordering.key_of_stem,
            tick=lambda samples: setattr(meter, "samples", seen + samples),
        )
    except NotPlain:
        return None
    # members that are not adjacent look like equal keys; the complete reader tells the one from the other
    return None if spans.has_equal_keys() else (spans, ordering)
