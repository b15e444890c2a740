"""Events about resources, in Kubernetes' style: what happened, for people who look with `kubectl describe`."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable

from tarmill_operator.api import Api, ApiError
from tarmill_operator.model import Notice, Resource
from tarmill_operator.names import MANAGER
from tarmill_operator.times import to_text

log = logging.getLogger(__name__)

_QUIET_S = 600.0
"""How long the same is not told again."""
_REMEMBERED = 4096
_MAX_MESSAGE = 1024


class Notices:
    """Posts Events; one that cannot be posted is logged, and holds nothing up.

    Args:
        api: the API server.
        instance: who tells, a pod's name.
        clock: gives seconds since 1970.
    """

    def __init__(self, api: Api, instance: str, clock: Callable[[], float]) -> None:
        self._api = api
        self._instance = instance
        self._clock = clock
        self._told: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    async def post(self, resource: Resource, notice: Notice) -> None:
        """Tell something, unless it was told a moment ago."""
        key = (resource["metadata"]["uid"], notice.reason, notice.message)
        now = self._clock()
        if now - self._told.get(key, -_QUIET_S) < _QUIET_S:
            return
        self._told[key] = now
        self._told.move_to_end(key)
        if len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
        try:
            await self._api.create(event_about(resource, notice, self._instance, now))
        except ApiError as error:
            level = logging.DEBUG if error.is_farewell else logging.WARNING
            log.log(level, "Event %s about %s was not posted: %s", notice.reason, resource["metadata"]["name"], error)


def event_about(resource: Resource, notice: Notice, instance: str, now: float) -> Resource:
    """Make an Event."""
    metadata = resource["metadata"]
    mark = hashlib.sha256(f"{metadata['uid']} {notice.reason} {notice.message} {now}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{mark}", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": resource["apiVersion"],
            "kind": resource["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata.get("resourceVersion", ""),
        },
        "reason": notice.reason,
        "message": notice.message[:_MAX_MESSAGE],
        "type": "Warning" if notice.warning else "Normal",
        "firstTimestamp": to_text(now),
        "lastTimestamp": to_text(now),
        "count": 1,
        "source": {"component": MANAGER, "host": instance},
        "reportingComponent": MANAGER,
        "reportingInstance": instance,
    }
