"""Which keys an output shard holds, so that no reader takes two samples for one.

Readers put adjacent members of one key together, so that neighbours must not share theirs. And members of one key that
are not adjacent look like a sample torn apart, unless the same fields come again (`tar_read`). A sample that clashes in
one of these ways is given another key: its own, a dash and a number. What is decided depends on the samples before it
in the shard alone, not on the pieces in which they come.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from tarmill.formats.digest import field_seed
from tarmill.formats.samples import Record
from tarmill.formats.tar_span import fields_of_record

Hashes = NDArray[np.uint64]
Signatures = NDArray[np.uint32]


def hash_of_key(key: str) -> int:
    """Hash a sample's key, as scans do."""
    return xxh3_64_intdigest(key.encode("utf-8", "surrogateescape") + b".")


def signature_of(record: Record) -> int:
    """Tell the set of a sample's fields by 32 bits, as scans do."""
    names = (name.encode("utf-8", "surrogateescape") for name in fields_of_record(record))
    return sum(map(field_seed, names)) & 0xFFFFFFFF


class _Piece:
    """Hashes of consecutive samples, to find equal ones; mostly there are none, and their places are not asked for."""

    def __init__(self, stems: Hashes) -> None:
        self._stems = stems
        self.ordered = np.sort(stems)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Where each of `ordered` stands, equal ones in order."""
        return np.argsort(self._stems, kind="stable")


class _Known:
    """The hashes of the keys in all pieces so far, sorted, and the fields with which each came first."""

    def __init__(self) -> None:
        self._stems: Hashes = np.empty(0, np.uint64)
        self._fields: Signatures = np.empty(0, np.uint32)
        self._waiting: tuple[Hashes, Signatures] | None = None

    def add(self, stems: Hashes, fields: Signatures) -> None:
        """Note the samples of another piece; the last one of a shard is never looked at."""
        self.columns()
        self._waiting = stems, fields

    def columns(self) -> tuple[Hashes, Signatures]:
        """Give hashes and fields."""
        if self._waiting is not None:
            stems, fields = self._waiting
            joined = np.concatenate([self._stems, stems])
            self._stems, first = np.unique(joined, return_index=True)  # sorted, and of equal ones the first
            self._fields = np.concatenate([self._fields, fields])[first]
            self._waiting = None
        return self._stems, self._fields


class ShardNames:
    """The keys of the samples that an output shard has so far, as hashes; 12 bytes for each."""

    def __init__(self) -> None:
        self._known = _Known()
        self._last = self._named = -1
        """Hash of the key of the last sample, and of the last one that was given."""
        self._given: dict[int, int] = {}
        """Hash of each key that was given -> signature of its sample."""
        self._numbers: dict[str, int] = {}

    def clashes(self, stems: Hashes, fields: Signatures) -> Iterator[int]:
        """Give the positions, in order, of those samples of the next piece that need another key.

        Each has to be named by `another` before the next is asked for.

        Args:
            stems: hash of the key of each sample, in order.
            fields: signature of its fields.
        """
        self._piece = _Piece(stems)
        todo = self._static(stems, fields).tolist()
        heapq.heapify(todo)
        done = -1
        while todo:
            position = heapq.heappop(todo)
            if position == done:
                continue
            done = self._position = position
            self._signature = int(fields[position])
            yield position
            for later in self._places_of(self._named):
                if later > position:  # whoever has the key that was given by nature
                    heapq.heappush(todo, later)
        if len(stems):
            self._last = int(stems[-1])
            self._known.add(stems, fields)

    def another(self, key: str) -> str:
        """Give a key that no sample before has, for the sample that `clashes` told last."""
        while True:
            number = self._numbers[key] = self._numbers.get(key, 0) + 1
            name = f"{key}-{number}"
            found = hash_of_key(name)
            if found not in self._given and not self._is_known(found):
                break
        return self.take(name)

    def take(self, name: str) -> str:
        """Note the key that was given."""
        self._named = hash_of_key(name)
        self._given[self._named] = self._signature
        return name

    def name_for(self, key: str, record: Record) -> str:
        """Give the key for a sample that comes by itself: its own, or another where it clashes."""
        found, signature = hash_of_key(key), signature_of(record)
        self._piece = _Piece(np.empty(0, np.uint64))
        self._position, self._signature = 0, signature
        known = self._given.get(found)
        beside = found in (self._last, self._named)
        clash = beside or (known is not None and known != signature)
        self._last = found
        return self.another(key) if clash else self.take(key)

    def _static(self, stems: Hashes, fields: Signatures) -> NDArray[np.int64]:
        """Find the samples that clash with one before them under its own key."""
        clash = np.zeros(len(stems), bool)
        clash[1:] = stems[1:] == stems[:-1]
        if len(stems):
            clash[0] = int(stems[0]) == self._last
        ordered = self._piece.ordered
        again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        if len(again):
            order = self._piece.order
            first = order[np.searchsorted(ordered, ordered[again], "left")]
            clash[order[again]] |= fields[order[again]] != fields[first]
        known, known_fields = self._known.columns()
        if len(known):
            place = np.minimum(np.searchsorted(known, stems), len(known) - 1)
            clash |= (known[place] == stems) & (known_fields[place] != fields)
        if self._given:
            clash |= np.isin(stems, np.fromiter(self._given, np.uint64, len(self._given)))
        return np.flatnonzero(clash)

    def _places_of(self, stem: int) -> list[int]:
        ordered = self._piece.ordered
        begin, end = (
            np.searchsorted(ordered, np.uint64(stem), "left"),
            np.searchsorted(ordered, np.uint64(stem), "right"),
        )
        places: list[int] = self._piece.order[begin:end].tolist() if begin < end else []
        return places

    def _is_known(self, stem: int) -> bool:
        """Tell whether a sample before the one in hand has a key with this hash."""
        if any(place < self._position for place in self._places_of(stem)):
            return True
        known, _ = self._known.columns()
        place = int(np.searchsorted(known, np.uint64(stem)))
        return place < len(known) and int(known[place]) == stem
