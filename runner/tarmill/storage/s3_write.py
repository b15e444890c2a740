"""Outputs on S3: small ones in one request, larger ones in parts that go up while the output is filled.

Each part carries its CRC64NVME, which the server compares. An upload marks its object, so that after an answer that was
lost the object can be asked whose it is. Exclusive outputs are one request with `If-None-Match: *`, from a spool.
"""

from __future__ import annotations

import secrets
from typing import Any

from tarmill.errors import ChangedError, NotFoundError, StorageError
from tarmill.storage.base import Stat
from tarmill.storage.retry import Retrier
from tarmill.storage.s3_client import S3Client
from tarmill.storage.s3_options import MAX_PARTS
from tarmill.storage.s3_read import UPLOAD_MARK, S3Body, head
from tarmill.storage.s3_upload import PartsUpload
from tarmill.storage.spool import Spool
from tarmill.storage.uploads import RemoteWriteStream, exists_already
from tarmill.storage.urls import mask

_MAX_DAMAGED = 3
MOST_IN_ONE_REQUEST_BYTES = 5 << 30


class _S3Output(RemoteWriteStream):
    """What both kinds share: the mark, and the look at what was stored."""

    def __init__(self, client: S3Client, key: str, url: str, content_type: str | None) -> None:
        super().__init__(url, client.settings, content_type)
        self._client = client
        self._key = key
        self._mark = secrets.token_hex(8)

    def _stored_by_us(self) -> Stat | None:
        """Look at what is there now; None where it is not ours."""
        try:
            stat, mark = head(self._client, self._key, self.url, Retrier(self._settings, self._pause))
        except NotFoundError:
            return None
        return stat if mark == self._mark else None

    def _looked_at(self, etag: str) -> Stat:
        """Make sure that the store has what was sent, as far as `verify_uploads` goes.

        Args:
            etag: what the answer to the upload said, where it did.
        """
        if self._settings.verify_uploads == "none":
            return Stat(self.url, self.bytes_written, f"etag:{etag}" if etag else "", None)
        stat, mark = head(self._client, self._key, self.url, Retrier(self._settings, self._pause))
        self._must_be_what_was_sent(stat)
        if mark != self._mark and stat.version != f"etag:{etag}":
            shown = mask(self.url)
            raise StorageError(
                f"PUT {shown}: what is stored there now is from another upload; another writer works there",
                url=shown,
                retryable=True,
            )
        self._must_read_back(S3Body(self._client, self._key, self.url, version=stat.version or None))
        return stat

    def _attributes(self) -> dict[str, str]:
        return {"Content-Type": self._content_type, UPLOAD_MARK: self._mark}


class S3WriteStream(_S3Output):
    """An output that replaces what is there."""

    def __init__(self, client: S3Client, key: str, url: str, content_type: str | None) -> None:
        super().__init__(client, key, url, content_type)
        self._part_bytes = client.options.part_bytes
        self._held: list[bytes] = []
        self._upload: PartsUpload | None = None

    def _take(self, block: bytes) -> None:
        if self.bytes_written + len(block) > self._part_bytes * MAX_PARTS:
            raise StorageError(
                f"{mask(self.url)} is larger than {MAX_PARTS} parts of {self._part_bytes} bytes, which is all that S3 "
                "takes; give a larger --store-option s3.part_size",
                url=mask(self.url),
            )
        if self._upload is not None:
            self._upload.put(block)
            return
        self._held.append(block)
        if self.bytes_written + len(block) > self._part_bytes:
            first, self._held = b"".join(self._held), []
            self._upload = PartsUpload(self._client, self._key, self.url, self._attributes(), first, self._stop)

    def _commit(self) -> Stat:
        if self._upload is None:
            return self._put_whole(b"".join(self._held))
        try:
            self._upload.finish()
        except StorageError as error:
            # an answer that was lost may have been that of the completion
            if not error.facts.get("network") and error.facts.get("code") != "NoSuchUpload":
                raise
            if self._stored_by_us() is None:
                raise
        return self._looked_at("")

    def _put_whole(self, body: bytes) -> Stat:
        """Send it in one request, again where that helps."""
        import obstore

        retrier, damaged = Retrier(self._settings, self._pause), 0
        while True:
            try:
                answer: Any = self._client.ask(
                    "PUT",
                    self.url,
                    obstore.put,
                    self._client.putting,
                    self._key,
                    body,
                    attributes=self._attributes(),
                    use_multipart=False,
                )
                return self._looked_at(answer["e_tag"] or "")
            except StorageError as error:
                damaged += bool(error.facts.get("damaged"))
                if damaged >= _MAX_DAMAGED:
                    raise StorageError(
                        f"{error.message}; tried {damaged} times", **{**error.facts, "retryable": False}
                    ) from error
                retrier.failed(error)

    def _abort(self) -> None:
        self._held.clear()
        self._stop.set()
        if self._upload is not None:
            self._upload.stop()


class S3CreateStream(_S3Output):
    """An exclusive output: appears only where nothing is."""

    def __init__(self, client: S3Client, key: str, url: str, content_type: str | None) -> None:
        super().__init__(client, key, url, content_type)
        self._spool = Spool(client.settings.spool_memory_bytes, client.settings.scratch_dir)

    def _take(self, block: bytes) -> None:
        if self.bytes_written + len(block) > MOST_IN_ONE_REQUEST_BYTES:
            raise StorageError(
                f"{mask(self.url)} is to be created and larger than S3 takes in one request "
                f"({MOST_IN_ONE_REQUEST_BYTES} bytes); allow overwriting",
                url=mask(self.url),
            )
        self._spool.append(block)

    def _commit(self) -> Stat:
        try:
            self._create()
            return self._looked_at("")
        finally:
            self._spool.close()

    def _create(self) -> None:
        retrier, in_doubt = Retrier(self._settings, self._pause), False
        while True:
            try:
                with self._spool.reader() as body:
                    self._client.ask("PUT", self.url, self._client.botocore.put_object, Body=body, **self._request())
                return
            except ChangedError:  # 412: If-None-Match
                if in_doubt and self._stored_by_us() is not None:
                    return
                raise exists_already(self.url) from None
            except StorageError as error:
                in_doubt = True
                retrier.failed(error)

    def _request(self) -> dict[str, Any]:
        options = self._client.options.bucket_options
        named = {
            "ServerSideEncryption": options.get("server_side_encryption"),
            "SSEKMSKeyId": options.get("sse_kms_key_id"),
            "RequestPayer": "requester" if self._settings.requester_pays else None,
        }
        return {
            "Bucket": self._client.bucket,
            "Key": self._key,
            "IfNoneMatch": "*",
            "ContentLength": self.bytes_written,
            "ContentType": self._content_type,
            "Metadata": {UPLOAD_MARK: self._mark},
            **{name: value for name, value in named.items() if value is not None},
        }

    def _abort(self) -> None:
        self._stop.set()
        self._spool.close()


def open_output(
    client: S3Client, key: str, url: str, *, exclusive: bool, content_type: str | None
) -> S3WriteStream | S3CreateStream:
    """Begin an output of either kind."""
    kind = S3CreateStream if exclusive else S3WriteStream
    return kind(client, key, url, content_type)
