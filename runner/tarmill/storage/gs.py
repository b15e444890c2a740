"""Google Cloud Storage, by gcsfs: `gs://BUCKET/NAME`, or `gcs://`.

Credentials: those of the environment (GOOGLE_APPLICATION_CREDENTIALS, gcloud's login, workload identity); none with
`StorageSettings.anonymous`, and none for an emulator that STORAGE_EMULATOR_HOST names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from tarmill.errors import NotFoundError, SpecError
from tarmill.storage.base import Capabilities, Stat
from tarmill.storage.gs_connect import client_for
from tarmill.storage.gs_names import bucket_path, object_path, resource_stat, split_url
from tarmill.storage.gs_read import GsBody, stat_once
from tarmill.storage.gs_write import CHUNK_BYTES, CHUNK_UNIT_BYTES, GsWriteStream
from tarmill.storage.remote import RemoteStore
from tarmill.storage.retry import Retrier, with_retries
from tarmill.storage.settings import StorageSettings, current_settings
from tarmill.storage.urls import mask

_PAGE_ROWS = "1000"
_LIST_FIELDS = "nextPageToken,items(name,size,generation,updated)"


class GsStore(RemoteStore):
    """gs:// and gcs:// URLs."""

    schemes = ("gs", "gcs")
    capabilities = Capabilities()

    def stat(self, url: str) -> Stat:
        """Look at one object."""
        split_url(url)
        settings = current_settings()
        client = client_for(settings, url)
        return with_retries(lambda: stat_once(client, url)[0], Retrier(settings))

    def _body(
        self, url: str, settings: StorageSettings, start: int = 0, end: int | None = None, version: str | None = None
    ) -> GsBody:
        split_url(url)
        return GsBody(client_for(settings, url), url, settings, start, end, version)

    def open_write(
        self, url: str, *, owner: str = "", exclusive: bool = False, content_type: str | None = None
    ) -> GsWriteStream:
        """Begin an object whose chunks go up while it is filled."""
        split_url(url)
        if url.endswith("/"):
            raise SpecError(
                f"{mask(url)!r} names a folder; expected an object's name at its end", field="url", value=mask(url)
            )
        settings = current_settings()
        client = client_for(settings, url)
        return GsWriteStream(client, url, settings, exclusive, content_type, _chunk_bytes(client.block_size))

    def list(self, prefix_url: str) -> Iterator[Stat]:
        """List page by page, in the server's order, which is that of names. Markers of folders are left out."""
        bucket, prefix = split_url(prefix_url, whole_bucket=True)
        start = prefix_url[: len(prefix_url) - len(prefix)] if prefix else prefix_url.rstrip("/") + "/"
        settings = current_settings()
        client = client_for(settings, prefix_url)
        params = {"maxResults": _PAGE_ROWS, "fields": _LIST_FIELDS}
        if prefix:
            params["prefix"] = prefix
        token: str | None = ""
        while token is not None:
            if token:
                params["pageToken"] = token
            try:
                _, _, page = with_retries(
                    lambda: client.call("GET", bucket_path(bucket), prefix_url, "listing", params=params),
                    Retrier(settings),
                )
            except NotFoundError as error:
                raise NotFoundError(
                    f"listing {mask(prefix_url)}: there is no bucket {bucket!r}; make it, or mend its name",
                    **error.facts,
                ) from error
            for item in page.get("items", ()):
                if not item["name"].endswith("/"):
                    yield resource_stat(start + item["name"], item)
            token = page.get("nextPageToken")

    def delete(self, url: str) -> None:
        """Remove an object; a missing one is fine."""
        path = object_path(*split_url(url))
        settings = current_settings()
        client = client_for(settings, url)
        with suppress(NotFoundError):
            with_retries(lambda: client.call("DELETE", path, url, "removing"), Retrier(settings))


def _chunk_bytes(text: str | None) -> int:
    if text is None:
        return CHUNK_BYTES
    if not (text.isascii() and text.isdigit() and int(text)) or int(text) % CHUNK_UNIT_BYTES:
        raise SpecError(
            f"store option gs.block_size is {text!r}; expected bytes, a multiple of {CHUNK_UNIT_BYTES} (256 KiB)",
            field="store_option",
            value=text,
        )
    return int(text)
