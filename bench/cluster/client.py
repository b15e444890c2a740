"""A small client of the API server for the benchmark: calls, and watches that go on when they are cut."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml

USER_AGENT = "tarmill-bench"
MERGE = "application/merge-patch+json"
Object = dict[str, Any]


class ApiError(Exception):
    """The API server has refused a call."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Client:
    """Speaks with one API server.

    Args:
        kubeconfig: with certificates inside.
    """

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server = cluster["server"]
        self._tls = ssl.create_default_context(
            cadata=base64.b64decode(cluster["certificate-authority-data"]).decode("ascii")
        )
        with tempfile.NamedTemporaryFile() as pair:  # ssl reads certificates from files only
            for part in ("client-certificate-data", "client-key-data"):
                pair.write(base64.b64decode(user[part]))
            pair.flush()
            self._tls.load_cert_chain(pair.name)

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=64)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        headers = {"User-Agent": USER_AGENT}
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def call(self, method: str, path: str, body: Object | None = None, kind: str = "application/json") -> Object:
        """Make one call; what the server answers.

        Raises:
            ApiError: it refuses.
        """
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": kind}
        timeout = aiohttp.ClientTimeout(total=30)
        async with self._session.request(
            method, self._server + path, data=data, headers=headers, timeout=timeout
        ) as answer:
            found: Object = await answer.json(content_type=None)
        if answer.status >= 400:
            raise ApiError(answer.status, str(found.get("message")))
        return found

    async def watch(self, path: str, query: str = "") -> AsyncIterator[tuple[str, Object]]:
        """Give what there is as ADDED, and then each change, for ever; after a gap what there is once more."""
        selected = f"&{query}" if query else ""
        while True:
            listed = await self.call("GET", f"{path}?limit=0{selected}")
            version = listed["metadata"]["resourceVersion"]
            for item in listed["items"]:
                yield "ADDED", item
            with suppress(_Gap):
                async for event in self._watch_from(path, selected, version):
                    yield event

    async def _watch_from(self, path: str, selected: str, version: str) -> AsyncIterator[tuple[str, Object]]:
        while True:
            url = f"{self._server}{path}?watch=true&allowWatchBookmarks=true&resourceVersion={version}{selected}"
            async with self._session.get(url) as answer:
                if answer.status == 429:  # of a kind that was defined a moment ago
                    await asyncio.sleep(1.0)
                    continue
                if answer.status != 200:
                    raise ApiError(answer.status, await answer.text())
                async for line in _lines(answer):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        code, message = int(event["object"].get("code", 0)), str(event["object"].get("message"))
                        raise _Gap(message) if code == 410 else ApiError(code, message)
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        yield event["type"], event["object"]


class _Gap(Exception):
    """What has changed since a version is no longer known."""


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Split an answer that never ends; its lines may be longer than aiohttp takes."""
    rest = b""
    async for piece in answer.content.iter_any():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line
