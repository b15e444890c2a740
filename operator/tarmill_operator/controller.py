"""Looks at one resource after another: what is known of it, what to do about it, and doing that."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace

from tarmill_operator.api import Api, ApiError
from tarmill_operator.cache import Cache
from tarmill_operator.executor import Executor, LookAgain, NamespaceEnds
from tarmill_operator.metrics import Metrics
from tarmill_operator.model import Cause, Observed, Settings
from tarmill_operator.notices import Notices
from tarmill_operator.progress_client import ProgressClient
from tarmill_operator.reconcile import reconcile
from tarmill_operator.work_queue import WorkQueue

log = logging.getLogger(__name__)

_CHANGED_MEANWHILE_S = 0.05
_NAMESPACE_ENDS_S = 30.0
RESYNC_S = 600.0


class Controller:
    """Deals with keys of the queue, which are uids of resources.

    Args:
        api: the API server.
        cache: what is known.
        queue: what to look at next.
        settings: of the operator; may be replaced while it runs.
        progress: what runners said.
        instance: our name, for Events.
        metrics: counts.
        clock: gives seconds since 1970.
        wake: takes keys that something changed about; the queue by default.
    """

    def __init__(
        self,
        api: Api,
        cache: Cache,
        queue: WorkQueue,
        settings: Settings,
        progress: ProgressClient,
        *,
        instance: str = "",
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
        wake: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings
        self._cache = cache
        self._queue = queue
        self._progress = progress
        self._metrics = metrics or Metrics()
        self._clock = clock
        self._executor = Executor(api, cache, Notices(api, instance, clock), wake or queue.add)
        self._refusals: dict[str, Cause] = {}
        self.last_tick = clock()
        """When a key was dealt with, or there was none."""

    async def work(self, uid: str) -> None:
        """Deal with one key, and give it back to the queue."""
        begun = time.perf_counter()
        self.last_tick = self._clock()
        outcome = "done"
        try:
            again = await self.look(uid)
        except LookAgain:
            outcome = "changed"
            self._queue.failed(uid, first_s=_CHANGED_MEANWHILE_S)
        except NamespaceEnds:
            outcome = "done"
            self._queue.done(uid, _NAMESPACE_ENDS_S)
        except ApiError as error:
            outcome = "api error"
            pause = self._queue.failed(uid, at_least_s=error.retry_after_s or 0.0)
            log.warning("%s: %s; again in %.1f s", self._name_of(uid), error, pause)
        except asyncio.CancelledError:  # who acts again later finds it
            self._queue.done(uid, 0.0)
            raise
        except Exception:
            outcome = "error"
            pause = self._queue.failed(uid)
            log.exception("%s: this should not happen; again in %.1f s", self._name_of(uid), pause)
        else:
            self._queue.done(uid, again)
        self._metrics.looked(outcome, time.perf_counter() - begun)

    async def look(self, uid: str) -> float | None:
        """Decide about a resource and do it.

        Returns:
            Seconds until it is to be looked at again; None to wait for a change.

        Raises:
            ApiError: a call failed in a way that may pass.
            LookAgain: what was decided on has changed.
            NamespaceEnds: nothing can be made there any more.
        """
        observed = self._observe(uid)
        if observed is None:
            self._refusals.pop(uid, None)
            return None
        decision = reconcile(observed, self._clock())
        if decision.look_closer:
            await self._executor.look_closer(observed.resource)
            observed = self._observe(uid)
            if observed is None:
                return None
            observed = replace(observed, fresh=True)
            decision = reconcile(observed, self._clock())
        refusal = await self._executor.carry_out(observed, decision)
        known = self._refusals.pop(uid, None)
        if refusal is not None:
            self._refusals[uid] = refusal
            log.warning("%s: %s: %s", self._name_of(uid), refusal.reason, refusal.message)
        news = (refusal and refusal.reason) != (known and known.reason)
        # the status is to tell of it, or to tell of it no more
        return 0.0 if news and (decision.apply or refusal) else decision.requeue_s

    async def resync(self) -> None:
        """Look at all resources now and then, whatever was told of them; for ever."""
        while True:
            await asyncio.sleep(RESYNC_S * random.uniform(0.9, 1.1))
            for uid in self._cache.uids():
                self._queue.add(uid, random.uniform(0.0, RESYNC_S / 10))

    def _observe(self, uid: str) -> Observed | None:
        observed = self._cache.observe(uid, self.settings)
        if observed is None:
            return None
        return replace(
            observed,
            progress=self._progress.of(observed),
            asked_every_s=self._progress.every_s,
            refusal=self._refusals.get(uid),
        )

    def _name_of(self, uid: str) -> str:
        resource = self._cache.resource(uid)
        if resource is None:
            return f"resource {uid}"
        return f"{resource['kind']} {resource['metadata']['namespace']}/{resource['metadata']['name']}"
