"""What an upload sends to workers: where the list of a shard's files lies, or that list where it is short."""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from tarmill.planning.upload_listing import Packed
from tarmill.planning.upload_runs import samples_of_packed
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
    samples: int
    """How many the shard is to have."""
    lengths: bytes
    """Length of each packed piece, 8 bytes each."""
    data: bytes
    """The pieces; b"" where they lie in a file."""
    listing: str = ""
    """URL of that file."""
    version: str | None = None
    begin: int = 0
    """Where they begin in it."""
    by_run: bool = False
    """Whether pieces are runs of names, of a `RunListing`, and not entries."""
    skip: int = 0
    """With it: so many samples of the first run are in the shard before."""

    @property
    def label(self) -> str:
        """What messages call the task."""
        return self.output.rpartition("/")[2].partition("?")[0]

    def entries(self, read: Callable[[int, int], bytes]) -> Iterator[Packed]:
        """Give the entries.

        Args:
            read: reads (offset, length) of the file.
        """
        pieces = self._pieces(read)
        if not self.by_run:
            return pieces
        return islice(samples_of_packed(pieces, self.job.spec.key_prefix), self.skip, self.skip + self.samples)

    def _pieces(self, read: Callable[[int, int], bytes]) -> Iterator[Any]:
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
