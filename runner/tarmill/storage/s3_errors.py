"""What went wrong at S3, as StorageError: which can get better by waiting, which need a person, and what to do.

obstore and botocore fail in their own words; both are read into one `Failure`, which is told in ours.
"""

from __future__ import annotations

import html
import re
from typing import Any

from tarmill.errors import AccessError, ChangedError, NoSpaceError, NotFoundError, StorageError
from tarmill.storage.answers import shorten
from tarmill.storage.retry import RETRIED_STATUSES
from tarmill.storage.urls import mask
from tarmill.values import valueclass

_STATUS = r"status code: (\d{3}) ?([^:\n]*):? ?(.*)"
_IN_ANSWER = r"[Ee]rror response: (.*)"
_REDIRECT = "redirect without LOCATION"
_RETRIES = r"after (\d+) retries"
_LOST = ("Name or service not known", "No address associated", "nodename nor servname")
_UNTRUSTED = r"invalid peer certificate: ?(?:Other\()?(\w+)|InvalidCertificate\(\s*(\w+)|(UnknownIssuer)"
_NO_TLS = ("InvalidContentType", "CorruptMessage")
_REASONS = {
    "ConnectionRefused": "no connection (Connection refused)",
    "ConnectionReset": "the connection was reset",
    "IncompleteBody": "the body ended too early",
    "TimedOut": "no answer in time",
    "kind: Timeout": "no answer in time",
    "IncompleteMessage": "the connection was closed before the answer was complete",
}
WRONG_KEYS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "AuthFailure"})
EXPIRED = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "ExpiredTokenException", "RequestExpired"})
_WRONG_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
DAMAGED = frozenset({
    "BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "InvalidDigest", "IncompleteBody",
})  # fmt: skip
_PASSING = frozenset({
    "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "InternalError",
    "ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict", "NoSuchUpload", "Busy", *DAMAGED,
})  # fmt: skip
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity", "NoSpaceLeft"})


@valueclass
class Failure:
    """A failed request, whoever made it.

    Attributes:
        status: of the answer; None when there was none.
        code: S3's own word for it; "" where the answer has no body, as to HEAD.
        text: what the server or the network says.
        tries: how often the library has tried.
        retry_after_s: what the server asks for.
        region: where the bucket is, when the server says so.
    """

    status: int | None
    code: str
    text: str
    tries: int = 1
    retry_after_s: float | None = None
    region: str = ""


def read_failure(error: BaseException) -> Failure:
    """Read an exception of obstore (pure)."""
    whole = str(error)
    text = whole.partition("\n\nDebug source")[0].strip().removeprefix("Generic S3 error: ")
    tried = re.search(_RETRIES, text)
    tries = int(tried[1]) + 1 if tried else 1
    if match := re.search(_STATUS, text, re.DOTALL):
        return _of_answer(int(match[1]), match[2].strip(), match[3], tries)
    if _REDIRECT in text:
        return Failure(301, "PermanentRedirect", "")
    if match := re.search(_IN_ANSWER, text, re.DOTALL):
        return _of_answer(200, "", match[1], tries)
    return Failure(None, "", _network_reason(whole, text), tries)


def _of_answer(status: int, reason: str, body: str, tries: int) -> Failure:
    code = re.search(r"<Code>([^<]*)</Code>", body)
    told = re.search(r"<Message>([^<]*)</Message>", body)
    region = re.search(r"<Region>([^<]*)</Region>|expecting '([a-z0-9-]+)'", html.unescape(body))
    return Failure(
        status,
        code[1].strip() if code else "",
        shorten(told[1] if told else body) or reason,
        tries,
        region=(region[1] or region[2]) if region else "",
    )


def _network_reason(whole: str, text: str) -> str:
    if any(word in whole for word in _LOST):
        return "the host name cannot be resolved"
    if match := re.search(_UNTRUSTED, whole):
        return f"the server's certificate is not trusted ({next(filter(None, match.groups()))})"
    if any(word in whole for word in _NO_TLS):
        return "the server does not speak TLS on this port; is it an http:// endpoint?"
    for word, reason in _REASONS.items():
        if word in whole:
            return reason
    return shorten(text)


def read_botocore_failure(error: Exception) -> Failure:
    """Read an exception of botocore (pure)."""
    response: dict[str, Any] | None = getattr(error, "response", None)
    if not isinstance(response, dict):
        text = " ".join(str(error).split())
        return Failure(None, "", _network_reason(text, text))
    told, facts = response.get("Error", {}), response.get("ResponseMetadata", {})
    after = str(facts.get("HTTPHeaders", {}).get("retry-after", ""))
    code = str(told.get("Code", ""))
    return Failure(
        facts.get("HTTPStatusCode"),
        "" if code.isdigit() else code,
        shorten(str(told.get("Message", ""))),
        retry_after_s=float(after) if after.isascii() and after.isdigit() else None,
        region=str(facts.get("HTTPHeaders", {}).get("x-amz-bucket-region", "")),
    )


def storage_error(failure: Failure, method: str, url: str, place: str, region: str = "") -> StorageError:
    """Tell a failure, with the cure where one is known (pure).

    Args:
        failure: what happened.
        method: GET, HEAD, PUT, LIST, DELETE.
        url: of the object.
        place: the server, for messages.
        region: what was signed for.
    """
    shown = mask(url)
    status, code = failure.status, failure.code
    facts: dict[str, Any] = {"url": shown, "status": status, "code": code}
    if status is None:
        return _network_error(failure, method, shown, place)
    bucket = shown.partition("://")[2].partition("/")[0]
    said = f"{status} {code}".strip() + (f" ({failure.text})" if failure.text else "")
    message = f"{method} {shown}: {said}"
    if code == "NoSuchBucket":
        return NotFoundError(
            f"{shown}: there is no bucket {bucket!r} at {place}; check its name and --s3-endpoint", **facts
        )
    if code in _WRONG_REGION or status in (301, 307):
        there = f"the bucket is in {failure.region}, and " if failure.region else ""
        cure = f"give AWS_REGION={failure.region or 'REGION'} or --store-option s3.region={failure.region or 'REGION'}"
        return StorageError(f"{message}: {there}requests are signed for {region}; {cure}", **facts)
    if code in EXPIRED:
        return AccessError(f"{message}: the credentials have expired; log in again", **facts)
    if code in WRONG_KEYS:
        return AccessError(f"{message}: {place} does not take the credentials; check key, secret and endpoint", **facts)
    if code == "RequestTimeTooSkewed":
        return AccessError(f"{message}: this machine's clock is wrong", **facts)
    if status in (404, 410) and code != "NoSuchUpload":
        return NotFoundError(f"{shown} does not exist at {place}", **facts)
    if status == 412:
        return ChangedError(message, **facts)
    if status == 507 or code in _FULL:
        return NoSpaceError(message, **facts)
    if status in (401, 403):
        return AccessError(f"{message}; {_refusal(method)}", **facts)
    retryable = code in _PASSING or status in RETRIED_STATUSES
    if status in RETRIED_STATUSES and failure.tries > 1:  # the library has used up the budget
        message += f"; gave up after {failure.tries} tries"
        retryable = False
    return StorageError(
        message, retryable=retryable, retry_after_s=failure.retry_after_s, damaged=code in DAMAGED, **facts
    )


def _refusal(method: str) -> str:
    if method in ("PUT", "DELETE"):
        what = "write" if method == "PUT" else "delete"
        return f"these credentials may not {what} there; is the bucket read-only for them?"
    if method == "LIST":
        return "these credentials may not list there (s3:ListBucket)"
    return (
        "these credentials may not read it, or it is not there and they may not list (s3:GetObject, s3:ListBucket); "
        "a public bucket needs --anon, one whose reader pays --requester-pays"
    )


def _network_error(failure: Failure, method: str, shown: str, place: str) -> StorageError:
    text, retryable = failure.text, True
    if "certificate" in text:
        text, retryable = f"{text}; name its authority with --ca-file", False
    elif "resolved" in text or "speak TLS" in text:
        retryable = False
    elif failure.tries > 1:
        text, retryable = f"{text}; gave up after {failure.tries} tries", False
    return StorageError(f"{method} {shown}: {place}: {text}", url=shown, retryable=retryable, network=True)
