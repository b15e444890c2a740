"""Where the samples of a plain shard lie, with their digests: the hot loop of shuffle and sort.

A sample is one range of bytes, headers and padding included, which other tools copy as it is. The headers of a window
of 4 MiB are parsed and checked together, as rows of a numpy array; Python's own work per member is to hash its
contents. This takes only what is wholly plain: ustar or GNU headers of regular files, pax headers with nothing but an
mtime, adjacent members of distinct keys, an end mark. At anything else it raises `NotPlain`, and the caller has the
shard looked at by the complete reader (`tar_read`), which either understands it or says what is the matter.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from itertools import compress
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest, xxh3_128, xxh3_128_intdigest

from tarmill.formats.digest import MASK_64, MASK_128, field_seed
from tarmill.formats.mapped_window import MappedWindow, ReadCounter
from tarmill.formats.range_hash import Hashes, HashSum, cut, hashes_of
from tarmill.formats.samples import Record
from tarmill.formats.tar_header import BLOCK, ZERO_BLOCK
from tarmill.formats.tar_headers import Headers, parse_first, parse_headers
from tarmill.formats.tar_rows import NotPlain
from tarmill.formats.tar_window import RawInput, Window

_VIEW_BYTES = 1 << 10
"""Ranges above this are hashed where they lie; below, a copy costs less than a view."""
_CHUNK_BYTES = 512 << 10
_MAX_FIELDS = 50  # each has a bit of its own, and the bits of a window's members add up to less than 2^63
_MAX_TAILS = 4096
_WINDOW_BYTES = 4 << 20
"""What numpy's calls cost for a window counts where few large samples fit into one; more than this gains nothing."""

_LOW_HALF = np.uint64(0xFFFFFFFF)
KeyOfRecord = Callable[[Record], bytes | None]
"""Gives the encoded sort key of a record; None leaves the sample out."""
AnyWindow = Window | MappedWindow


class Spans:
    """What a scan found: an entry of `starts`, `lengths`, `stems` (and `keys`) for each sample that is kept, in order.

    Attributes:
        starts, lengths: bytes in the (decompressed) stream.
        stems: xxh3_64 of the sample's key with a dot, to tell equal keys.
        fields: low half of the sum of the digest seeds of its fields, to tell equal sets of fields.
        keys: encoded sort keys, when they were asked for.
        digest: multiset hash of the samples (module `digest`).
        raw_digest: sum of xxh3_128 over the bytes of the ranges, modulo 2^128: proves that copies are exact.
        samples: met in all; `left_out` of them have no entry, since `key_of` left them out.
        left_stems: as `stems`, of samples that are left out.
        members: of samples that have an entry.
    """

    __slots__ = (
        *(
            "digest",
            "fields",
            "keys",
            "left_out",
            "left_stems",
            "lengths",
            "members",
            "raw_digest",
            "samples",
            "starts",
            "stems",
        ),
    )

    def __init__(self) -> None:
        self.starts = array("Q")
        self.lengths = array("Q")
        self.stems = array("Q")
        self.fields = array("Q")
        self.left_stems = array("Q")
        self.keys: list[bytes] = []
        self.digest = 0
        self.raw_digest = 0
        self.members = 0
        self.samples = 0
        self.left_out = 0

    def add(self, start: int, length: int, stem: bytes, digest: int, raw_digest: int) -> None:
        """Note one sample; `stem` is its key with a dot."""
        self.starts.append(start)
        self.lengths.append(length)
        self.stems.append(xxh3_64_intdigest(stem))
        self.digest = (self.digest + digest) & MASK_128
        self.raw_digest = (self.raw_digest + raw_digest) & MASK_128

    def has_equal_keys(self) -> bool:
        """Tell whether two samples have one key (members that are not adjacent look so too)."""
        stems = np.sort(np.concatenate([as_array(self.stems), as_array(self.left_stems)]))
        return bool((stems[1:] == stems[:-1]).any())


def scan_plain(
    raw: RawInput,
    shard: str,
    *,
    mapped: memoryview | None = None,
    counter: ReadCounter | None = None,
    key_of: KeyOfRecord | None = None,
    load: frozenset[str] | None = frozenset(),
    key_of_stem: Callable[[bytes], bytes] | None = None,
    tick: Callable[[int], None] | None = None,
) -> Spans:
    """Scan one plain, decompressed shard to its end, in one pass and in bounded memory.

    Args:
        raw: the stream from its start; consumed, not closed.
        shard: goes into records as `__url__`.
        mapped: the same from a file that is mapped whole, which is looked at instead;
        counter: is told of it, since `raw` is not read.
        key_of: makes the sort key from a record.
        load: the fields that it needs in the record; None for all.
        key_of_stem: makes the sort key from the sample's key in bytes instead, where nothing else decides.
        tick: is called now and then with the number of samples so far.

    Raises:
        NotPlain: something needs the complete reader; what was found so far is void.
        SampleError: from `key_of`.
    """
    window: AnyWindow
    window = Window(raw, size_bytes=_WINDOW_BYTES) if mapped is None else MappedWindow(mapped, _WINDOW_BYTES, counter)
    scanner = _Scanner(window, shard, key_of, load, key_of_stem, tick)
    try:
        scanner.run()
    finally:
        window.close()
    return scanner.found


class _Fields(dict[bytes, int]):
    """What stands behind the dot of a key in a name field -> number of the field; learns them as they come."""

    def __init__(self, load: frozenset[str] | None) -> None:
        super().__init__()
        self.load = load
        self.seeds: list[int] = []
        """What each puts into the digest of its contents."""
        self.names: list[str | None] = []
        """Their names, None for those that are not loaded."""
        self.numbers: dict[bytes, int] = {}

    def __missing__(self, tail: bytes) -> int:
        field = tail.partition(b"\0")[0]  # some writers leave rubbish behind the NUL
        if field.startswith(b"__") or len(self) >= _MAX_TAILS or len(self.numbers) >= _MAX_FIELDS:
            raise NotPlain("a reserved field, or very many")
        if field not in self.numbers:
            self.numbers[field] = len(self.numbers)
            name = field.decode("utf-8", "surrogateescape")
            self.seeds.append(field_seed(field))
            self.names.append(name if self.load is None or name in self.load else None)
        self[tail] = number = self.numbers[field]
        return number


class _Scanner:
    """State of one scan; samples are taken from the window once they are known to be complete."""

    def __init__(
        self,
        window: AnyWindow,
        shard: str,
        key_of: KeyOfRecord | None,
        load: frozenset[str] | None,
        key_of_stem: Callable[[bytes], bytes] | None,
        tick: Callable[[int], None] | None,
    ) -> None:
        self.window = window
        self.shard = shard
        self.key_of = key_of
        self.key_of_stem = key_of_stem
        self.tick = tick
        self.fields = _Fields(load if key_of is not None else frozenset())
        self.room = np.empty((window.size // BLOCK, BLOCK), np.uint8)
        self.found = Spans()
        self.hashes = HashSum()
        """Of members and of samples that the windows held whole;"""
        self.raw_hashes = HashSum()
        """and of their ranges."""

    def run(self) -> None:
        """Scan to the end."""
        window = self.window
        ended = False
        while not ended:
            window.ensure(window.size)
            have = window.have - window.pos
            if have < BLOCK:
                raise NotPlain("the shard ends without an end mark")
            headers = parse_headers(window.buffer, window.pos, have // BLOCK, window.at_end, self.room)
            if headers.stems:
                self._take(headers)
                window.pos = int(headers.edges[-1])
            if headers.at_end_mark:
                ended = self._pass_end_mark()
            elif not headers.stems:
                self._long_sample()
            if self.tick is not None:
                self.tick(self.found.samples)
        found = self.found
        found.digest = (found.digest + self.hashes.total()) & MASK_128
        found.raw_digest = (found.raw_digest + self.raw_hashes.total()) & MASK_128

    def _take(self, headers: Headers) -> None:
        """Digest the samples that the window holds whole, column by column: a call out of C costs least."""
        found, stems, firsts = self.found, headers.stems, headers.firsts
        starts, stops = headers.edges[:-1], headers.edges[1:]
        numbers = list(map(self.fields.__getitem__, headers.tails))
        _refuse_doubled(numbers, headers)
        seeds = list(map(self.fields.seeds.__getitem__, numbers))
        alike = len(headers.begins) // len(numbers)
        fields = _signatures(seeds, alike, firsts)
        members, ranges = _hashes(self.window, headers, seeds, alike)
        samples = hashes_of(stems, np.add.reduceat(members[:, 1], firsts).tolist())
        found.samples += len(stems)
        if self.key_of is not None:
            kept = np.array(self._sort_keys(headers, numbers))
            members = members[np.repeat(kept, np.diff(firsts, append=len(members)))]
            samples, ranges, fields = samples[kept], ranges[kept], fields[kept]
            starts, stops = starts[kept], stops[kept]
            stems = list(compress(stems, kept.tolist()))
        elif self.key_of_stem is not None:
            found.keys += [self.key_of_stem(stem[:-1]) for stem in stems]
        found.members += len(members)
        found.starts.frombytes((starts + self.window.base).tobytes())
        found.lengths.frombytes((stops - starts).tobytes())
        found.fields.frombytes(fields.tobytes())
        found.stems.extend(map(xxh3_64_intdigest, stems))
        self.hashes.add(members)
        self.hashes.add(samples)
        self.raw_hashes.add(ranges)

    def _sort_keys(self, headers: Headers, numbers: list[int]) -> list[bool]:
        """Make the sort keys of samples from their records; False for each sample that is left out."""
        names = list(map(self.fields.names.__getitem__, numbers)) * (len(headers.begins) // len(numbers))
        begins, ends, buffer = headers.begins.tolist(), headers.ends.tolist(), self.window.buffer
        firsts = headers.firsts.tolist()
        kept = []
        for stem, first, stop in zip(headers.stems, firsts, [*firsts[1:], len(names)], strict=True):
            record: Record = {}
            for member in range(first, stop):
                if (name := names[member]) is not None:
                    record[name] = buffer[begins[member] : ends[member]]
            kept.append(self._keep(stem, record))
        return kept

    def _keep(self, stem: bytes, record: Record) -> bool:
        """Make the sort key of a sample; False when the sample is left out."""
        key = stem[:-1].decode("utf-8", "surrogateescape")
        whole = {"__key__": key, "__url__": self.shard, "key": key}
        whole.update(record)
        encoded = cast(KeyOfRecord, self.key_of)(whole)
        if encoded is None:
            self.found.left_out += 1
            self.found.left_stems.append(xxh3_64_intdigest(stem))
            return False
        self.found.keys.append(encoded)
        return True

    def _pass_end_mark(self) -> bool:
        """Pass over zero blocks; True when nothing follows them."""
        window = self.window
        while window.peek(BLOCK) == ZERO_BLOCK:
            window.pos += BLOCK
        rest = window.peek(BLOCK)
        if len(rest) < BLOCK and rest.strip(b"\0"):
            raise NotPlain("something follows the end mark")
        return len(rest) < BLOCK

    def _long_sample(self) -> None:
        """Take one sample that is larger than the window, piece by piece."""
        window, found, fields = self.window, self.found, self.fields
        start, raw, total, mask, members, signature = window.offset, xxh3_128(), 0, 0, 0, 0
        record: Record = {}
        stem = b""
        while True:
            window.ensure(4 * BLOCK)
            blocks = (window.have - window.pos) // BLOCK
            if not blocks:
                raise NotPlain("the shard ends without an end mark")
            head = parse_first(window.buffer, window.pos, blocks)
            if head.at_end_mark or (stem and head.stem != stem):
                break
            stem = head.stem
            number = fields[head.tail]
            if mask >> number & 1:
                raise NotPlain("a field comes twice")
            mask |= 1 << number
            name = fields.names[number]
            raw.update(window.view[window.pos : window.pos + head.data_offset])
            window.pos += head.data_offset
            digest, body = self._long_body(head.size_bytes, fields.seeds[number], raw, name is not None)
            total += digest
            signature += fields.seeds[number]
            members += 1
            if name is not None:
                record[name] = body
        found.samples += 1
        if self.key_of is not None and not self._keep(stem, record):
            return
        if self.key_of is None and self.key_of_stem is not None:
            found.keys.append(self.key_of_stem(stem[:-1]))
        found.members += members
        found.fields.append(signature & int(_LOW_HALF))
        digest = total + xxh3_128_intdigest(stem, total & MASK_64)
        found.add(start, window.offset - start, stem, digest, raw.intdigest())

    def _long_body(self, size: int, seed: int, raw: Any, load: bool) -> tuple[int, bytes]:
        """Hash a member's contents, and its padding into `raw`; the digest, and the contents where they are wanted."""
        window = self.window
        body = xxh3_128(seed=seed)
        pieces: list[bytes] = []
        left, padding = size, -size % BLOCK
        while left + padding:
            window.ensure(min(_CHUNK_BYTES, left + padding))
            piece = window.view[window.pos : min(window.have, window.pos + min(_CHUNK_BYTES, left + padding))]
            if not piece:
                raise NotPlain("the shard ends inside a member")
            raw.update(piece)
            inside = piece[:left]
            body.update(inside)
            if load:
                pieces.append(bytes(inside))
            left -= len(inside)
            padding -= len(piece) - len(inside)
            window.pos += len(piece)
        return body.intdigest(), b"".join(pieces)


def _refuse_doubled(numbers: list[int], headers: Headers) -> None:
    """See that no sample has a field twice."""
    if len(numbers) < len(headers.begins):  # those of the first sample, as of all
        doubled = len(set(numbers)) < len(numbers)
    else:
        bits = np.left_shift(1, np.array(numbers, np.int64))
        doubled = (np.add.reduceat(bits, headers.firsts) != np.bitwise_or.reduceat(bits, headers.firsts)).any()
    if doubled:
        raise NotPlain("a field comes twice")


def _signatures(seeds: list[int], alike: int, firsts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Sum up the seeds of each sample's fields (see `Spans.fields`); those of the first sample where all are alike."""
    if alike > 1:
        return np.full(len(firsts), sum(seeds) & int(_LOW_HALF), np.uint64)
    return np.add.reduceat(np.array(seeds, np.uint64), firsts) & _LOW_HALF


def _hashes(window: AnyWindow, headers: Headers, seeds: list[int], alike: int) -> tuple[Hashes, Hashes]:
    """Hash the contents of all members, and the ranges of all samples: what one brings into the cache, the other finds.

    Args:
        window: where they lie.
        headers: of them.
        seeds: one for each member, or those of the first sample where all are alike.
        alike: how many samples are.
    """
    firsts = headers.firsts
    of_range = firsts + np.arange(len(firsts))
    is_member = np.ones(len(headers.begins) + len(firsts), bool)
    is_member[of_range] = False
    pieces = np.empty((2, len(is_member)), np.int64)
    pieces[:, of_range] = headers.edges[:-1], headers.edges[1:]
    pieces[:, is_member] = headers.begins, headers.ends
    seeds = [0, *seeds] * alike if alike > 1 else np.insert(np.array(seeds, np.uint64), firsts, 0).tolist()
    hashes = hashes_of(_pieces(window, *pieces), seeds)
    return hashes[is_member], hashes[of_range]


def _pieces(window: AnyWindow, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> Iterator[Any]:
    """Cut ranges out of the window."""
    large = len(begins) and int((ends - begins).sum()) > _VIEW_BYTES * len(begins)
    return cut(window.view if large else window.buffer, begins.tolist(), ends.tolist())


def as_array(values: array[int]) -> NDArray[np.uint64]:
    """View an array of unsigned 64-bit integers as numpy's, without a copy."""
    return np.frombuffer(values, np.uint64) if values else np.empty(0, np.uint64)
