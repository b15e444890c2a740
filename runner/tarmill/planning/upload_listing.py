"""What an upload found, sample by sample, in a form that takes little room: a million files fit in 100 MB.

An entry is (key, root, parts), each part (field, path, size, a, b):

| what the field is | path | size | a | b |
|---|---|---|---|---|
| a file that lies where its key says | "" | bytes | mtime in ns | inode number |
| the same, at which nobody has looked | "" | -1 | 0 | 0 |
| a file elsewhere | its path | bytes | mtime in ns | inode number |
| an object of a store or the web | its URL | bytes, -1 if not known | version, "" if not known | mtime in s or None |
| a value that was in a list | None | bytes | the value | None |

For the first kinds the file is the root's folder + key without prefix + "." + field. Of the second, the field alone is
kept. Entries lie one behind the other as marshal writes them: it is the quickest that Python has, and driver and
workers run the same Python.
"""

from __future__ import annotations

import marshal
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tarmill.formats.tar_header import BLOCK
from tarmill.formats.tar_write import MAX_USTAR_BYTES, odd_header
from tarmill.planning.upload_spool import Spool
from tarmill.values import field, valueclass

Part = tuple[str, str | None, int, Any, Any]
Entry = tuple[str, int, tuple[Part, ...]]
Packed = tuple[str, int, tuple[Part | str, ...]]
"""An entry as it is kept: of files at which nobody has looked just the field."""

MARSHAL_VERSION = 2  # later ones write references, which depend on who else holds an object: not the same bytes
_NAME_BYTES = 100


def pack(entry: Entry) -> bytes:
    """Write an entry as bytes; the same entry gives the same bytes."""
    return marshal.dumps(entry, MARSHAL_VERSION)


def unpack(data: bytes | memoryview) -> Entry:
    """Read what `pack` or `Listing.add_named` wrote."""
    return whole(marshal.loads(data))


def whole(entry: Packed) -> Entry:
    """Write a packed entry out."""
    key, root, parts = entry
    return key, root, tuple((part, "", -1, 0, 0) if isinstance(part, str) else part for part in parts)


def tar_bytes(key: str, parts: Iterable[Part]) -> int:
    """Give the room that a sample takes in a (not compressed) tar; what is not known counts as empty."""
    total = 0
    for name, _, size, _, _ in parts:
        encoded = f"{key}.{name}".encode("utf-8", "surrogateescape")
        plain = len(encoded) <= _NAME_BYTES and size <= MAX_USTAR_BYTES
        total += BLOCK if plain else len(odd_header(encoded, max(0, size)))
        total += (max(0, size) + BLOCK - 1) & -BLOCK
    return total


class Samples(Spool, ABC):
    """Samples in order, in packed pieces."""

    sizes: Sequence[int]
    """`tar_bytes` of each; zeros where nobody looked at files."""
    files = 0
    """Parts of all entries."""
    content_bytes = 0
    unknown = 0
    """Parts whose size a store did not tell."""

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Entry]:
        return self.entries(None, 0, len(self))

    def entry(self, index: int) -> Entry:
        """Read one entry."""
        return next(self.entries(None, index, index + 1))

    @abstractmethod
    def entries(self, order: Sequence[int] | None, begin: int, end: int) -> Iterator[Entry]:
        """Read the entries at some places of an order (None: as they are)."""

    @abstractmethod
    def span(self, begin: int, end: int) -> tuple[int, int, int]:
        """Tell in which pieces the samples at some places are: first, behind the last, samples to skip in the first."""


class Listing(Samples):
    """Samples by themselves: a piece is an entry.

    Args:
        scratch_dir: where the file is; None for the system's place.
        spill_bytes: what may stay in memory.
    """

    sizes: array[int]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sizes = array("Q")

    def add(self, entry: Entry) -> None:
        """Append an entry."""
        key, _, parts = entry
        room = _NAME_BYTES - 1 - len(key)
        plain, content, blocks = key.isascii(), 0, 0
        for name, _, size, _, _ in parts:  # a hot loop: what is plain is counted here, as `tar_bytes` does
            if size < 0:
                self.unknown += 1
                size = 0
            content += size
            blocks += (size + 2 * BLOCK - 1) // BLOCK
            if len(name) > room or not name.isascii():
                plain = False
        self.files += len(parts)
        self.content_bytes += content
        recent = self._recent
        recent += marshal.dumps(entry, MARSHAL_VERSION)
        self.ends.append(self._in_file + len(recent))
        self.sizes.append(blocks * BLOCK if plain and content <= MAX_USTAR_BYTES else tar_bytes(key, parts))
        self._added()

    def add_named(self, samples: Iterable[Packed]) -> None:
        """Append entries of files that nobody has looked at; their sizes count as 0."""
        for entry in samples:
            self._recent += marshal.dumps(entry, MARSHAL_VERSION)
            self.ends.append(self._in_file + len(self._recent))
            self.sizes.append(0)
            self.files += len(entry[2])
        self._added()

    def extend(self, piece: Piece) -> None:
        """Append the entries that somebody else has packed."""
        self.files += piece.files
        self.content_bytes += piece.content_bytes
        before = self.data_bytes
        self._recent += piece.data
        ends = array("Q")
        ends.frombytes(piece.ends)
        self.ends.extend(array("Q", [before + end for end in ends]))
        self.sizes.frombytes(piece.sizes)
        self._added()

    def as_piece(self) -> Piece:
        """Give all entries of a listing in memory, to be sent."""
        return Piece(bytes(self._recent), self.ends.tobytes(), self.sizes.tobytes(), self.files, self.content_bytes)

    def entries(self, order: Sequence[int] | None, begin: int, end: int) -> Iterator[Entry]:
        """Read the entries at some places of an order (None: as they are)."""
        return (unpack(self.piece(place if order is None else order[place])) for place in range(begin, end))

    def span(self, begin: int, end: int) -> tuple[int, int, int]:
        """Tell in which pieces the samples at some places are: as many as there are samples."""
        return begin, end, 0


@valueclass
class Piece:
    """Some entries, packed, as they travel."""

    data: bytes
    ends: bytes
    sizes: bytes
    files: int
    content_bytes: int


@valueclass(frozen=False)
class Found:
    """All that the sources hold, and what was left out of it, with reasons."""

    listing: Samples
    by_name: bool = False
    """Whether nobody has looked at the files."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Files and folders that belong to no sample, by kind: hidden, symlink, socket, ..."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Samples that were left out already, by reason."""
    unread: Counter[str] = field(default_factory=Counter)
    """Folders that could not be looked into, by reason."""
    rejected: list[dict[str, Any]] = field(default_factory=list)
    """A line for each sample that was left out."""
    empty: int = 0
    """Files without contents; they are packed."""
    renamed: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
