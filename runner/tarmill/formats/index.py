"""The index of a shard: where each sample lies in the tar stream, and whether those bytes may be copied as they are.

A sample's range begins where the one before it ended, or where the last thing that belongs to no sample ended
(directories and other members that are passed over, pax headers for all members, end marks), and it ends with the
padding of its last member. So it holds all headers of its members, and the ranges of a plain archive tile it.

Such a range is self-contained, so that it can be copied into another archive, unless

- a pax header for all members ("g") says something of its members that stands outside the range,
- one of its members is a hard link, whose contents stand elsewhere,
- something that belongs to no sample stands inside the range.

Offsets are those of the decompressed stream. An index takes 21 bytes a sample and the bytes of its keys; while it is
made, the reader remembers every key's hash too (about 100 bytes a sample) to find members that are not adjacent.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from enum import IntFlag

from tarmill.errors import LimitError
from tarmill.formats.samples import Record, Tally
from tarmill.formats.tar_read import Place, iter_places
from tarmill.formats.tar_window import RawInput

_MAX_KEY_BYTES = (1 << 32) - 1


class Bound(IntFlag):
    """What binds a sample to its place in the shard; 0 for samples that can be copied as they are."""

    GLOBAL = 1
    """A pax header for all members tells name or size of one of its members."""
    LINK = 2
    """A member is a hard link."""
    GAP = 4
    """Something that belongs to no sample lies between its members."""


_BOUNDS = {"pax-global": int(Bound.GLOBAL), "hardlink": int(Bound.LINK)}


class ShardIndex:
    """Where the samples of one shard lie, in order; built by `index_shard`.

    `starts`, `lengths` (bytes, headers and padding included) and `bounds` (values of `Bound`) have an entry for each
    sample; `end` is the offset of the archive's end mark, `members` the number of members in samples.
    """

    __slots__ = ("_key_bytes", "_key_ends", "bounds", "end", "lengths", "members", "starts")

    def __init__(self) -> None:
        self.starts = array("Q")
        self.lengths = array("Q")
        self.bounds = bytearray()
        self.end = 0
        self.members = 0
        self._key_ends = array("I")
        self._key_bytes = bytearray()

    def __len__(self) -> int:
        return len(self.starts)

    def key(self, sample: int) -> str:
        """Give the key of the sample at this position, from 0."""
        begin = self._key_ends[sample - 1] if sample else 0
        return self._key_bytes[begin : self._key_ends[sample]].decode("utf-8", "surrogateescape")

    def keys(self) -> Iterator[str]:
        """Give all keys in order."""
        return map(self.key, range(len(self)))

    def self_contained(self, sample: int) -> bool:
        """Tell whether the bytes of the sample at this position can be copied into another archive as they are."""
        return not self.bounds[sample]


def fields_of(record: Record) -> dict[str, Place]:
    """Take the fields out of a record of `iter_places`, in the order of the archive."""
    found = {name: place for name, place in record.items() if place.__class__ is tuple}
    # a field called "key" takes the place of the key's alias, which is not the order of the archive
    return found if record["key"].__class__ is str else dict(sorted(found.items(), key=lambda item: item[1][:2]))


def index_shard(
    raw: RawInput,
    shard: str,
    key_function: str = "base_plus_ext",
    tally: Tally | None = None,
    visit: Callable[[Record], None] | None = None,
) -> ShardIndex:
    """Index one (decompressed) shard in one pass; contents are passed over, by seeks where the stream can.

    Args:
        raw: the stream from its start; consumed, not closed.
        shard: goes into errors.
        key_function: as in `ReadOptions`.
        tally: takes the counts.
        visit: is called with each sample's record, whose fields are `Place`s (see `fields_of`).

    Raises:
        FormatError: something is wrong with the shard: an index of a part of it would lose the rest in silence.
        LimitError: its keys take more than 4 GiB.
    """
    index, tally, gaps = ShardIndex(), tally or Tally(), list[tuple[int, int]]()
    add_start, add_length, add_bound = index.starts.append, index.lengths.append, index.bounds.append
    add_key_end, key_bytes = index._key_ends.append, index._key_bytes
    end = 0
    try:
        for record in iter_places(raw, shard, gaps, key_function, tally):
            key, _, alias, *places = record.values()
            if alias.__class__ is tuple:  # a field called "key" stands where the alias of the key was
                places = sorted([alias, *places])
            start, bound = end, 0
            offset, stored, _ = places[-1]
            end = (offset + stored + 511) & ~511
            if gaps:
                start, bound = _around_gaps(gaps, start, places[0][0], end)
            for _, _, kind in places:
                if kind != "file":
                    bound |= _BOUNDS.get(kind, 0)
            add_start(start)
            add_length(end - start)
            add_bound(bound)
            key_bytes += key.encode("utf-8", "surrogateescape")
            add_key_end(len(key_bytes))
            if visit is not None:
                visit(record)
    except OverflowError:
        raise LimitError(
            f"{shard}: the keys of its first {len(index):,} samples take more than {_MAX_KEY_BYTES:,} bytes; split it",
            shard=shard,
            size_bytes=len(key_bytes),
            limit_bytes=_MAX_KEY_BYTES,
        ) from None
    index.members = tally.members
    index.end = gaps[-1][0]  # that of the end mark, without which a shard is an error
    return index


def _around_gaps(gaps: list[tuple[int, int]], start: int, first_data: int, end: int) -> tuple[int, int]:
    """Use up the gaps before and inside a sample; give where it starts, and whether one is inside."""
    bound = 0
    later = []
    for gap in gaps:
        if gap[0] >= end:
            later.append(gap)
        elif gap[0] < first_data:
            start = gap[1]
        else:
            bound = Bound.GAP
    gaps[:] = later
    return start, int(bound)
