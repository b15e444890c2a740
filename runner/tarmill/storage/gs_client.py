"""Requests to Google Cloud Storage by gcsfs: its credentials, its session, one try each, and a limit to every silence.

gcsfs itself tries again without end for some failures, drops what the server says in others, and reads without pinning
a generation; so what is used of it is what it does well: finding and refreshing credentials, and its aiohttp session.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

import aiohttp
from google.auth import exceptions as auth_errors

from tarmill.errors import AccessError, StorageError
from tarmill.storage.gs_errors import raise_credentials_error, raise_network_error, status_error
from tarmill.storage.http_auth import split_target
from tarmill.storage.http_proxy import proxy_for
from tarmill.storage.settings import StorageSettings
from tarmill.storage.urls import mask

if TYPE_CHECKING:
    import gcsfs

T = TypeVar("T")
_PIECE_BYTES = 256 << 10
_OK = frozenset({200, 201, 204})


class _Beat:
    """When something moved last, and how long a silence may be."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._since = asyncio.get_running_loop().time()

    def moved(self) -> None:
        self._since = asyncio.get_running_loop().time()

    def left_s(self) -> float:
        return self._since + self._silence_s - asyncio.get_running_loop().time()

    async def watch(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work`; TimeoutError when nothing moves for too long (aiohttp sets no limit to a stalled upload)."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                left = self.left_s()
                if left <= 0:
                    raise TimeoutError
                await asyncio.wait({task}, timeout=left)
            return task.result()
        finally:
            task.cancel()


class GsClient:
    """What one process says to one server as one account.

    Args:
        fs: knows the address, the credentials and who pays.
        settings: the time limits.
        block_size: size of an upload's chunks, as the user wrote it.
        is_emulator: an address of the user's own, which may not know by which name it is reached.
    """

    def __init__(
        self, fs: gcsfs.GCSFileSystem, settings: StorageSettings, block_size: str | None, is_emulator: bool
    ) -> None:
        self._fs = fs
        self._silence_s = settings.read_timeout_s
        self._wants_project = settings.requester_pays
        self.endpoint = str(fs._location).rstrip("/")
        self.is_emulator = is_emulator
        self.block_size = block_size

    @property
    def account(self) -> str | None:
        """Who we are to the server; None = nobody."""
        credentials = self._fs.credentials.credentials
        if credentials is None:
            return None
        name = getattr(credentials, "service_account_email", None) or getattr(credentials, "account", None)
        return str(name) if name and name != "default" else "the account in use"

    def call(
        self,
        method: str,
        path: str,
        url: str,
        doing: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Sequence[bytes] = (),
        accept: frozenset[int] = _OK,
        silence_s: float | None = None,
        stop: threading.Event | None = None,
    ) -> tuple[int, Mapping[str, str], dict[str, Any]]:
        """Send one request and give the answer whole: status, headers, JSON (empty where it is none).

        Args:
            path: below the server's address, or a whole address.
            url, doing: the object and what is done to it, for errors.
            body: pieces to send.
            accept: statuses that are no failure.
            silence_s: longest silence, `read_timeout_s` by default.
            stop: ends the sending of a body, as a connection that broke.

        Raises:
            NotFoundError (404), AccessError (401, 403), ChangedError (412), StorageError.
        """
        sent = {"Accept-Encoding": "identity", "Content-Length": str(sum(map(len, body))), **(headers or {})}
        if method in ("GET", "DELETE"):
            del sent["Content-Length"]
        limit_s = silence_s or self._silence_s

        async def exchange(signed: dict[str, str]) -> tuple[int, Mapping[str, str], bytes]:
            beat = _Beat(limit_s)

            async def pieces() -> AsyncIterator[bytes]:
                for block in body:
                    view = memoryview(block)
                    for start in range(0, len(view), _PIECE_BYTES):
                        if stop is not None and stop.is_set():
                            raise ConnectionAbortedError("told to stop")
                        beat.moved()
                        yield view[start : start + _PIECE_BYTES]  # type: ignore[misc]
                beat.moved()

            async def talk() -> tuple[int, Mapping[str, str], bytes]:
                response = await self._begin(method, path, params, signed, pieces() if body else None)
                async with response:
                    return response.status, response.headers, await response.read()

            return await beat.watch(talk())

        status, answered, data = self._with_fresh_credentials(
            sent, url, doing, accept, lambda signed: self._run(exchange(signed), doing, url)
        )
        return status, answered, _json(data)

    def open(
        self, path: str, url: str, *, params: Mapping[str, str], headers: Mapping[str, str], accept: frozenset[int]
    ) -> aiohttp.ClientResponse:
        """Ask for an object's bytes; the body of the answer is still to be read, by `read`."""

        async def begin(signed: dict[str, str]) -> tuple[aiohttp.ClientResponse, bytes]:
            response = await _Beat(self._silence_s).watch(self._begin("GET", path, params, signed, None))
            if response.status in accept:
                return response, b""
            async with response:
                return response, await _Beat(self._silence_s).watch(response.content.read(8192))

        def send(signed: dict[str, str]) -> tuple[int, Mapping[str, str], Any]:
            response, text = self._run(begin(signed), "reading", url)
            return response.status, response.headers, text or response

        sent = {"Accept-Encoding": "gzip", **headers}  # what is stored compressed comes as it is
        _, _, response = self._with_fresh_credentials(sent, url, "reading", accept, send)
        return cast(aiohttp.ClientResponse, response)

    def read(
        self, response: aiohttp.ClientResponse, amount: int, url: str, watcher: Callable[[Future[Any]], None]
    ) -> bytes:
        """Give the next bytes of an answer, `amount` unless it ends before.

        Args:
            watcher: is given the future that is waited for, to cancel it from another thread.
        """

        async def collect() -> bytes:
            pieces, missing = [], amount
            while missing and (piece := await response.content.read(missing)):
                pieces.append(piece)
                missing -= len(piece)
            return b"".join(pieces) if len(pieces) != 1 else pieces[0]

        return self._run(collect(), "reading", url, watcher)  # sock_read is its limit

    def close(self, response: aiohttp.ClientResponse) -> None:
        """Give up an answer, from any thread; its connection is kept when it was read to its end."""
        loop = self._fs.loop
        if not loop.is_closed():
            loop.call_soon_threadsafe(response.close)

    async def _begin(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        body: AsyncIterator[bytes] | None,
    ) -> aiohttp.ClientResponse:
        session = await self._fs._set_session()
        address = path if "://" in path else self.endpoint + path
        response = await session.request(
            method,
            address,
            params=self._fs._get_params(dict(params or {})),
            headers=headers,
            data=body,
            allow_redirects=False,
            proxy=proxy_for(split_target(address)),  # aiohttp's own reading of the environment would read netrc too
        )
        return cast(aiohttp.ClientResponse, response)

    def _with_fresh_credentials(
        self,
        headers: Mapping[str, str],
        url: str,
        doing: str,
        accept: frozenset[int],
        send: Callable[[dict[str, str]], tuple[int, Mapping[str, str], Any]],
    ) -> tuple[int, Mapping[str, str], Any]:
        """Send with credentials, and once more with new ones where the server says that they are no longer good."""
        self._project_is_known(url)
        for is_last in (False, True):
            status, answered, data = send(self._signed(headers, url))
            if status in accept:
                return status, answered, data
            if status != 401 or is_last or not self._forget_token():
                break
        text = data if isinstance(data, bytes) else b""
        raise status_error(doing, url, status, answered, text, self.account)

    def _signed(self, headers: Mapping[str, str], url: str) -> dict[str, str]:
        """Add who we are; refreshing happens here, in the caller's thread, since google.auth waits for its answer."""
        try:
            return dict(self._fs._get_headers(dict(headers)))
        except auth_errors.GoogleAuthError as error:
            raise_credentials_error(error, url, self.account)
        except Exception as error:  # gcsfs hides a RefreshError in one of its own
            cause = error.__cause__
            if isinstance(cause, auth_errors.GoogleAuthError):
                raise_credentials_error(cause, url, self.account)
            raise StorageError(f"{mask(url)}: the credentials cannot be used ({error})", url=mask(url)) from error

    def _forget_token(self) -> bool:
        credentials = self._fs.credentials.credentials
        if credentials is None or not hasattr(credentials, "token"):
            return False
        credentials.token = None
        return True

    def _project_is_known(self, url: str) -> None:
        if self._wants_project and self._fs.requester_pays is True and not self._fs.project:
            raise AccessError(
                f"{mask(url)}: --requester-pays needs a project that pays, and the credentials name none; add "
                "--store-option gs.user_project=PROJECT",
                url=mask(url),
            )

    def _run(
        self, work: Coroutine[Any, Any, T], doing: str, url: str, watcher: Callable[[Future[Any]], None] | None = None
    ) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._fs.loop)
        if watcher is not None:
            watcher(future)
        try:
            return future.result()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise_network_error(error, doing, url, _host(self.endpoint))
        except BaseException:
            future.cancel()
            raise


def _host(endpoint: str) -> str:
    return urlsplit(endpoint).netloc.rpartition("@")[2] or endpoint


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
