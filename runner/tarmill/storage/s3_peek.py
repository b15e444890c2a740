"""A look whether a folder of a bucket has unfinished uploads at all, before botocore's client is loaded for them.

Every job asks at its end, and nearly always there are none; loading that client costs as much CPU as all else of a
small job, and urllib3 half as much. obstore has no such question, so it is one signed GET of our own. Whatever is not
a clear "none" is left to botocore.
"""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPSConnection
from urllib.parse import quote

from tarmill import __version__
from tarmill.storage.http_auth import Target, split_target
from tarmill.storage.http_proxy import proxy_for
from tarmill.storage.s3_client import S3Client
from tarmill.storage.s3_options import S3Options, host_of_bucket
from tarmill.storage.s3_sign import signed_headers

_MOST_BYTES = 1 << 16
_NO_QUOTES = "-_.~"


def may_have_uploads(client: S3Client, folder: str) -> bool:
    """Ask once whether there are unfinished uploads below a folder; True also where that stays unknown."""
    url = uploads_url(client.bucket, client.options, folder)
    try:
        status, body = _get(url, _headers(url, client), client)
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


def _headers(url: str, client: S3Client) -> dict[str, str]:
    keys = client.keys_now()
    if keys is None:
        return {}
    more = {"x-amz-request-payer": "requester"} if client.settings.requester_pays else {}
    return signed_headers("GET", url, more, keys, client.options.region, datetime.now(UTC))


def _get(url: str, headers: dict[str, str], client: S3Client) -> tuple[int, bytes]:
    target = split_target(url)
    if proxy_for(target):
        from tarmill.storage.http_client import send

        with closing(send("GET", target, client.settings, headers)) as response:
            return response.status, response.read(_MOST_BYTES)
    with closing(_connection(target, client)) as connection:
        connection.connect()
        connection.sock.settimeout(client.settings.read_timeout_s)
        path = "/" + url.partition("://")[2].partition("/")[2]
        connection.request("GET", path, headers={"user-agent": f"tarmill/{__version__}", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read(_MOST_BYTES)


def _connection(target: Target, client: S3Client) -> HTTPConnection:
    timeout_s = client.settings.connect_timeout_s
    if target.scheme == "http":
        return HTTPConnection(target.host, target.port, timeout=timeout_s)
    from ssl import create_default_context

    trust = create_default_context()
    if client.options.ca_path:
        trust.load_verify_locations(client.options.ca_path)
    return HTTPSConnection(target.host, target.port, timeout=timeout_s, context=trust)
