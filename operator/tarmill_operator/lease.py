"""Of several operators one acts: the one that holds a Lease, as Kubernetes' own controllers agree.

A holder whose renewals do not get through in time stops before another may begin; clocks of other machines are not
trusted: a Lease has run out when it was not renewed for its duration by our own clock.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tarmill_operator.api import Api, ApiError
from tarmill_operator.model import Ref, Resource
from tarmill_operator.names import MANAGED_BY
from tarmill_operator.times import to_micro_text

log = logging.getLogger(__name__)

API_VERSION = "coordination.k8s.io/v1"
DURATION_S = 15.0
GIVE_UP_S = 10.0
"""How long after the last renewal a holder still acts: calls that it has begun by then end before the Lease does."""
RETRY_S = 2.0


class Lost(Exception):
    """Another operator may act from now on."""


class Seen(NamedTuple):
    """A Lease as it was seen, and when it was seen to change."""

    version: str = ""
    since: float = 0.0


def may_take(lease: Resource, identity: str, seen: Seen, now: float) -> bool:
    """Tell whether a Lease is ours, free, or run out.

    Args:
        lease: as the API server holds it.
        identity: ours.
        seen: when it was seen to change last.
        now: by the same clock.
    """
    spec = lease.get("spec") or {}
    holder = spec.get("holderIdentity") or ""
    if holder in ("", identity):
        return True
    return seen.version != "" and now - seen.since > float(spec.get("leaseDurationSeconds") or DURATION_S)


def taken(lease: Resource, identity: str, now: float) -> Resource:
    """Give the Lease as it is when we hold it from `now`, seconds since 1970."""
    before = lease.get("spec") or {}
    text = to_micro_text(now)
    spec: dict[str, Any] = {
        "holderIdentity": identity,
        "leaseDurationSeconds": int(DURATION_S),
        "renewTime": text,
        "acquireTime": before.get("acquireTime") or text,
        "leaseTransitions": before.get("leaseTransitions") or 0,
    }
    if before.get("holderIdentity") != identity:
        spec |= {"acquireTime": text, "leaseTransitions": spec["leaseTransitions"] + 1}
    return {**lease, "spec": spec}


class Election:
    """Takes part in the election.

    Args:
        api: the API server.
        namespace, name: of the Lease.
        identity: ours, no other process's.
        clock: gives seconds since 1970.
    """

    def __init__(
        self, api: Api, namespace: str, name: str, identity: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._ref = Ref(API_VERSION, "Lease", name)
        self._identity = identity
        self._clock = clock
        self._seen = Seen()

    async def win(self) -> None:
        """Wait until the Lease is ours."""
        told = ""
        while True:
            try:
                holder = await self._try()
            except ApiError as error:
                holder = f"nobody knows ({error})"
            if holder == self._identity:
                log.info("%s leads", self._identity)
                return
            if holder != told:
                log.info("waiting for the Lease %s/%s, which %s holds", self._namespace, self._ref.name, holder)
                told = holder
            await asyncio.sleep(RETRY_S * random.uniform(0.8, 1.2))

    async def keep(self) -> None:
        """Renew it for ever.

        Raises:
            Lost: another holds it, or it could not be renewed in time.
        """
        renewed = _now()
        while True:
            await asyncio.sleep(RETRY_S)
            begun = _now()
            try:
                async with asyncio.timeout(max(0.0, renewed + GIVE_UP_S - begun)):
                    holder = await self._try()
            except (ApiError, TimeoutError) as error:
                if _now() - renewed >= GIVE_UP_S:
                    raise Lost(f"the Lease could not be renewed for {GIVE_UP_S:g} s: {error}") from error
                log.warning("the Lease could not be renewed, which is tried again: %s", error)
                continue
            if holder != self._identity:
                raise Lost(f"{holder} holds the Lease now")
            renewed = begun

    async def release(self) -> None:
        """Give the Lease back, so that the next one need not wait; where that fails it runs out by itself."""
        try:
            lease = await self._api.get(self._namespace, self._ref)
            if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                await self._api.replace({**lease, "spec": {**lease["spec"], "holderIdentity": ""}})
        except ApiError as error:
            log.info("the Lease was not given back: %s", error)

    async def _try(self) -> str:
        """Take or renew the Lease if we may; tells who holds it then."""
        try:
            lease = await self._api.get(self._namespace, self._ref)
        except ApiError as error:
            if error.status != 404:
                raise
            await self._api.create(self._new())
            return self._identity
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen.version:
            self._seen = Seen(version, _now())
        if not may_take(lease, self._identity, self._seen, _now()):
            return str(lease["spec"]["holderIdentity"])
        answer = await self._api.replace(taken(lease, self._identity, self._clock()))
        self._seen = Seen(answer["metadata"]["resourceVersion"], _now())
        return self._identity

    def _new(self) -> Resource:
        metadata = {"name": self._ref.name, "namespace": self._namespace, "labels": dict(MANAGED_BY)}
        return taken({"apiVersion": API_VERSION, "kind": "Lease", "metadata": metadata}, self._identity, self._clock())


def _now() -> float:
    return asyncio.get_running_loop().time()
