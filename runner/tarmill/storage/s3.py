"""Amazon S3 and what speaks like it (MinIO, Ceph, SeaweedFS, R2, ...): `s3://bucket/key`, the key as it is, not quoted.

Bytes go through obstore, credentials come from botocore's chain (`s3_credentials`), options from `s3_options`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import suppress

from tarmill.errors import NotFoundError
from tarmill.storage.base import Capabilities, Stat
from tarmill.storage.remote import RemoteStore
from tarmill.storage.retry import Retrier, with_retries
from tarmill.storage.s3_client import S3Client, client_for
from tarmill.storage.s3_list import list_objects, sweep_uploads
from tarmill.storage.s3_options import split_object, split_url
from tarmill.storage.s3_read import S3Body, head
from tarmill.storage.s3_write import S3CreateStream, S3WriteStream, open_output
from tarmill.storage.settings import StorageSettings, current_settings


class S3Store(RemoteStore):
    """s3:// URLs; s3a:// is Hadoop's name for the same."""

    schemes = ("s3", "s3a")
    capabilities = Capabilities()

    def stat(self, url: str) -> Stat:
        """Look at one object by HEAD."""
        return head(*_object(url), url)[0]

    def _body(
        self, url: str, settings: StorageSettings, start: int = 0, end: int | None = None, version: str | None = None
    ) -> S3Body:
        client, key = _object(url, settings)
        return S3Body(client, key, url, start, end, version)

    def open_write(
        self, url: str, *, owner: str = "", exclusive: bool = False, content_type: str | None = None
    ) -> S3WriteStream | S3CreateStream:
        """Begin an object; nothing is asked of the store before there is more than one part, or the commit."""
        client, key = _object(url)
        return open_output(client, key, url, exclusive=exclusive, content_type=content_type)

    def list(self, prefix_url: str) -> Iterator[Stat]:
        """List by prefix, page by page; versions are known."""
        bucket, prefix = split_url(prefix_url)
        start = f"{prefix_url.partition('://')[0]}://{bucket}/"
        return iter(list_objects(client_for(bucket, current_settings(), prefix_url), prefix, start))

    def delete(self, url: str) -> None:
        """Remove an object; a missing one is fine."""
        import obstore

        client, key = _object(url)
        with suppress(NotFoundError):
            with_retries(
                lambda: client.ask("DELETE", url, obstore.delete, client.asking, key), Retrier(current_settings())
            )

    def sweep(self, folder_url: str, owner: str, outputs: Container[str] = ()) -> int:
        """Abort the multipart uploads that killed processes of `owner` left below this folder."""
        bucket, folder = split_url(folder_url)
        client = client_for(bucket, current_settings(), folder_url)
        start = f"{folder_url.partition('://')[0]}://{bucket}/"
        return sweep_uploads(client, folder, start, owner, outputs)


def _object(url: str, settings: StorageSettings | None = None) -> tuple[S3Client, str]:
    bucket, key = split_object(url)
    return client_for(bucket, settings or current_settings(), url), key
