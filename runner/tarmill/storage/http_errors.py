"""What went wrong on the web, as StorageError: which can get better by waiting, which need a person, and what to do."""

from __future__ import annotations

import socket
from typing import NoReturn

from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.response import BaseHTTPResponse

from tarmill.errors import AccessError, ChangedError, NoSpaceError, NotFoundError, SpecError, StorageError
from tarmill.storage.answers import shorten
from tarmill.storage.http_auth import scrub
from tarmill.storage.retry import RETRIED_STATUSES, retry_after_s
from tarmill.storage.urls import mask


def raise_network_error(error: Exception, method: str, url: str) -> NoReturn:
    """Tell a failure below HTTP as a StorageError, retryable unless it cannot get better by waiting."""
    shown = mask(url)
    retryable = True
    reason = mask(str(error))
    cause = error.__cause__ or error
    if isinstance(error, LocationParseError):
        raise SpecError(f"{shown!r} is no URL that can be used", field="url", value=shown) from error
    if isinstance(error, ProxyError):
        retryable = " 407" not in str(error.original_error)
        reason = f"the proxy failed: {mask(str(error.original_error))}; see HTTP_PROXY, HTTPS_PROXY, NO_PROXY"
    elif isinstance(error, NameResolutionError):
        retryable = getattr(cause, "errno", None) not in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", -5))
        reason = f"the host name cannot be resolved ({cause})"
    elif isinstance(error, NewConnectionError):
        reason = f"no connection ({getattr(cause, 'strerror', None) or cause})"
    elif isinstance(error, ConnectTimeoutError):
        reason = "no connection in time"
    elif isinstance(error, ReadTimeoutError):
        reason = "no answer in time"
    elif isinstance(error, SSLError):
        retryable, reason = _tls_reason(str(error))
    raise StorageError(f"{method} {shown}: {reason}", url=shown, retryable=retryable, network=True) from error


def _tls_reason(text: str) -> tuple[bool, str]:
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return False, f"the server's certificate is not trusted ({text}); name its authority with --ca-file"
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return False, f"the server does not speak TLS on this port ({text}); is it an http:// URL?"
    return True, f"TLS failed ({text})"


_CURES = {
    401: "give credentials by TARMILL_HTTP_TOKEN, TARMILL_HTTP_USER and _PASSWORD, netrc, or in the URL",
    403: "the server knows us, or does not care, and refuses; check its permissions and the credentials",
    407: "the proxy wants credentials: HTTP_PROXY=http://user:password@host:port",
    413: "the body is larger than the server takes; for nginx raise client_max_body_size",
    414: "the URL is too long for the server",
}
_PUT_CURES = {
    403: "this server does not let us write there; check its permissions and the credentials",
    405: "this server does not allow {method} here; for nginx set `dav_methods PUT DELETE;` (WebDAV module)",
    409: "the folder does not exist or the name is that of a folder; for nginx set `create_full_put_path on;`",
    501: "this server does not know {method}; for nginx set `dav_methods PUT DELETE;` (WebDAV module)",
}


def status_error(method: str, url: str, response: BaseHTTPResponse, credential: str | None) -> StorageError:
    """Tell an answer that is a failure as the error it means, with the cure where one is known; reads and closes it."""
    status = response.status
    try:
        text = response.read(8192).decode("utf-8", "replace") if method != "HEAD" else ""
    except (HTTPError, OSError):
        text = ""
    response.close()
    shown = mask(url)
    told = shorten(scrub(text, credential))
    message = f"{method} {shown}: the server answered {status} {response.reason or ''}".rstrip()
    if told:
        message += f" ({told})"
    cure = (_PUT_CURES.get(status) if method in ("PUT", "DELETE") else None) or _CURES.get(status)
    if cure:
        message += f"; {cure.format(method=method)}"
    facts = {"url": shown, "status": status}
    if status in (404, 410):
        return NotFoundError(message, **facts)
    if status in (401, 403, 407):
        return AccessError(message, **facts)
    if status == 412:
        return ChangedError(message, **facts)
    if status == 507:
        return NoSpaceError(message, **facts)
    retryable = status in RETRIED_STATUSES
    after = retry_after_s(response.headers) if retryable else None
    return StorageError(message, retryable=retryable, retry_after_s=after, **facts)
