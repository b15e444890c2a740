"""What went wrong in an fsspec file system, as StorageError, however its library says it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from tarmill.errors import AccessError, ChangedError, NoSpaceError, NotFoundError, StorageError, TarmillError
from tarmill.storage.answers import shorten
from tarmill.storage.body import Stopped
from tarmill.storage.pending import UploadCancelled
from tarmill.storage.retry import RETRIED_STATUSES
from tarmill.storage.urls import HIDDEN, mask

T = TypeVar("T")
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_PASSING = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED}
    | {errno.ECONNABORTED, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETRESET, errno.ESTALE}
)
# Libraries that are not imported here are known by the names of what they raise.
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound")
_REFUSED = ("AuthenticationException", "ClientAuthenticationError", "TokenRetrievalError", "UnauthorizedSSOTokenError")
_NETWORK = frozenset(
    {"ClientError", "ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError"}  # aiohttp
    | {"EndpointConnectionError", "ConnectionClosedError", "HTTPClientError"}  # botocore
    | {"ConnectTimeoutError", "ReadTimeoutError", "IncompleteRead", "ChunkedEncodingError"}  # urllib3, requests
    | {"SSHException", "ServiceRequestError"}  # paramiko, azure
)


def translated(function: Callable[[], T], url: str, doing: str) -> T:
    """Call into a file system, and tell what it raises as what it means."""
    try:
        return function()
    except (TarmillError, Stopped, UploadCancelled):
        raise
    except Exception as error:
        raise_library_error(error, url, doing)


def raise_library_error(error: Exception, url: str, doing: str) -> NoReturn:
    """Tell a library's error as a StorageError; retryable where the same call may work later."""
    shown = mask(url)
    scheme = url.partition("://")[0]
    reason = _reason(error, url)
    message = f"{doing} {shown}: {reason}"
    facts: dict[str, Any] = {"url": shown}
    chain = list(_chain(error))
    status = next(filter(None, map(_status, chain)), None)
    names = {kind.__name__ for item in chain for kind in type(item).__mro__}
    if status is not None:
        facts["status"] = status
    if any(name in names for name in _NO_CREDENTIALS):
        raise AccessError(
            f"{doing} {shown}: no credentials were found for {scheme}:// ({reason}); give them as the tools of this "
            "store expect them, in the environment or their files, or use --anon for what is public",
            **facts,
        ) from error
    if isinstance(error, PermissionError) or status in (401, 403) or any(name in names for name in _REFUSED):
        raise AccessError(f"{message}; the store refuses: check credentials and permissions", **facts) from error
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        raise NotFoundError(f"{doing} {shown}: it does not exist ({reason})", **facts) from error
    if status == 412:
        raise ChangedError(message, **facts) from error
    number = getattr(error, "errno", None)
    if number in _NO_SPACE or status == 507:
        raise NoSpaceError(f"{doing} {shown}: the store is full ({reason})", **facts) from error
    network = any(isinstance(item, TimeoutError | ConnectionError | EOFError) for item in chain)
    network = network or any(name in names for name in _NETWORK)
    lookup = next((item for item in chain if isinstance(item, socket.gaierror)), None)
    if lookup is not None:
        network = lookup.errno not in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", -5))
    retryable = network if status is None else status in RETRIED_STATUSES
    retryable = retryable or (number in _PASSING and lookup is None)
    raise StorageError(message, retryable=retryable, network=network, **facts) from error


def _reason(error: Exception, url: str) -> str:
    """Make one line of an error, without the password that its URL may hold."""
    text = shorten(mask(str(error) or type(error).__name__))
    userinfo = url.partition("://")[2].partition("/")[0].rpartition("@")[0]
    password = userinfo.partition(":")[2]
    if password:
        from urllib.parse import unquote

        for spelling in (password, unquote(password)):
            text = text.replace(spelling, HIDDEN)
    builtin = isinstance(error, OSError) and type(error).__module__ == "builtins"
    return text if builtin else f"{type(error).__name__}: {text}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """Find the HTTP status that an error carries, where a dozen libraries put it (pure)."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(response, "status_code", None) or getattr(error, "status_code", None)
        found = found or getattr(error, "status", None) or getattr(error, "code", None)
    return found if isinstance(found, int) and 400 <= found < 600 else None
