"""Where the samples of a plain shard lie, with their digests: the hot loop of shuffle and sort.

A sample is one range of bytes, headers and padding included, which other tools copy as it is. The headers of a window
of 1 MiB are parsed and checked together, as rows of a numpy array; Python's own work per member is to hash its
contents. This takes only what is wholly plain: ustar or GNU headers of regular files, pax headers with nothing but an
mtime, adjacent members of distinct keys, an end mark. At anything else it raises `NotPlain`, and the caller has the
shard looked at by the complete reader (`tar_read`), which either understands it or says what is the matter.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest, xxh3_128, xxh3_128_intdigest

from tarmill.formats.digest import MASK_64, MASK_128, field_seed
from tarmill.formats.samples import Record
from tarmill.formats.tar_header import BLOCK, ZERO_BLOCK
from tarmill.formats.tar_headers import Headers, NotPlain, parse_first, parse_headers
from tarmill.formats.tar_window import RawInput, Window

_VIEW_BYTES = 64 << 10
"""Contents above this are hashed where they lie; below, a copy costs less than a view."""
_CHUNK_BYTES = 512 << 10
_MAX_FIELDS = 63  # each has a bit of its own
_TICK_SAMPLES = 512

KeyOfRecord = Callable[[Record], bytes | None]
"""Gives the encoded sort key of a record; None leaves the sample out."""


class Spans:
    """What a scan found: an entry of `starts`, `lengths`, `stems` (and `keys`) for each sample that is kept, in order.

    Attributes:
        starts, lengths: bytes in the (decompressed) stream.
        stems: xxh3_64 of the sample's key with a dot, to tell equal keys.
        keys: encoded sort keys, when they were asked for.
        digest: multiset hash of the samples (module `digest`).
        raw_digest: sum of xxh3_128 over the bytes of the ranges, modulo 2^128: proves that copies are exact.
        samples: met in all; `left_out` of them have no entry, since `key_of` left them out.
        members: of samples that have an entry.
    """

    __slots__ = ("digest", "keys", "left_out", "lengths", "members", "raw_digest", "samples", "starts", "stems")

    def __init__(self) -> None:
        self.starts = array("Q")
        self.lengths = array("Q")
        self.stems = array("Q")
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
        stems = np.sort(np.frombuffer(self.stems, np.uint64)) if self.stems else np.empty(0, np.uint64)
        return bool((stems[1:] == stems[:-1]).any())


def scan_plain(
    raw: RawInput,
    shard: str,
    *,
    key_of: KeyOfRecord | None = None,
    load: frozenset[str] | None = frozenset(),
    key_of_stem: Callable[[bytes], bytes] | None = None,
    tick: Callable[[int], None] | None = None,
) -> Spans:
    """Scan one plain, decompressed shard to its end, in one pass and in bounded memory.

    Args:
        raw: the stream from its start; consumed, not closed.
        shard: goes into records as `__url__`.
        key_of: makes the sort key from a record.
        load: the fields that it needs in the record; None for all.
        key_of_stem: makes the sort key from the sample's key in bytes instead, where nothing else decides.
        tick: is called now and then with the number of samples so far.

    Raises:
        NotPlain: something needs the complete reader; what was found so far is void.
        SampleError: from `key_of`.
    """
    scanner = _Scanner(Window(raw), shard, key_of, load, key_of_stem, tick)
    try:
        scanner.run()
    finally:
        scanner.window.close()
    return scanner.found


class _Scanner:
    """State of one scan; samples are taken from the window once they are known to be complete."""

    def __init__(
        self,
        window: Window,
        shard: str,
        key_of: KeyOfRecord | None,
        load: frozenset[str] | None,
        key_of_stem: Callable[[bytes], bytes] | None,
        tick: Callable[[int], None] | None,
    ) -> None:
        self.window = window
        self.shard = shard
        self.key_of = key_of
        self.load = load
        self.key_of_stem = key_of_stem
        self.tick = tick
        self.fields: dict[bytes, tuple[int, int, str | None]] = {}
        """Field in bytes -> digest seed, a bit of its own, its name where it is loaded."""
        self.found = Spans()

    def run(self) -> None:
        """Scan to the end."""
        window = self.window
        while True:
            window.ensure(window.size)
            have = window.have - window.pos
            if have < BLOCK:
                raise NotPlain("the shard ends without an end mark")
            headers = parse_headers(window.buffer, window.pos, have // BLOCK, window.at_end)
            taken = self._take(headers)
            window.pos += taken
            if headers.at_end_mark:
                if self._pass_end_mark():
                    return
            elif not taken:
                self._long_sample()
            if self.tick is not None:
                self.tick(self.found.samples)

    def _take(self, headers: Headers) -> int:
        """Digest the samples that the window holds whole; the bytes that they take."""
        window, found = self.window, self.found
        buffer, view, base, at = window.buffer, window.view, window.base, window.pos
        names, fields, hash_128, hash_64 = headers.names, self.fields, xxh3_128_intdigest, xxh3_64_intdigest
        add_start, add_length, add_stem = found.starts.append, found.lengths.append, found.stems.append
        plain = self.key_of is None
        add_key, key_of_stem = found.keys.append, self.key_of_stem
        digest = raw_digest = total = mask = first = 0
        record: Record = {}
        start = at
        for member, (field_at, field_to, data_at, data_to, end, key_at) in enumerate(headers.rows):
            field = names[field_at:field_to]
            seed, bit, wanted = fields.get(field) or self._learn(field)
            if mask & bit:
                raise NotPlain("a field comes twice")
            mask |= bit
            if data_to - data_at > _VIEW_BYTES:
                total += hash_128(view[data_at:data_to], seed)
                if wanted is not None:
                    record[wanted] = buffer[data_at:data_to]
            else:
                body = buffer[data_at:data_to]
                total += hash_128(body, seed)
                if wanted is not None:
                    record[wanted] = body
            if end:
                stem = names[key_at:field_at]
                keep = True
                if not plain:
                    keep = self._keep(stem, record)
                    record = {}
                elif key_of_stem is not None:
                    add_key(key_of_stem(stem[:-1]))
                if keep:
                    digest += total + hash_128(stem, total & MASK_64)
                    if end - start > _VIEW_BYTES:
                        raw_digest += hash_128(view[start:end])
                    else:
                        raw_digest += hash_128(buffer[start:end])
                    add_start(base + start)
                    add_length(end - start)
                    add_stem(hash_64(stem))
                    found.members += member + 1 - first
                first = member + 1
                start = end
                total = mask = 0
        found.samples += headers.samples
        found.digest = (found.digest + digest) & MASK_128
        found.raw_digest = (found.raw_digest + raw_digest) & MASK_128
        return start - at

    def _learn(self, field: bytes) -> tuple[int, int, str | None]:
        """Get to know a field."""
        if field.startswith(b"__") or len(self.fields) >= _MAX_FIELDS:
            raise NotPlain("a reserved field, or very many")
        name = field.decode("utf-8", "surrogateescape")
        wanted = self.key_of is not None and (self.load is None or name in self.load)
        self.fields[field] = known = field_seed(field), 1 << len(self.fields), name if wanted else None
        return known

    def _keep(self, stem: bytes, record: Record) -> bool:
        """Make the sort key of a sample; False when the sample is left out."""
        key = stem[:-1].decode("utf-8", "surrogateescape")
        whole = {"__key__": key, "__url__": self.shard, "key": key}
        whole.update(record)
        encoded = cast(KeyOfRecord, self.key_of)(whole)
        if encoded is None:
            self.found.left_out += 1
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
        window, found = self.window, self.found
        start, raw, total, mask, members = window.offset, xxh3_128(), 0, 0, 0
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
            seed, bit, wanted = self.fields.get(head.field) or self._learn(head.field)
            if mask & bit:
                raise NotPlain("a field comes twice")
            mask |= bit
            raw.update(window.view[window.pos : window.pos + head.data_offset])
            window.pos += head.data_offset
            digest, body = self._long_body(head.size_bytes, seed, raw, wanted is not None)
            total += digest
            members += 1
            if wanted is not None:
                record[wanted] = body
        found.samples += 1
        if self.key_of is not None and not self._keep(stem, record):
            return
        if self.key_of is None and self.key_of_stem is not None:
            found.keys.append(self.key_of_stem(stem[:-1]))
        found.members += members
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


def as_array(values: array[int]) -> NDArray[np.uint64]:
    """View an array of unsigned 64-bit integers as numpy's, without a copy."""
    return np.frombuffer(values, np.uint64) if values else np.empty(0, np.uint64)
