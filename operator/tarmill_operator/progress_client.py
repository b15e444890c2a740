"""Asks running runners how it goes, over HTTP, and remembers their answers."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from tarmill_operator.cache import Cache
from tarmill_operator.model import Observed, Resource
from tarmill_operator.names import ATTEMPT_LABEL, ROLE_LABEL, RUN_LABEL, RUNNER, STATUS_PORT, UID_LABEL

log = logging.getLogger(__name__)

_TIMEOUT_S = 2.0
_MAX_BYTES = 65_536
_AT_A_TIME = 16
_STEP_S = 0.5
_SILENT_S = 1.0

Fetch = Callable[[str], Awaitable[dict[str, Any] | None]]
"""Asks a runner at an address; None where it gives no answer that can be used."""


class ProgressClient:
    """Keeps what runners said last.

    Args:
        cache: knows the pods.
        fetch: asks one.
        wake: told of the uid of a resource whose runner said something new.
        every_s: how often each is asked; less often where there are many, see `per_second`.
        per_second: how many are asked in a second, since each new word costs a write to the API server. Those that
            have said nothing yet are asked besides, each second: what they say first is that the job runs.
    """

    def __init__(
        self, cache: Cache, fetch: Fetch, wake: Callable[[str], None], *, every_s: float, per_second: float
    ) -> None:
        self._cache = cache
        self._fetch = fetch
        self._wake = wake
        self._at_least_s = every_s
        self._per_second = per_second
        self._step_s = min(_STEP_S, every_s / 2)
        self._told: dict[str, dict[str, Any]] = {}
        self._asked: dict[str, float] = {}
        self._asking: set[str] = set()
        self._slots = asyncio.Semaphore(_AT_A_TIME)
        self.every_s = every_s
        """How often each is asked, with as many as there are now."""

    def of(self, observed: Observed) -> dict[str, Any] | None:
        """Give the last word of the runner of a resource's current attempt."""
        status = observed.resource.get("status") or {}
        ours = (str(status.get("run")), str(status.get("attempt")))
        words = None
        for pod in observed.pods:
            labels = pod["metadata"].get("labels", {})
            if labels.get(ROLE_LABEL) == RUNNER and (labels.get(RUN_LABEL), labels.get(ATTEMPT_LABEL)) == ours:
                words = self._told.get(pod["metadata"]["uid"], words)
        return words

    async def run(self) -> None:
        """Ask for ever: some at each step, so that their news are spread over time."""
        async with asyncio.TaskGroup() as group:
            while True:
                for pod in self._next_ones(asyncio.get_running_loop().time()):
                    group.create_task(self._ask(pod))
                await asyncio.sleep(self._step_s)

    def _next_ones(self, now: float) -> list[Resource]:
        """Choose who is asked at a step: who has said nothing yet, and a share of those who were not asked longest."""
        pods = self._cache.running_runners()
        self._told = {uid: words for uid, words in self._told.items() if self._cache.knows("Pod", uid)}
        self._asked = {uid: time for uid, time in self._asked.items() if uid in pods}
        self.every_s = max(self._at_least_s, len(pods) / self._per_second)

        def due(pause_s: float, *, told: bool) -> list[str]:
            free = [uid for uid in pods if (uid in self._told) == told and uid not in self._asking]
            asked = {uid: self._asked.get(uid, -pause_s) for uid in free}
            return sorted((uid for uid in free if now - asked[uid] >= pause_s), key=asked.__getitem__)

        share = math.ceil(len(pods) * self._step_s / self.every_s)
        silent = due(min(self._at_least_s, _SILENT_S), told=False)
        chosen = [*silent[:_AT_A_TIME], *due(self.every_s, told=True)[:share]]
        self._asked |= dict.fromkeys(chosen, now)
        self._asking.update(chosen)
        return [pods[uid] for uid in chosen]

    async def _ask(self, pod: Resource) -> None:
        uid = pod["metadata"]["uid"]
        try:
            async with self._slots:
                words = await self._fetch(url_of(pod["status"]["podIP"]))
        finally:
            self._asking.discard(uid)
        if words is None:
            return
        before = self._told.get(uid)
        self._told[uid] = words
        if _news(words) != _news(before):
            self._wake(pod["metadata"]["labels"][UID_LABEL])


def url_of(address: str) -> str:
    """Give the URL where a runner tells its progress."""
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{STATUS_PORT}/progress"


def _news(words: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (words or {}).items() if name != "elapsedSeconds"}


class HttpFetch:
    """Asks runners by HTTP; a runner runs a person's code, so its answer may be anything.

    Args:
        observer: told for each whether it answered.
    """

    def __init__(self, observer: Callable[[bool], None] = lambda answered: None) -> None:
        self._observer = observer
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()

    async def __call__(self, url: str) -> dict[str, Any] | None:
        """Ask; None where there is no answer, or none that can be read."""
        words = None
        try:
            words = await self._get(url)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError) as error:
            log.debug("%s: %s", url, error)
        self._observer(words is not None)
        return words

    async def _get(self, url: str) -> dict[str, Any] | None:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
            connector = aiohttp.TCPConnector(limit=_AT_A_TIME, force_close=True)
            self._session = aiohttp.ClientSession(timeout=timeout, connector=connector)
        async with self._session.get(url, allow_redirects=False) as answer:
            data = bytearray()
            async for part in answer.content.iter_chunked(8192):
                data += part
                if len(data) > _MAX_BYTES:
                    raise ValueError(f"more than {_MAX_BYTES} bytes")
            words = json.loads(data) if answer.status == 200 else None
        return words if isinstance(words, dict) and words.get("format") == 1 else None
