"""What is in a bucket: objects page by page, and uploads that nobody finished. Both are asked by botocore.

(obstore refuses a whole listing for one key that it does not like, and knows no unfinished uploads.)
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator
from typing import Any

from tarmill.errors import AccessError, NotFoundError, StorageError
from tarmill.storage.base import Stat
from tarmill.storage.retry import Retrier, with_retries
from tarmill.storage.s3_client import S3Client
from tarmill.storage.s3_peek import may_have_uploads
from tarmill.storage.urls import mask

_log = logging.getLogger("tarmill.storage")


def list_objects(client: S3Client, prefix: str, start: str) -> list[Stat]:
    """List the objects whose keys begin with a prefix, sorted; keys that only mark a folder are left out.

    Args:
        client: of the bucket.
        prefix: of keys.
        start: what stands before the key in the URLs.
    """
    found = []
    payer = {"RequestPayer": "requester"} if client.settings.requester_pays else {}
    for page in _pages(client, "list_objects_v2", start + prefix, Prefix=prefix, **payer):
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):
                version = f"etag:{item['ETag']}" if item.get("ETag") else ""
                found.append(Stat(start + item["Key"], item["Size"], version, item["LastModified"].timestamp()))
    found.sort(key=lambda stat: stat.url)  # S3's own order, unless it is a directory bucket
    return found


def _pages(client: S3Client, operation: str, url: str, **request: Any) -> Iterator[dict[str, Any]]:
    """Ask for page after page, each again where that helps."""
    ask = getattr(client.botocore, operation)
    while True:
        page = with_retries(
            lambda: client.ask("LIST", url, ask, Bucket=client.bucket, **request), Retrier(client.settings)
        )
        yield page
        if not page.get("IsTruncated"):
            return
        if operation == "list_objects_v2":
            request["ContinuationToken"] = page["NextContinuationToken"]
        else:
            request["KeyMarker"] = page["NextKeyMarker"]
            request["UploadIdMarker"] = page.get("NextUploadIdMarker", "")


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
        for page in _pages(client, "list_multipart_uploads", start + folder, Prefix=folder):
            for upload in page.get("Uploads", ()):
                url = start + upload["Key"]
                if url in outputs or any(mark in url for mark in marks):
                    count += _abort(client, url, upload["Key"], upload["UploadId"])
    except NotFoundError:
        return count  # no such bucket
    except AccessError as error:
        _log.info("unfinished uploads are left to the bucket's lifecycle rule: %s", error)
    except StorageError as error:
        if error.facts.get("status") not in (400, 405, 501):
            raise
        _log.info("unfinished uploads cannot be listed at this store: %s", error)
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
        )

    try:
        with_retries(ask, Retrier(client.settings))
    except StorageError as error:
        if isinstance(error, NotFoundError) or error.facts.get("code") == "NoSuchUpload":
            return False
        raise
    _log.info("removed the parts of an unfinished upload of %s", mask(url))
    return True
