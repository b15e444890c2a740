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
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

from xxhash import xxh3_128

from tarmill.formats.tar_header import BLOCK
from tarmill.formats.tar_write import MAX_USTAR_BYTES, odd_header
from tarmill.values import field, valueclass

Part = tuple[str, str | None, int, Any, Any]
Entry = tuple[str, int, tuple[Part, ...]]
Packed = tuple[str, int, tuple[Part | str, ...]]
"""An entry as it is kept: of files at which nobody has looked just the field."""

_MARSHAL_VERSION = 2  # later ones write references, which depend on who else holds an object: not the same bytes
_SPILL_BYTES = 64 << 20
_READ_BYTES = 1 << 20
_NAME_BYTES = 100


def pack(entry: Entry) -> bytes:
    """Write an entry as bytes; the same entry gives the same bytes."""
    return marshal.dumps(entry, _MARSHAL_VERSION)


def unpack(data: bytes | memoryview) -> Entry:
    """Read what `pack` or `Listing.add_named` wrote."""
    key, root, parts = marshal.loads(data)
    return key, root, tuple(part if isinstance(part, tuple) else (part, "", -1, 0, 0) for part in parts)


def tar_bytes(key: str, parts: Iterable[Part]) -> int:
    """Give the room that a sample takes in a (not compressed) tar; what is not known counts as empty."""
    total = 0
    for name, _, size, _, _ in parts:
        encoded = f"{key}.{name}".encode("utf-8", "surrogateescape")
        plain = len(encoded) <= _NAME_BYTES and size <= MAX_USTAR_BYTES
        total += BLOCK if plain else len(odd_header(encoded, max(0, size)))
        total += (max(0, size) + BLOCK - 1) & -BLOCK
    return total


class Listing:
    """Entries in order. What is more than some megabytes waits in a file without a name.

    Args:
        scratch_dir: where that file is; None for the system's place.
        spill_bytes: what may stay in memory.
    """

    def __init__(self, scratch_dir: str | None = None, spill_bytes: int = _SPILL_BYTES) -> None:
        self.ends = array("Q")
        """Where each entry ends."""
        self.sizes = array("Q")
        """`tar_bytes` of each."""
        self.files = 0
        """Parts of all entries."""
        self.content_bytes = 0
        self.unknown = 0
        """Parts whose size is not known."""
        self._scratch_dir = scratch_dir
        self._spill_bytes = spill_bytes
        self._file: IO[bytes] | None = None
        self._in_file = 0
        self._recent = bytearray()
        self._hash = xxh3_128()

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def data_bytes(self) -> int:
        """How long all entries are together."""
        return self._in_file + len(self._recent)

    @property
    def version(self) -> str:
        """Hash of all entries: of names, sizes, times, values."""
        return self._hash.hexdigest()

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
        recent += marshal.dumps(entry, _MARSHAL_VERSION)
        self.ends.append(self._in_file + len(recent))
        self.sizes.append(blocks * BLOCK if plain and content <= MAX_USTAR_BYTES else tar_bytes(key, parts))
        if len(recent) > self._spill_bytes:
            self._spill()

    def add_named(self, root: int, samples: Iterable[tuple[str, tuple[Part | str, ...]]]) -> None:
        """Append the entries (key, parts) of one source whose files nobody has looked at; their sizes count as 0."""
        recent, ends, dumps, begin = self._recent, self.ends, marshal.dumps, self._in_file
        before = len(ends)
        for key, parts in samples:
            recent += dumps((key, root, parts), _MARSHAL_VERSION)
            ends.append(begin + len(recent))
            self.files += len(parts)
        self.sizes.frombytes(bytes(self.sizes.itemsize * (len(ends) - before)))
        if len(recent) > self._spill_bytes:
            self._spill()

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
        if len(self._recent) > self._spill_bytes:
            self._spill()

    def finish(self) -> None:
        """Hash what nobody has hashed: to be called before `version` is asked for."""
        self._hash.update(self._recent)
        self._spill_bytes = 1 << 62

    def close(self) -> None:
        """Let go of the file, where there is one."""
        if self._file is not None:
            self._file.close()

    def as_piece(self) -> Piece:
        """Give all entries of a listing in memory, to be sent."""
        return Piece(bytes(self._recent), self.ends.tobytes(), self.sizes.tobytes(), self.files, self.content_bytes)

    def entry(self, index: int) -> Entry:
        """Read one entry."""
        begin = self.ends[index - 1] if index else 0
        return unpack(self._read(begin, self.ends[index]))

    def __iter__(self) -> Iterator[Entry]:
        return (self.entry(index) for index in range(len(self)))

    def blocks(self, order: Sequence[int] | None, begin: int, end: int) -> Iterator[bytes]:
        """Give the packed entries of some places of an order (None: as they are), in blocks of about a megabyte."""
        if order is None:
            at, stop = self.ends[begin - 1] if begin else 0, self.ends[end - 1] if end else 0
            while at < stop:
                yield self._read(at, min(stop, at + _READ_BYTES))
                at = min(stop, at + _READ_BYTES)
            return
        waiting: list[bytes] = []
        size = 0
        for place in range(begin, end):
            index = order[place]
            waiting.append(self._read(self.ends[index - 1] if index else 0, self.ends[index]))
            size += len(waiting[-1])
            if size > _READ_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
        yield b"".join(waiting)

    def lengths(self, order: Sequence[int] | None, begin: int, end: int) -> array[int]:
        """Give the length of each packed entry of some places of an order."""
        ends = self.ends
        indices: Iterable[int] = range(begin, end) if order is None else (order[place] for place in range(begin, end))
        return array("Q", [ends[index] - (ends[index - 1] if index else 0) for index in indices])

    def _spill(self) -> None:
        if self._file is None:
            import tempfile

            self._file = tempfile.TemporaryFile(dir=self._scratch_dir, prefix="tarmill-listing-")  # noqa: SIM115
        self._hash.update(self._recent)
        self._file.write(self._recent)
        self._in_file += len(self._recent)
        self._recent.clear()

    def _read(self, begin: int, end: int) -> bytes:
        if begin >= self._in_file:
            return bytes(self._recent[begin - self._in_file : end - self._in_file])
        assert self._file is not None
        self._file.seek(begin)
        data = self._file.read(min(end, self._in_file) - begin)
        return data if end <= self._in_file else data + bytes(self._recent[: end - self._in_file])


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

    listing: Listing
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
