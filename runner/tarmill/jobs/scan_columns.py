"""What a scan found of a shard, as columns of numbers, and the file in which they wait for the next pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tarmill import storage
from tarmill.errors import NotFoundError, StorageError
from tarmill.formats.digest import MASK_128, to_hex
from tarmill.formats.span_order import Array, KeyColumn, pack_arrays, unpack_arrays
from tarmill.formats.tar_header import BLOCK
from tarmill.formats.tar_scan import Spans, as_array
from tarmill.jobs.ordering import Ordering
from tarmill.planning.counts import Counts
from tarmill.planning.span_tasks import InputShard, ScanTask, ShardSpans, Source


def columns_of(
    found: InputShard, source: Source, spans: Spans, ordering: Ordering, counts: Counts, *, scratch: bool
) -> ShardSpans:
    """Make columns of what a scan found; the key's and group's come with the ordering that made them."""
    starts, lengths, stems = as_array(spans.starts), as_array(spans.lengths), as_array(spans.stems)
    keys: KeyColumn | None = None
    if ordering.key_of is not None or ordering.key_of_stem is not None:
        keys = KeyColumn()
        keys.extend(spans.keys)
    groups = stems if ordering.by_key else None if ordering.groups is None else as_array(ordering.groups)
    return ShardSpans(
        ordinal=found.ordinal,
        source=source,
        starts=(starts // BLOCK).astype(np.uint32),
        lengths=(lengths // BLOCK).astype(np.uint32),
        stems=stems,
        fields=as_array(spans.fields).astype(np.uint32),
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

_COLUMNS = ("starts", "lengths", "stems", "fields", "keys", "groups")


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


def pack_columns(found: Sequence[ShardSpans]) -> list[bytes | memoryview]:
    """Lay out the columns of some shards as a file that `load_scan` reads."""
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
            fields=arrays[f"{number}.fields"],
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
