"""The first pass over a shard that is not plain: the complete reader finds its samples, and tells what is wrong.

Samples whose bytes cannot be copied as they are (`formats.index.Bound`), and all of a shard that is damaged, are
written anew to scratch; every other sample is copied as it lies.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, closing

from xxhash import xxh3_128_intdigest

from tarmill import storage
from tarmill.engine.meter import Meter, current
from tarmill.errors import ChangedError, FormatError, TruncatedError
from tarmill.formats.digest import sample_digest
from tarmill.formats.index import ShardIndex, index_shard
from tarmill.formats.samples import OnError, ReadOptions, Record, Tally
from tarmill.formats.tar_scan import Spans
from tarmill.formats.tar_span import encode_sample, fields_of_record
from tarmill.jobs.ordering import Ordering
from tarmill.jobs.scan_columns import columns_of
from tarmill.jobs.scratch_files import ScratchFile, discard
from tarmill.jobs.shard_io import open_samples
from tarmill.jobs.shard_names import signature_of
from tarmill.planning.counts import Counts
from tarmill.planning.span_tasks import InputShard, Job, ShardSpans, Source
from tarmill.planning.tasks import Shard
from tarmill.values import replace, valueclass


def scan_with_care(found: InputShard, job: Job, source: Source, scratch: bool, late: FormatError | None) -> ShardSpans:
    """Find the samples of a shard by the complete reader.

    Args:
        found, job: as for `scan_shard`.
        source: where its plain bytes lie.
        scratch: whether that is a scratch copy.
        late: the error at which the copy ends before the shard does.

    Raises:
        FormatError, ScriptError: under `--on-error fail`, what is wrong with a sample or the shard.
    """
    plain = Shard(source.path, found.shard.label, None, source.version or None)
    if late is None:
        try:
            return _Pass(found, job, plain, source, scratch).run(_index(plain, job))
        except FormatError:
            if job.spec.on_error == OnError.FAIL:
                raise
    return _Pass(found, job, plain, source, scratch).run(None, late)


def _index(plain: Shard, job: Job) -> ShardIndex:
    with storage.open_read(plain.url, version=plain.version) as stream:
        return index_shard(stream, plain.label, job.spec.key_function)


@valueclass(frozen=False)
class _Pass:
    """One pass of the complete reader over a shard."""

    found: InputShard
    job: Job
    plain: Shard
    source: Source
    scratch: bool

    def run(self, index: ShardIndex | None, late: FormatError | None = None) -> ShardSpans:
        """Read the shard; by an index strictly, without one by the job's policy and writing all samples anew.

        Raises:
            FormatError: anything is wrong with the shard, where there is an index.
        """
        spec, tally, spans, ordering = self.job.spec, Tally(), Spans(), Ordering(self.job.spec)
        policy = spec.on_error if index is None else OnError.FAIL
        options = ReadOptions(spec.key_function, None, False, policy, spec.max_member)
        meter = current()
        with ExitStack() as stack:
            out: ScratchFile | None = None
            if index is None or any(index.bounds):
                out = ScratchFile(self.job.scratch, f"anew-{self.found.ordinal:07d}.tar", self.job.job)
                stack.callback(out.abort)
            fd = os.open(self.plain.url, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            samples = stack.enter_context(open_samples(self.plain, options, tally, Meter(), verify=False))
            stack.enter_context(closing(samples))  # type: ignore[type-var]  # a generator
            for number, record in enumerate(samples):
                meter.samples += 1
                if _take_key(ordering, record, spans):
                    self._take(spans, record, fd, index, number, out)
            samples.close()  # type: ignore[attr-defined]  # its counts are complete when it has ended
            if out is not None:
                out.commit()
        source = self.source
        if out is not None:
            source = replace(source, path=out.path, version=storage.stat(out.path).version)
            if self.scratch:
                discard(self.source.path)
        counts = Counts()
        counts.add_tally(tally)
        if late is not None:
            counts.unread.subtract({TruncatedError.reason: counts.unread[TruncatedError.reason]})  # the copy's own end
            counts.unread = +counts.unread
            counts.unread[late.reason] += 1
        counts.dropped += ordering.dropped
        counts.kept_damaged += ordering.placed
        return columns_of(self.found, source, spans, ordering, counts, scratch=self.scratch or out is not None)

    def _take(
        self, spans: Spans, record: Record, fd: int, index: ShardIndex | None, number: int, out: ScratchFile | None
    ) -> None:
        """Note one sample, and write it anew or copy it where that is needed."""
        key, start = record["__key__"], 0
        if index is None or index.bounds[number]:
            data, digest, members = encode_sample(record, key, self.job.spec.key_function)
        else:
            assert index.key(number) == key  # both read the same bytes, by the same rules
            fields = fields_of_record(record)
            start = index.starts[number]
            data = _read_range(fd, start, index.lengths[number], self.plain.label)
            digest, members = sample_digest(key, fields), len(fields)
        if out is not None:
            start = out.write(data)
        stem = key.encode("utf-8", "surrogateescape") + b"."
        spans.add(start, len(data), stem, digest, xxh3_128_intdigest(data))
        spans.fields.append(signature_of(record))
        spans.members += members


def _take_key(ordering: Ordering, record: Record, spans: Spans) -> bool:
    if ordering.key_of is not None:
        encoded = ordering.key_of(record)
        if encoded is None:
            return False
        spans.keys.append(encoded)
    elif ordering.key_of_stem is not None:
        spans.keys.append(ordering.key_of_stem(record["__key__"].encode("utf-8", "surrogateescape")))
    return True


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
