"""What every store offers: stat, streams that are pinned to one version, ranges, whole-or-nothing writes, lists.

A store is one class per scheme, without state of its own: URLs go in, so nothing but URLs has to travel to workers.
The same contract tests run over all stores; `Capabilities` names what they differ in.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self

from tarmill.errors import StorageError
from tarmill.storage.urls import mask
from tarmill.values import valueclass

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


_READALL_BYTES = 256 << 10


@valueclass
class Stat:
    """What a store knows of one object without reading it.

    Attributes:
        url: as it can be opened again; print `mask(stat.url)`, since it may hold a password. The repr is masked.
        size_bytes: None where the store does not tell.
        version: opaque; equal if and only if the object is the same, as far as the store can tell. "" = not known.
        mtime_s: last change, seconds since 1970, by the store's clock.
    """

    url: str
    size_bytes: int | None
    version: str
    mtime_s: float | None = None

    def __init__(self, url: str, size_bytes: int | None, version: str, mtime_s: float | None = None) -> None:
        # written out, since a job over many shards makes several for each of them
        self.__dict__.update(url=url, size_bytes=size_bytes, version=version, mtime_s=mtime_s)

    def __repr__(self) -> str:
        return f"Stat({mask(self.url)!r}, {self.size_bytes} bytes, version {self.version!r}, mtime {self.mtime_s})"


@valueclass
class Capabilities:
    """What a store can and cannot do; jobs choose their ways by it, tests their expectations.

    Attributes:
        can_stat, can_list, can_write, can_delete, ranges: False where the call raises StorageError.
        strong_versions: two different contents never share a version.
        exclusive_create: `exclusive=True` is a guarantee, not only a look before.
        shared: who sees the same bytes under a URL: this "process", this "host", or "everywhere".
    """

    can_stat: bool = True
    can_list: bool = True
    can_write: bool = True
    can_delete: bool = True
    ranges: bool = True
    strong_versions: bool = True
    exclusive_create: bool = True
    shared: Literal["process", "host", "everywhere"] = "everywhere"


class ReadCounter(Protocol):
    """Who wants to know how much was read."""

    read_bytes: int


class PositionalReads(Protocol):
    """Reading at an offset, wherever the stream stands: spares a seek for each jump, and does not move the stream."""

    size_bytes: int
    """How long the object was when it was opened."""
    counter: ReadCounter | None
    """Is told of each read here: a layer that only counts would cost as much as the read."""

    def readinto_at(self, buffer: memoryview, offset: int, /) -> int:
        """Fill `buffer` from an offset; 0 only at the true end of the object."""

    def read_at(self, size: int, offset: int, /) -> bytes:
        """Give the bytes from an offset as an object of their own; fewer at the end."""


class ReadStream(io.RawIOBase):
    """Bytes of one version of one object; `stat` is what was opened.

    `readinto` gives 0 only at the true end of the object: a body that ends early is an error. `verify` raises
    ChangedError when the object turned out to be no longer the one that was opened, as far as the store can tell then.
    """

    stat: Stat
    positional: PositionalReads | None = None
    """Where the store can read at offsets at no more than the price of reading on."""

    def readable(self) -> bool:
        """Say that this can be read."""
        return True

    def readall(self) -> bytes:
        """Read to the end, in large steps (Python's own takes 8 KB at a time)."""
        window = memoryview(bytearray(_READALL_BYTES))
        pieces = []
        while count := self.readinto(window):
            pieces.append(bytes(window[:count]))
        return b"".join(pieces)

    def verify(self) -> None:
        """Make sure that what was read is one version.

        Raises:
            ChangedError: it is not; what was read must be thrown away.
        """


class PendingCommit(Protocol):
    """A commit that may still be under way in a thread."""

    def result(self, timeout: float | None = None) -> Stat:
        """Wait until the object is stored; raises what the commit raised, TimeoutError after `timeout` seconds."""

    def done(self) -> bool:
        """Tell whether `result` would return at once."""

    def cancel(self) -> bool:
        """Stop it; True when the object certainly does not appear through this commit."""


Bytes = bytes | bytearray | memoryview
"""Data of which `len` tells how many bytes they are."""


class FinishedCommit:
    """The `PendingCommit` of stores whose commit needs no waiting."""

    def __init__(self, receipt: Stat) -> None:
        self._receipt = receipt

    def result(self, timeout: float | None = None) -> Stat:
        """Give the receipt."""
        return self._receipt

    def done(self) -> bool:
        """Say yes."""
        return True

    def cancel(self) -> bool:
        """Say that it is too late."""
        return False


class WriteStream(ABC):
    """An object that appears whole, on `commit`, or not at all.

    As a context manager it commits on a clean exit and aborts on any exception, KeyboardInterrupt included. Writes are
    not buffered: hand over blocks of 256 KB to 1 MB, or many pieces at once to `write_all`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.bytes_written = 0
        self._state: Literal["open", "committed", "aborted"] = "open"
        self._receipt: Stat | None = None

    @abstractmethod
    def _write(self, data: memoryview) -> None:
        """Take all of `data`; it is not ours to keep after the call."""

    @abstractmethod
    def _commit(self) -> Stat:
        """Make the object visible."""

    @abstractmethod
    def _abort(self) -> None:
        """Leave nothing behind; must not raise for what is gone already."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Append all of `data`; returns its length.

        Raises:
            NoSpaceError, AccessError, StorageError: as the store says.
        """
        self._must_be_open()
        view = memoryview(data).cast("B")
        self._write(view)
        self.bytes_written += len(view)
        return len(view)

    def write_all(self, pieces: Iterable[Bytes], /) -> int:
        """Append many pieces in order, in as few system calls as the store can; returns their length in all."""
        return self.write(b"".join(pieces))

    def commit(self) -> Stat:
        """Publish what was written and wait until it is stored; returns its stat, as `receipt` does later.

        When it raises, the stream is aborted.
        """
        self._must_be_open()
        try:
            self._receipt = self._commit()
        except BaseException:
            self._state = "aborted"
            self._abort()
            raise
        self._state = "committed"
        return self._receipt

    def commit_async(self) -> PendingCommit:
        """Publish as `commit`, but in a thread where that has to wait for a network; the stream is at its end.

        The caller goes on with the next output and asks `result()` before it counts this one as done.
        """
        return FinishedCommit(self.commit())

    def abort(self) -> None:
        """Throw away what was written; nothing happens when the stream has ended already."""
        if self._state == "open":
            self._state = "aborted"
            self._abort()

    @property
    def receipt(self) -> Stat:
        """What the store says of the committed object."""
        if self._receipt is None:
            raise StorageError(f"{mask(self.url)} has no receipt: it was not committed", url=mask(self.url))
        return self._receipt

    def _must_be_open(self) -> None:
        if self._state != "open":
            raise StorageError(f"{mask(self.url)} is {self._state} already", url=mask(self.url))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
        elif self._state == "open":
            self.commit()


class Store(ABC):
    """One scheme. All errors are StorageError or its kinds; none carries a secret."""

    schemes: ClassVar[tuple[str, ...]]
    capabilities: ClassVar[Capabilities]

    @abstractmethod
    def stat(self, url: str) -> Stat:
        """Look at one object. Raises NotFoundError, AccessError, StorageError."""

    @abstractmethod
    def open_read(self, url: str, *, version: str | None = None) -> ReadStream:
        """Open the object from its start, pinned to `version` or, without one, to what is there now.

        Raises:
            ChangedError: it is not (any more) the version asked for.
        """

    @abstractmethod
    def read_ranges(self, url: str, ranges: Sequence[tuple[int, int]], *, version: str | None = None) -> list[bytes]:
        """Read ranges (offset, length in bytes) of one version; results in the order asked.

        A range that reaches past the end is a StorageError; neighbours are merged, and fetched in parallel where that
        helps.
        """

    @abstractmethod
    def open_write(
        self, url: str, *, owner: str = "", exclusive: bool = False, content_type: str | None = None
    ) -> WriteStream:
        """Begin an object that appears whole or not at all.

        Args:
            url: replaced if it exists, unless `exclusive`.
            owner: who may `sweep` what a killed process leaves; letters, digits, `_`, `-` (a job id).
            exclusive: OutputExistsError at commit when it exists by then (see `Capabilities.exclusive_create`).
            content_type: told to web servers and object stores.
        """

    @abstractmethod
    def list(self, prefix_url: str) -> Iterator[Stat]:
        """List every object whose URL begins with the prefix, through all folders below, sorted by name.

        Nothing there = nothing listed. Unfinished outputs are left out. `version` may be "" (see `stat_many`).
        """

    @abstractmethod
    def delete(self, url: str) -> None:
        """Remove an object; a missing one is fine."""

    def sweep(self, folder_url: str, owner: str, outputs: Container[str] = ()) -> int:
        """Remove what killed processes of `owner` left in this folder; how many that were.

        Only when no other process of that owner is writing there. Folders below are swept too where a store has none.

        Args:
            folder_url: ends with "/".
            owner: as it was given to `open_write`.
            outputs: URLs that nobody else writes; some stores do not know whose an unfinished output is.
        """
        return 0


def merge_ranges(ranges: Sequence[tuple[int, int]], gap_bytes: int) -> Iterator[tuple[int, int, Sequence[int]]]:
    """Join ranges closer than `gap_bytes`: (offset, length, indices into `ranges`), by rising offset (pure)."""
    order = sorted((index for index in range(len(ranges)) if ranges[index][1]), key=lambda index: ranges[index])
    members: list[int] = []
    start = end = 0
    for index in order:
        offset, length = ranges[index]
        if members and offset - end < gap_bytes:
            end = max(end, offset + length)
            members.append(index)
            continue
        if members:
            yield start, end - start, members
        start, end, members = offset, offset + length, [index]
    if members:
        yield start, end - start, members


def fetch_ranges(
    ranges: Sequence[tuple[int, int]],
    gap_bytes: int,
    fetch: Callable[[int, int], bytes],
    map_calls: Callable[[Callable[[tuple[int, int]], bytes], Iterable[tuple[int, int]]], Iterable[bytes]] = map,
) -> list[bytes]:
    """Serve `ranges` from merged fetches; `map_calls` may be that of a thread pool.

    Raises:
        ValueError: a range that begins or counts below zero.
    """
    if any(offset < 0 or length < 0 for offset, length in ranges):
        raise ValueError(f"ranges are (offset >= 0, length >= 0), not {list(ranges)!r}")
    merged = list(merge_ranges(ranges, gap_bytes))
    found = [b""] * len(ranges)
    blocks = map_calls(lambda span: fetch(*span), [(start, length) for start, length, _ in merged])
    for (start, _, members), block in zip(merged, blocks, strict=True):
        for index in members:
            offset, length = ranges[index]
            found[index] = block[offset - start : offset - start + length]
    return found
