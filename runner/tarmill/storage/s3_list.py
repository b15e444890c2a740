"""What is in a bucket: objects page by page, and uploads that nobody finished. Both are asked by botocore.

(obstore refuses a whole listing for one key that it does not like, and knows no unfinished uploads.)
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from tarmill.errors import AccessError, NotFoundError, StorageError
from tarmill.storage.base import Stat
from tarmill.storage.log import log
from tarmill.storage.retry import Retrier, with_retries
from tarmill.storage.s3_client import S3Client
from tarmill.storage.s3_peek import may_have_uploads
from tarmill.storage.urls import mask

PAGE: dict[str, Any] = {}
"""What is asked of each page of objects; the server's own length by default."""


def list_objects(client: S3Client, prefix: str, start: str) -> list[Stat]:
    """List the objects whose keys begin with a prefix, sorted; keys that only mark a folder are left out.

    Args:
        client: of the bucket.
        prefix: of keys.
        start: what stands before the key in the URLs.
    """
    found = []
    for page in _pages(client, "list_objects_v2", start + prefix, Prefix=prefix, **PAGE, **_payer(client)):
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):
                version = f"etag:{item['ETag']}" if item.get("ETag") else ""
                found.append(Stat(start + item["Key"], item["Size"], version, item["LastModified"].timestamp()))
    found.sort(key=lambda stat: stat.url)  # S3's own order, unless it is a directory bucket
    return found


def _payer(client: S3Client) -> dict[str, str]:
    return {"RequestPayer": "requester"} if client.settings.requester_pays else {}


def _pages(client: S3Client, operation: str, url: str, **request: Any) -> Iterator[dict[str, Any]]:
    """Ask for page after page, each again where that helps."""
    ask = getattr(client.botocore, operation)

    def ask_for_page() -> dict[str, Any]:
        found: dict[str, Any] = client.ask("LIST", url, ask, Bucket=client.bucket, **request)
        if "IsTruncated" not in found:  # botocore takes an answer that broke off before its first byte for an empty one
            raise StorageError(
                f"LIST {mask(url)}: the answer of {client.options.place} does not say whether it is complete",
                url=mask(url),
                retryable=True,
                network=True,
            )
        return found

    while True:
        page = with_retries(ask_for_page, Retrier(client.settings))
        yield page
        if not page["IsTruncated"]:
            return
        following = _following(page, _MARKERS[operation])
        if not following or following.items() <= request.items():
            raise StorageError(
                f"LIST {mask(url)}: {client.options.place} says that there is more, but not from where on",
                url=mask(url),
            )
        request.update(following)


_MARKERS = {
    "list_objects_v2": {"ContinuationToken": "NextContinuationToken"},
    "list_multipart_uploads": {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"},
}


def _following(page: dict[str, Any], markers: dict[str, str]) -> dict[str, str]:
    """Say what to ask for the next page with (pure)."""
    return {name: page[source] for name, source in markers.items() if page.get(source)}


def sweep_uploads(client: S3Client, folder: str, start: str, owner: str, outputs: Container[str]) -> int:
    """Abort the unfinished uploads below a folder that can only be of one owner; how many that were.

    An upload has no owner of its own. Its key tells: it is an output of the owner, or in a folder named after it.

    Args:
        client: of the bucket.
        folder: key of the folder, "/" at its end, or "".
        start: what stands before the key in URLs.
        owner: a job id.
        outputs: URLs that the owner alone writes.
    """
    if not may_have_uploads(client, folder):
        return 0
    marks = (f"/_tarmill/{owner}/", f"/tarmill-{owner}/")
    count = 0
    try:
        for page in _pages(client, "list_multipart_uploads", start + folder, Prefix=folder, **_payer(client)):
            for upload in page.get("Uploads", ()):
                url = start + upload["Key"]
                if url in outputs or any(mark in url for mark in marks):
                    count += _abort(client, url, upload["Key"], upload["UploadId"])
    except NotFoundError:
        return count  # no such bucket
    except AccessError as error:
        log().info("unfinished uploads are left to the bucket's lifecycle rule: %s", error)
    except StorageError as error:
        if error.facts.get("status") not in (400, 405, 501):
            raise
        log().info("unfinished uploads cannot be listed at this store: %s", error)
    return count


def _abort(client: S3Client, url: str, key: str, upload_id: str) -> bool:
    def ask() -> None:
        client.ask(
            "DELETE",
            url,
            client.botocore.abort_multipart_upload,
            Bucket=client.bucket,
            Key=key,
            UploadId=upload_id,
            **_payer(client),
        )

    try:
        with_retries(ask, Retrier(client.settings))
    except StorageError as error:
        if isinstance(error, NotFoundError) or error.facts.get("code") == "NoSuchUpload":
            return False
        raise
    log().info("removed the parts of an unfinished upload of %s", mask(url))
    return True
