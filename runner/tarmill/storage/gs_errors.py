"""What went wrong at Google Cloud Storage, as StorageError: what can get better by waiting, and what to do else."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from typing import Any, NoReturn

import aiohttp
from google.auth import exceptions as auth_errors

from tarmill.errors import AccessError, ChangedError, NotFoundError, SpecError, StorageError
from tarmill.storage.answers import shorten
from tarmill.storage.retry import RETRIED_STATUSES, retry_after_s
from tarmill.storage.urls import mask

_LOGIN = "log in by `gcloud auth application-default login`, or name a key file in GOOGLE_APPLICATION_CREDENTIALS"
# https://cloud.google.com/storage/docs/json_api/v1/status-codes#403-forbidden
_THROTTLED = frozenset({"rateLimitExceeded", "userRateLimitExceeded"})


def status_error(
    doing: str, url: str, status: int, headers: Mapping[str, str], body: bytes, account: str | None
) -> StorageError:
    """Tell an answer that is a failure as the error it means, with its cure (pure).

    Args:
        doing: what was tried, such as "reading".
        url: the object or bucket.
        status, headers, body: the answer.
        account: who we are to the server; None = nobody.
    """
    shown = mask(url)
    told, reason = _told(body)
    bucket = url.partition("://")[2].partition("/")[0]
    facts: dict[str, Any] = {"url": shown, "status": status}
    said = f"{status} ({told})" if told else str(status)
    if status == 404:
        if "bucket does not exist" in told.lower():
            return NotFoundError(f"{doing} {shown}: there is no bucket {bucket!r}; make it, or mend its name", **facts)
        return NotFoundError(f"{doing} {shown}: it does not exist ({said})", **facts)
    if status == 412:
        return ChangedError(f"{doing} {shown}: it is not the version that was expected ({said})", **facts)
    if status == 400 and "requester pays" in told.lower():
        return AccessError(
            f"{doing} {shown}: bucket {bucket!r} lets those who ask pay; agree by --requester-pays, and name the "
            "project by --store-option gs.user_project=PROJECT where the credentials have none",
            **facts,
        )
    if status == 401:
        return AccessError(f"{doing} {shown}: {_not_let_in(account, bucket)}; the server answered {said}", **facts)
    if status == 403 and reason not in _THROTTLED:
        who = f"{account} may not" if account else "nobody without credentials may"
        return AccessError(
            f"{doing} {shown}: {who} do this in bucket {bucket!r}: {told or status}; give the account a role such as "
            f"{'Storage Object Viewer' if doing in ('reading', 'listing', 'looking at') else 'Storage Object User'}",
            **facts,
        )
    retryable = status in RETRIED_STATUSES or reason in _THROTTLED
    after = retry_after_s(headers) if retryable else None
    return StorageError(
        f"{doing} {shown}: the server answered {said}", retryable=retryable, retry_after_s=after, **facts
    )


def _told(body: bytes) -> tuple[str, str]:
    """Read message and reason of an answer; it may be JSON, XML or plain text (pure)."""
    text = body[:8192].decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        if isinstance(error, str):
            return shorten(error), ""
        reasons = [item.get("reason", "") for item in error.get("errors", [])]
        return shorten(mask(str(error.get("message", "")))), reasons[0] if reasons else ""
    except (ValueError, KeyError, TypeError, AttributeError):
        return shorten(mask(text)), ""


def _not_let_in(account: str | None, bucket: str) -> str:
    if account is None:
        return f"bucket {bucket!r} is not public, and no credentials were sent; leave out --anon and {_LOGIN}"
    return f"the credentials of {account} were refused (wrong, expired or revoked); {_LOGIN}"


def raise_network_error(error: BaseException, doing: str, url: str, endpoint: str) -> NoReturn:
    """Tell a failure below HTTP as a StorageError, retryable unless it cannot get better by waiting."""
    shown = mask(url)
    retryable = True
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        retryable = not isinstance(error, aiohttp.ClientConnectorCertificateError)
        reason = f"TLS with {endpoint} failed ({error.os_error}); name the server's authority with --ca-file"
    elif isinstance(error, aiohttp.ClientProxyConnectionError):
        reason = "the proxy cannot be reached; see HTTP_PROXY, HTTPS_PROXY, NO_PROXY"
    elif isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if isinstance(cause, socket.gaierror):
            retryable = cause.errno not in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", -5))
        reason = f"{endpoint} cannot be reached ({cause.strerror or cause})"
    elif isinstance(error, aiohttp.InvalidURL):
        raise SpecError(f"{endpoint!r} is no address of a server", field="store_option", value=endpoint) from error
    elif isinstance(error, asyncio.TimeoutError):
        reason = f"{endpoint} did not answer in time"
    else:
        reason = f"the connection to {endpoint} broke ({mask(str(error)) or type(error).__name__})"
    raise StorageError(f"{doing} {shown}: {reason}", url=shown, retryable=retryable, network=True) from error


def raise_credentials_error(error: Exception, url: str, account: str | None = None) -> NoReturn:
    """Tell why there are no credentials to send."""
    shown = mask(url)
    if isinstance(error, auth_errors.TransportError) or getattr(error, "retryable", False):
        raise StorageError(
            f"{shown}: the server that gives out credentials did not answer ({_brief(error)})",
            url=shown,
            retryable=True,
            network=True,
        ) from error
    if isinstance(error, auth_errors.RefreshError):
        raise AccessError(
            f"{shown}: the credentials{f' of {account}' if account else ''} are expired, revoked or wrong "
            f"({_brief(error)}); {_LOGIN}",
            url=shown,
        ) from error
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if named:
        reason = f"the key file of GOOGLE_APPLICATION_CREDENTIALS, {named}, cannot be used ({_brief(error)})"
    else:
        folder = os.environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud"
        reason = (
            "no Google credentials were found: GOOGLE_APPLICATION_CREDENTIALS is not set, there is no "
            f"{folder}/application_default_credentials.json, and no metadata server (workload identity) answers"
        )
    raise AccessError(f"{shown}: {reason}; {_LOGIN}; for a public bucket use --anon", url=shown) from error


def _brief(error: Exception) -> str:
    """Say in short what google.auth says at length, without what a token server answered in full."""
    text = error.args[0] if error.args else error
    return shorten(mask(str(text)))[:160]
