"""One HTTP exchange: connections of this process, redirects, proxies, TLS, and failures told as StorageError.

Retrying is not done here: `retryable` and `retry_after_s` say whether and when it makes sense.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from tarmill import __version__
from tarmill.errors import SpecError, StorageError
from tarmill.storage.http_auth import Target, authorization, split_target
from tarmill.storage.http_errors import raise_network_error, status_error
from tarmill.storage.http_proxy import proxy_for
from tarmill.storage.settings import StorageSettings
from tarmill.storage.urls import mask

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 10
_SEND_BLOCK_BYTES = 256 << 10
_lock = threading.Lock()
_managers: dict[tuple[object, ...], urllib3.PoolManager] = {}


def _forget_connections() -> None:
    """Start anew in a forked child: two processes must never talk on one connection, nor share a lock."""
    global _lock, _managers
    _lock = threading.Lock()
    _managers = {}


os.register_at_fork(after_in_child=_forget_connections)


def exchange(
    method: str,
    url: str,
    settings: StorageSettings,
    *,
    headers: Mapping[str, str] | None = None,
    body: Callable[[], Iterable[bytes]] | None = None,
    accept: frozenset[int] = frozenset({200}),
    answer_timeout_s: float | None = None,
) -> BaseHTTPResponse:
    """Send one request, follow redirects, and give the answer with its body still to be read.

    Args:
        method, url: the URL may hold user and password; they leave this process as a header only.
        headers: besides User-Agent, Accept-Encoding (identity: stored bytes, not an encoding of them), Authorization.
        body: called for each hop, gives the pieces; `headers` has their Content-Length.
        accept: statuses that are no failure.
        answer_timeout_s: longest wait for the answer to begin, and between its pieces; default `read_timeout_s`.

    Raises:
        NotFoundError (404, 410), AccessError (401, 403, 407), ChangedError (412), NoSpaceError (507), StorageError.
    """
    first = target = split_target(url)
    for _ in range(_MAX_REDIRECTS):
        credential = authorization(target, first)
        sent = {"User-Agent": f"tarmill/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
        if credential:
            sent["Authorization"] = credential
        response = send(method, target, settings, sent, body, answer_timeout_s)
        if response.status in accept:
            return response
        location = response.headers.get("Location")
        if response.status not in _REDIRECTS or not location:
            raise status_error(method, url, response, credential)
        response.close()
        target = _redirected(method, url, target, location, response.status)
    raise StorageError(f"{method} {mask(url)}: more than {_MAX_REDIRECTS} redirects", url=mask(url))


def _redirected(method: str, url: str, target: Target, location: str, status: int) -> Target:
    following = urljoin(target.url, location)
    if urlsplit(following).scheme not in ("http", "https") or (method == "PUT" and status not in (307, 308)):
        raise StorageError(
            f"{method} {mask(url)}: answered {status}, a redirect to {mask(following)} that cannot be followed; "
            "use that address itself if it is right",
            url=mask(url),
            status=status,
        )
    return split_target(following.partition("#")[0])


def send(
    method: str,
    target: Target,
    settings: StorageSettings,
    headers: Mapping[str, str],
    body: Callable[[], Iterable[bytes]] | None = None,
    answer_timeout_s: float | None = None,
) -> BaseHTTPResponse:
    """Send one request as it is, and give whatever is answered; see `exchange`.

    Raises:
        StorageError: there was no answer.
    """
    # urllib3 sends a body under the time limit for connecting, which is too short for a server that is busy storing.
    connect_s = settings.connect_timeout_s if body is None else settings.read_timeout_s
    try:
        return _manager(target, settings).request(
            method,
            target.url,
            headers=headers,
            body=body() if body is not None else None,
            redirect=False,
            retries=False,
            preload_content=False,
            timeout=urllib3.Timeout(connect=connect_s, read=answer_timeout_s or settings.read_timeout_s),
        )
    except (HTTPError, OSError) as error:
        raise_network_error(error, method, target.url)


def _manager(target: Target, settings: StorageSettings) -> urllib3.PoolManager:
    proxy = proxy_for(target)
    encrypted = target.scheme == "https" or (proxy or "").lower().startswith("https:")
    key = (settings.ca_file, os.environ.get("SSL_CERT_FILE"), proxy, encrypted)
    with _lock:
        manager = _managers.get(key)
        if manager is None:
            # loading the system's authorities costs half as much CPU as the rest of a small job
            context = _new_context(settings) if encrypted or settings.ca_file is not None else None
            manager = _managers[key] = _new_manager(context, proxy)
    return manager


def _new_context(settings: StorageSettings) -> ssl.SSLContext:
    context = ssl.create_default_context()  # reads SSL_CERT_FILE and SSL_CERT_DIR
    if settings.ca_file is not None:
        try:
            context.load_verify_locations(cafile=settings.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise SpecError(
                f"the CA file {settings.ca_file!r} cannot be used: {error.strerror or error}; expected a PEM file",
                field="ca_file",
                value=settings.ca_file,
            ) from error
    return context


def _new_manager(context: ssl.SSLContext | None, proxy: str | None) -> urllib3.PoolManager:
    if proxy is None:
        return urllib3.PoolManager(
            num_pools=32, maxsize=32, block=False, blocksize=_SEND_BLOCK_BYTES, ssl_context=context
        )
    where = split_target(proxy)
    login = ":".join(where.credentials) if where.credentials else None
    return urllib3.ProxyManager(
        where.url,
        num_pools=32,
        maxsize=32,
        block=False,
        blocksize=_SEND_BLOCK_BYTES,
        ssl_context=context,
        proxy_ssl_context=context,
        proxy_headers=urllib3.make_headers(proxy_basic_auth=login) if login else None,
    )


def drain(response: BaseHTTPResponse) -> None:
    """Read a short rest of an answer, so that its connection can be used again, and give it back."""
    try:
        response.drain_conn()
    except (HTTPError, OSError):
        response.close()
