"""What an upload sends to workers: where a shard's entries lie, or the entries where they are few; never contents."""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Callable, Iterator
from typing import Any

from tarmill.planning.upload_listing import Packed
from tarmill.spec import UploadSpec
from tarmill.values import valueclass

_READ_BYTES = 1 << 20


@valueclass
class UploadJob:
    """What all tasks of one upload share."""

    job: str
    """Job id: owner of temp files."""
    spec: UploadSpec
    """Without its sources, which may be very many."""
    state: str
    """Folder URL for the job's small files, with "/" at its end; "" for none."""
    folder: str
    """Folder of the outputs: what names in manifests are relative to."""
    roots: tuple[str, ...]
    """Folder of each source from which paths are derived."""
    follow: bool
    """Whether files are opened through symbolic links."""
    begun_ns: int
    """When the driver began to list what there is; 0 where it looked at every file."""
    remote: bool
    """Whether some fields lie in stores or on the web."""
    settings: Any
    """`storage.StorageSettings`, to be put in force in the worker."""


@valueclass
class UploadTask:
    """Write one shard."""

    index: int
    output: str
    job: UploadJob
    lengths: bytes
    """Length of each packed entry, 8 bytes each."""
    data: bytes
    """The entries; b"" where they lie in a file."""
    listing: str = ""
    """URL of that file."""
    version: str | None = None
    begin: int = 0
    """Where they begin in it."""

    @property
    def label(self) -> str:
        """What messages call the task."""
        return self.output.rpartition("/")[2].partition("?")[0]

    @property
    def samples(self) -> int:
        """How many samples the shard is to have."""
        return len(self.lengths) // 8

    def entries(self, read: Callable[[int, int], bytes]) -> Iterator[Packed]:
        """Give the entries.

        Args:
            read: reads (offset, length) of the file.
        """
        lengths = array("Q")
        lengths.frombytes(self.lengths)
        if not self.listing:
            at, data = 0, self.data
            for length in lengths:
                yield marshal.loads(data[at : at + length])
                at += length
            return
        left, begin, at, data = sum(lengths), self.begin, 0, b""
        for length in lengths:
            if at + length > len(data):
                data, at = data[at:], 0
                more = min(left, max(_READ_BYTES, length - len(data)))
                data += read(begin, more)
                begin, left = begin + more, left - more
            yield marshal.loads(data[at : at + length])
            at += length
