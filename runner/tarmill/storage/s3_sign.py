"""The signature of a request without a body, for the one that neither obstore nor, cheaply, botocore can make for us.

botocore makes the same (a test holds the two against each other), but its import costs more CPU than a small job.
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import urlsplit

from tarmill.storage.s3_credentials import Keys

_NO_BODY = hashlib.sha256().hexdigest()
_PORTS = {"http": ":80", "https": ":443"}


def signed_headers(
    method: str, url: str, headers: Mapping[str, str], keys: Keys, region: str, now: datetime
) -> dict[str, str]:
    """Give the headers of a request, those that sign it among them (pure).

    Args:
        method: GET, ...
        url: path and query quoted, the query sorted by names.
        headers: further ones, in lower case, which are signed too.
        keys: to sign with.
        region: of the bucket.
        now: in UTC.
    """
    parts = urlsplit(url)
    host = parts.netloc.lower().removesuffix(_PORTS[parts.scheme])
    time = now.strftime("%Y%m%dT%H%M%SZ")
    sent = {**headers, "host": host, "x-amz-content-sha256": _NO_BODY, "x-amz-date": time}
    if keys.token:
        sent["x-amz-security-token"] = keys.token
    names = ";".join(sorted(sent))
    lines = "".join(f"{name}:{sent[name]}\n" for name in sorted(sent))
    request = "\n".join([method, parts.path, parts.query, lines, names, _NO_BODY])
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", time, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{keys.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"Credential={keys.access_key}/{scope}"
    sent["authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
    return sent
