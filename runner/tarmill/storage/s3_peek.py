"""A look whether a folder of a bucket has unfinished uploads at all, before botocore's client is loaded for them.

Every job asks at its end, and nearly always there are none; loading that client costs as much CPU as all else of a
small job. obstore has no such question, so it is one signed GET of our own. Whatever is not a clear "none" is left to
botocore.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tarmill.storage.s3_client import S3Client
from tarmill.storage.s3_credentials import Keys
from tarmill.storage.s3_options import S3Options, host_of_bucket

_MOST_BYTES = 1 << 16
_NO_QUOTES = "-_.~"


def may_have_uploads(client: S3Client, folder: str) -> bool:
    """Ask once whether there are unfinished uploads below a folder; True also where that stays unknown."""
    url = uploads_url(client.bucket, client.options, folder)
    try:
        keys = client.keys_now()
        pays = client.settings.requester_pays
        status, body = _get(url, _signed(url, keys, client.options.region, pays) if keys else {}, client)
    except Exception:  # of credentials, of the network, of TLS: botocore meets it again, and tells it
        return True
    return status != 200 or says_uploads(body)


def says_uploads(body: bytes) -> bool:
    """Tell whether the answer has uploads, or is none to that question (pure)."""
    is_answer = b"<ListMultipartUploadsResult" in body and b"</ListMultipartUploadsResult>" in body
    return not is_answer or b"<Upload>" in body or b"<IsTruncated>true" in body


def uploads_url(bucket: str, options: S3Options, folder: str) -> str:
    """Give the URL of the question, quoted and sorted as signatures want it (pure)."""
    endpoint = options.endpoint or f"https://s3.{options.region}.amazonaws.com"
    base = f"{host_of_bucket(endpoint, bucket)}/" if options.virtual_hosted else f"{endpoint}/{bucket}"
    return f"{base}?max-uploads=1&prefix={quote(folder, safe=_NO_QUOTES)}&uploads="


def _signed(url: str, keys: Keys, region: str, pays: bool) -> dict[str, str]:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest

    request: Any = AWSRequest("GET", url, {"x-amz-request-payer": "requester"} if pays else {})
    S3SigV4Auth(keys, "s3", region).add_auth(request)
    return dict(request.headers.items())


def _get(url: str, headers: dict[str, str], client: S3Client) -> tuple[int, bytes]:
    from tarmill.storage.http_auth import split_target
    from tarmill.storage.http_client import send

    response = send("GET", split_target(url), client.settings, headers)
    try:
        return response.status, response.read(_MOST_BYTES)
    finally:
        response.close()
