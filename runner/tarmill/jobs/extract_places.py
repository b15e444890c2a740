"""Where one shard's rows go: into a file of their own, or by a spool to the driver, which prints them in order."""

from __future__ import annotations

from typing import Any

from tarmill import storage
from tarmill.engine.meter import Meter
from tarmill.errors import SpecError, UsageError
from tarmill.formats.compression import compress
from tarmill.planning.extract_tasks import ExtractTask

_CODECS = {"gz": "gz", "bz2": "bz2", "xz": "xz", "zst": "zst"}
_UNKNOWN_CODECS = frozenset({"lz4", "br", "zip", "z", "7z", "lzma", "sz", "snappy"})


def row_codec(url: str) -> str:
    """Tell how a file of rows is compressed, by its name: "gz", "bz2", "xz", "zst" or "none".

    Raises:
        SpecError: the extension names a compression that cannot be written.
    """
    extension = url.rsplit("/", 1)[-1].rpartition(".")[2].lower()
    if extension in _UNKNOWN_CODECS:
        raise SpecError(
            f"the extension .{extension} of output {storage.mask(url)!r} names a compression that is not written here; "
            "expected .gz, .zst, .xz, .bz2 or none",
            field="output",
            value=storage.mask(url),
        )
    return _CODECS.get(extension, "none")


class ShardPart:
    """A shard's own output: compressed as its name says, committed whole."""

    def __init__(self, url: str, owner: str, meter: Meter) -> None:
        self._stream = storage.open_write(url, owner=owner)
        self._meter = meter
        self._packer = compress(self._stream, row_codec(url))

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._packer.write(data)
        self._meter.written_bytes = self._stream.bytes_written

    def commit(self) -> tuple[bytes, str]:
        """Give what goes to the driver: the bytes themselves, or the URL of the file that holds them."""
        self._packer.finish()
        self._stream.commit()
        self._meter.written_bytes = self._stream.bytes_written
        return b"", self._stream.url

    def __enter__(self) -> ShardPart:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stream.abort()  # nothing happens after a commit


class RowSpool:
    """Rows on their way to the driver: in memory while they are few, then in a file of the spool folder."""

    def __init__(self, task: ExtractTask, meter: Meter) -> None:
        self._task = task
        self._meter = meter
        self._blocks: list[bytes] = []
        self._size = 0
        self._stream: storage.WriteStream | None = None

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._meter.written_bytes += len(data)
        if self._stream is not None:
            self._stream.write(data)
            return
        self._blocks.append(data)
        self._size += len(data)
        if self._size > self._task.inline_bytes:
            if not self._task.spool:
                limit = f"{self._task.inline_bytes >> 20} MiB"
                raise UsageError(
                    f"{self._task.label} gives more than {limit}, which is not sent through a scheduler; name an "
                    "output that all workers reach, as in -o rows.txt, or a folder that they share with --scratch-dir"
                )
            url = f"{self._task.spool}rows-{self._task.index:07d}"
            self._stream = storage.open_write(url, owner=self._task.job)
            self._stream.write_all(self._blocks)
            self._blocks.clear()

    def commit(self) -> tuple[bytes, str]:
        """Give what goes to the driver: the bytes themselves, or the URL of the file that holds them."""
        if self._stream is None:
            return b"".join(self._blocks), ""
        self._stream.commit()
        return b"", self._stream.url

    def __enter__(self) -> RowSpool:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._stream is not None:
            self._stream.abort()  # nothing happens after a commit
