"""What stores do alike with an output that goes up as it was written: hash it, and look at what was stored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from xxhash import xxh3_128

from tarmill.errors import OutputExistsError, StorageError
from tarmill.storage.base import Bytes, Stat
from tarmill.storage.body import ResumingBody
from tarmill.storage.pending import UploadCancelled
from tarmill.storage.settings import StorageSettings
from tarmill.storage.upload_stream import UploadStream
from tarmill.storage.urls import mask

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class RemoteWriteStream(UploadStream):
    """An output that is kept or sent block by block; bytes objects without a copy.

    Keep one `commit_async` in flight for each task: two outputs are the bound of memory and scratch.
    """

    def __init__(self, url: str, settings: StorageSettings, content_type: str | None) -> None:
        super().__init__(url)
        self._settings = settings
        self._content_type = content_type or "application/octet-stream"
        self._hash = xxh3_128() if settings.verify_uploads == "hash" else None

    @abstractmethod
    def _take(self, block: bytes) -> None:
        """Keep or send a block."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Append all of `data`; bytes objects are kept without a copy."""
        self._must_be_open()
        block = data if type(data) is bytes else bytes(data)
        if self._hash is not None:
            self._hash.update(block)
        self._take(block)
        self.bytes_written += len(block)
        return len(block)

    def write_all(self, pieces: Iterable[Bytes], /) -> int:
        """Append many pieces, joined."""
        return self.write(b"".join(pieces))

    def _write(self, data: memoryview) -> None:
        raise AssertionError("write does it itself")

    def _must_be_what_was_sent(self, stat: Stat) -> None:
        """Compare the size of what is stored.

        Raises:
            StorageError: it differs; retryable where the server told a size.
        """
        sent, shown = self.bytes_written, mask(self.url)
        if stat.size_bytes != sent:
            found = "does not tell how many" if stat.size_bytes is None else f"has {stat.size_bytes}"
            raise StorageError(
                f"PUT {shown}: {sent} bytes were sent and accepted, the server {found}; either another writer works "
                "there, or the server is not to be trusted (verify_uploads=none stops asking)",
                url=shown,
                retryable=stat.size_bytes is not None,
                damaged=True,
            )

    def _must_read_back(self, body: ResumingBody) -> None:
        """Read what is stored and compare it with what was sent, where `verify_uploads` asks for that.

        Raises:
            StorageError: it differs (retryable).
        """
        if self._hash is None:
            return
        found = xxh3_128()
        try:
            body.open()
            while piece := body.read(256 << 10):
                if self._stop.is_set():
                    raise UploadCancelled
                found.update(piece)
        finally:
            body.close()
        if found.digest() != self._hash.digest():
            shown = mask(self.url)
            raise StorageError(
                f"PUT {shown}: what was read back is not what was sent ({found.hexdigest()} instead of "
                f"{self._hash.hexdigest()}); something between here and the server's disk changes bytes",
                url=shown,
                retryable=True,
                damaged=True,
            )


def exists_already(url: str) -> OutputExistsError:
    """Make the error of an exclusive output that is there already."""
    return OutputExistsError(
        f"{mask(url)} exists already and was to be created; remove it, or allow overwriting", url=mask(url)
    )
