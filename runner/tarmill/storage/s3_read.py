"""The body of one version of one object on S3, read on across broken connections. Versions are ETags."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tarmill.errors import ChangedError, StorageError
from tarmill.storage.base import Stat
from tarmill.storage.body import ResumingBody
from tarmill.storage.readahead import PIECE_BYTES
from tarmill.storage.retry import Retrier, with_retries
from tarmill.storage.s3_client import S3Client, call_interruptibly
from tarmill.storage.urls import mask

UPLOAD_MARK = "tarmill-upload"
"""Metadata that tells whose upload an object is, where an answer was lost."""


def stat_of(url: str, meta: Any) -> Stat:
    """Make a stat of what obstore tells of an object (pure)."""
    etag = meta["e_tag"] or ""
    return Stat(url, meta["size"], f"etag:{etag}" if etag else "", meta["last_modified"].timestamp())


def head(client: S3Client, key: str, url: str, retrier: Retrier | None = None) -> tuple[Stat, str]:
    """Look at an object: its stat, and the mark of the upload that made it."""
    import obstore

    def ask() -> tuple[Stat, str]:
        found = client.ask("HEAD", url, obstore.get, client.asking, key, options={"head": True})
        return stat_of(url, found.meta), str(found.attributes.get(UPLOAD_MARK, ""))

    return with_retries(ask, retrier or Retrier(client.settings))


class S3Body(ResumingBody):
    """The bytes [start, end) of an object; see `ResumingBody`. Pieces are views of obstore's memory, not copies."""

    _pieces: Iterator[Any] | None = None
    _rest: memoryview = memoryview(b"")

    def __init__(
        self, client: S3Client, key: str, url: str, start: int = 0, end: int | None = None, version: str | None = None
    ) -> None:
        super().__init__(url, client.settings, start, end, version)
        self._client = client
        self._key = key

    @property
    def _connected(self) -> bool:
        return self._pieces is not None

    def _connect(self) -> None:
        import obstore

        options: dict[str, Any] = {}
        if self._version:
            options["if_match"] = self._version.removeprefix("etag:")
        if self._end is not None:
            options["range"] = (self._offset, self._end)
        elif self._offset:
            options["range"] = {"offset": self._offset}
        if self._offset and self._stat is not None and not self._stat.version:
            raise StorageError(
                f"GET {mask(self._url)}: the connection broke at byte {self._offset}, and reading cannot go on there: "
                "the server gives no ETag, so the rest might be of another version",
                url=mask(self._url),
            )
        if self._end is not None and self._end <= self._offset:
            options.pop("range")  # an empty object has no ranges
        try:
            found = self._client.ask("GET", self._url, obstore.get, self._client.asking, self._key, options=options)
        except ChangedError:
            self._changed("another version")
        except StorageError as error:
            if error.facts.get("status") == 416:
                self._past_the_end()
            raise
        self._agree(stat_of(self._url, found.meta))
        if found.range[0] != self._offset:
            raise StorageError(
                f"GET {mask(self._url)}: bytes from {self._offset} were asked for, the server sent those from "
                f"{found.range[0]}",
                url=mask(self._url),
            )
        self._pieces = iter(found.stream(min_chunk_size=min(self._step, PIECE_BYTES)))

    def _past_the_end(self) -> None:
        """Say how long the object is, when it is shorter than where reading was to begin."""
        stat, _ = head(self._client, self._key, self._url)
        self._agree(stat)  # of a version that was pinned, or of a stat that is known: it has changed
        shown = mask(self._url)
        raise StorageError(f"{shown} has {stat.size_bytes} bytes; a range from {self._offset} was asked for", url=shown)

    def _read_some(self, amount: int) -> bytes | memoryview:
        assert self._pieces is not None
        if not self._rest:
            pieces = self._pieces
            try:
                self._rest = memoryview(call_interruptibly(lambda: next(pieces)))
            except StopIteration:
                return b""
            except Exception as error:
                raise self._client.meaning(error, "GET", self._url) from error
        piece, self._rest = self._rest[:amount], self._rest[amount:]
        return piece

    def _drop(self) -> None:
        self._pieces = None
        self._rest = memoryview(b"")

    def _hang_up(self) -> None:
        """Nothing can wake obstore; the read ends by its own time limit, and the stream does not wait for that."""
