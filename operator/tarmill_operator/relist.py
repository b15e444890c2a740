"""Lists everything now and then, and corrects the cache: watches do not tell of all there is.

Seen with kopf: an object that is deleted while the API server is away is never told of.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from tarmill_operator.api import Api, ApiError
from tarmill_operator.cache import Cache
from tarmill_operator.model import Resource
from tarmill_operator.watches import Watch

log = logging.getLogger(__name__)

_SOON_S = 2.0
_AFTER_FAILURE_S = 10.0


class Relist:
    """Lists what is watched.

    Args:
        api: the API server.
        cache: to be corrected.
        wake: told the uid of each resource that something changed about.
        watches: gives what to list.
        namespaces: which; all where there are none.
        every_s: how often.
    """

    def __init__(
        self,
        api: Api,
        cache: Cache,
        wake: Callable[[str], None],
        *,
        watches: Callable[[], Sequence[Watch]],
        namespaces: Sequence[str] = (),
        every_s: float = 300.0,
    ) -> None:
        self._api = api
        self._cache = cache
        self._wake = wake
        self._watches = watches
        self._namespaces = tuple(namespaces) or ("",)
        self._every_s = every_s
        self._soon = asyncio.Event()
        self._untold: dict[str, dict[str, str]] = {}
        """Kind -> uid -> resourceVersion of what the last list told and no watch has told since."""
        self._deaf: dict[str, int] = {}

    @property
    def deaf(self) -> str:
        """Kind whose watch has told nothing between two lists though there was something to tell; "" for none."""
        return next((kind for kind, times in self._deaf.items() if times >= 2), "")

    def heard(self, item: Resource) -> None:
        """Note that a watch has told of an object."""
        self._untold.get(item["kind"], {}).pop(item["metadata"]["uid"], None)

    def hurry(self) -> None:
        """List soon: a watch has begun anew, or the API server was away."""
        self._soon.set()

    async def run(self) -> None:
        """List for ever; the first time is not now."""
        while True:
            try:
                async with asyncio.timeout(self._every_s * random.uniform(0.9, 1.1)):
                    await self._soon.wait()
                await asyncio.sleep(_SOON_S)  # several watches begin anew together
            except TimeoutError:
                pass
            self._soon.clear()
            await self.complete(_AFTER_FAILURE_S)

    async def complete(self, pause_s: float) -> None:
        """List all kinds, those again whose lists failed, until each was listed once."""
        left = await self.each(self._watches())
        while left:
            await asyncio.sleep(pause_s)
            left = await self.each(left)

    async def each(self, watches: Sequence[Watch]) -> list[Watch]:
        """List some kinds once; gives those whose lists failed."""
        failed = []
        for watch in watches:
            try:
                await self._all_of(watch)
            except ApiError as error:
                log.warning("%s could not be listed: %s", watch.kind, error)
                failed.append(watch)
        return failed

    async def _all_of(self, watch: Watch) -> None:
        missed = self._untold.get(watch.kind, {})
        untold: dict[str, str] = {}
        for namespace in self._namespaces:
            untold |= await self._one(watch, namespace)
        # what the list before this one told, no watch told since, and is still there: the watch is deaf
        still = [uid for uid in missed if uid not in untold and self._cache.knows(watch.kind, uid)]
        self._deaf[watch.kind] = self._deaf.get(watch.kind, 0) + 1 if still else 0
        self._untold[watch.kind] = untold
        if self._deaf[watch.kind] > 1:
            log.error("no watch tells of %s any more: %d objects were found by lists alone", watch.kind, len(still))

    async def _one(self, watch: Watch, namespace: str) -> dict[str, str]:
        listed = await self._api.list(
            watch.api_version, watch.kind, namespace, labels=watch.labels, fields=watch.fields
        )
        woken, untold = self._cache.correct(
            watch.kind,
            listed.items,
            listed.version,
            lambda item: not namespace or item["metadata"].get("namespace") == namespace,
        )
        for uid in woken:
            self._wake(uid)
        return dict.fromkeys(untold, listed.version)
