"""The operator's process: what runs in it, from start to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace

import kopf

from tarmill.spec import API_VERSION
from tarmill_operator import health
from tarmill_operator.api import ApiError
from tarmill_operator.cache import Cache
from tarmill_operator.children import DASK_API
from tarmill_operator.config import Config
from tarmill_operator.connection import Connection, log_in
from tarmill_operator.controller import Controller
from tarmill_operator.handlers import register, settings_for
from tarmill_operator.kube import Kube
from tarmill_operator.lease import Election
from tarmill_operator.metrics import Metrics
from tarmill_operator.model import Resource, Settings
from tarmill_operator.progress_client import HttpFetch, ProgressClient
from tarmill_operator.rate_limit import RateLimit
from tarmill_operator.relist import Relist
from tarmill_operator.watches import DASK_CLUSTERS, OUR_KINDS, WATCHES, Watch, pause_after
from tarmill_operator.work_queue import WorkQueue, run_workers

log = logging.getLogger(__name__)

_ASK_AGAIN_S = 3.0
_LOOK_FOR_BACKEND_S = 5.0
_KNOCK_S = 5.0
_STUCK_S = 180.0
_PROGRESS_SHARE = 0.1
"""Most of the calls to the API server that may tell of progress: what begins or ends comes before it."""


class Process:
    """Everything that one operator consists of.

    Args:
        config: what it was told.
        connection: to the API server.
    """

    def __init__(self, config: Config, connection: Connection) -> None:
        self._config = config
        self._metrics = Metrics()
        rate = config.api_calls_per_second
        self._api = Kube(connection, RateLimit(rate, burst=int(2 * rate)), self._metrics.called)
        # renewals must not wait behind what a thousand resources ask for
        self._lease_api = Kube(connection, RateLimit(10, burst=20), self._metrics.called)
        self._fetch = HttpFetch(self._metrics.pulled)
        self._cache = Cache()
        self._queue = WorkQueue()
        self._progress = ProgressClient(
            self._cache, self._fetch, self._queue.add, every_s=config.progress_s, per_second=rate * _PROGRESS_SHARE
        )
        settings = Settings(
            config.image,
            config.image_pull_policy,
            config.namespace,
            config.cluster_domain,
        )
        self._controller = Controller(
            self._api, self._cache, self._queue, settings, self._progress, instance=config.name, metrics=self._metrics
        )
        self._relist = Relist(
            self._api,
            self._cache,
            self._queue.add,
            watches=self._watches,
            namespaces=config.namespaces,
            every_s=config.relist_s,
        )
        self._leads = [False]
        self._ready = False
        self._metrics.watch(self._cache, self._queue, self._leads)
        self.port = 0
        """Of probes and metrics, once it runs."""

    async def run(self) -> None:
        """Run until told to stop by a signal.

        Raises:
            Lost: another operator may act from now on.
        """
        server, self.port = await health.serve(
            self._config.port, self._metrics, ailing=self._ailing, unready=self._unready
        )
        log.info("probes and metrics are on port %d", self.port)
        try:
            await self._operate()
        finally:
            await server.cleanup()
            for closing in (self._api, self._lease_api, self._fetch):
                await closing.close()

    async def _operate(self) -> None:
        await self._until("the custom resource definitions of tarmill.dev are there", self._kinds_are_there)
        await self._until("it is known whether there is a Dask operator", self._look_for_backend)
        while True:
            await self._relist.complete(_ASK_AGAIN_S)
            if not await self._run_with_watches():
                return

    async def _run_with_watches(self) -> bool:
        """Run kopf, and beside it what acts; the end of either is the end of both.

        Returns:
            Whether to begin again, since there are other kinds to watch now.
        """
        watches = self._watches()
        registry, settings = kopf.OperatorRegistry(), settings_for(watches)
        kopf.on.login(registry=registry)(log_in)
        register(registry, watches, self._told)
        namespaces = self._config.namespaces
        ready = asyncio.Event()
        watching = asyncio.create_task(
            kopf.operator(
                registry=registry,
                settings=settings,
                clusterwide=not namespaces,
                namespaces=namespaces,
                ready_flag=ready,
            )
        )
        self._ready = True
        acting = asyncio.create_task(self._act())
        stopped = asyncio.create_task(_signal(ready))
        other_kinds = asyncio.create_task(self._until_backend_changes())
        try:
            await asyncio.wait((stopped, watching, acting, other_kinds), return_when=asyncio.FIRST_COMPLETED)
            for task in (acting, watching):
                if task.done():
                    task.result()
            return not (stopped.done() or acting.done() or watching.done())
        finally:
            # one after the other: the Lease is given back before kopf ends
            for task in (stopped, other_kinds, acting, watching):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _act(self) -> None:
        """Do the work, once and as long as nobody else does."""
        correcting = asyncio.create_task(self._relist.run())
        try:
            if not (self._config.elect_leader and self._config.namespace):
                await self._lead(None)
                return
            identity = f"{self._config.name}_{uuid.uuid4().hex[:8]}"
            election = Election(self._lease_api, self._config.namespace, self._config.lease, identity)
            await election.win()
            try:
                await self._lead(election)
            finally:
                # what was begun has been stopped, so that the next one may begin
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2):
                        await asyncio.shield(election.release())
        finally:
            correcting.cancel()

    async def _lead(self, election: Election | None) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                if election is not None:
                    group.create_task(election.keep())
                # what the one before us wrote last must be known before anything is decided
                await self._relist.complete(_ASK_AGAIN_S)
                self._leads[0] = True
                for uid in self._cache.uids():
                    self._queue.add(uid)
                group.create_task(run_workers(self._queue, self._config.workers, self._controller.work))
                group.create_task(self._controller.resync())
                group.create_task(self._progress.run())
                group.create_task(self._notice_outages())
                if election is None:  # whose renewals would notice that the API server is away
                    group.create_task(self._knock())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        finally:
            self._leads[0] = False

    def _told(self, type_: str, item: Resource) -> None:
        """Take what a watch tells."""
        if type_ == "LISTED" and self._leads[0]:
            self._relist.hurry()
        self._relist.heard(item)
        for uid in self._cache.remove(item) if type_ == "DELETED" else self._cache.put(item):
            self._queue.add(uid, pause_after(item))

    def _watches(self) -> tuple[Watch, ...]:
        return (*WATCHES, DASK_CLUSTERS) if self._controller.settings.dask_operator else WATCHES

    async def _kinds_are_there(self) -> None:
        missing = OUR_KINDS - await self._api.kinds(API_VERSION)
        if missing:
            raise ApiError(404, f"{', '.join(sorted(missing))} of {API_VERSION} are missing; apply crds/")

    async def _look_for_backend(self) -> None:
        there = "DaskCluster" in await self._api.kinds(DASK_API)
        if there != self._controller.settings.dask_operator:
            log.info("there is %s DaskCluster kind in this cluster", "a" if there else "no")
            self._controller.settings = replace(self._controller.settings, dask_operator=there)

    async def _until_backend_changes(self) -> None:
        known = self._controller.settings
        while self._controller.settings == known:
            await asyncio.sleep(_LOOK_FOR_BACKEND_S * random.uniform(0.9, 1.1))
            try:
                await self._look_for_backend()
            except ApiError as error:
                log.warning("whether there is a Dask operator cannot be told: %s", error)

    async def _notice_outages(self) -> None:
        """List all when the API server is back, and try again at once what failed meanwhile."""
        noticed = self._api.outages + self._lease_api.outages
        while True:
            await asyncio.sleep(1)
            outages = self._api.outages + self._lease_api.outages
            if outages != noticed:
                log.warning("the API server answers again")
                self._relist.hurry()
                self._queue.end_pauses()
            noticed = outages

    async def _knock(self) -> None:
        while True:
            with contextlib.suppress(ApiError):
                await self._lease_api.kinds(API_VERSION)
            await asyncio.sleep(_KNOCK_S)

    async def _until(self, what: str, attempt: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await attempt()
            except ApiError as error:
                log.warning("waiting until %s: %s", what, error)
                await asyncio.sleep(_ASK_AGAIN_S)
            else:
                return

    # ---- probes -----------------------------------------------------------------------------------------------------

    def _ailing(self) -> str:
        if kind := self._relist.deaf:
            return f"no watch tells of {kind} any more"
        if self._leads[0] and len(self._queue) and time.time() - self._controller.last_tick > _STUCK_S:
            return f"nothing was taken out of the queue for {_STUCK_S:g} s"
        return ""

    def _unready(self) -> str:
        return "" if self._ready else "not everything has been listed yet"


async def _signal(ready: asyncio.Event) -> None:
    """Wait for the signal to stop; kopf, when it takes one itself, ends all tasks at once and lets none say goodbye."""
    await ready.wait()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
