"""kopf's part: its watches tell the cache, by handlers of events, which write nothing anywhere.

No other kind of handler: those would keep their state in annotations and finalizers of the resources.

It is the handlers' filters that tell: kopf asks them about each event, and since they let none through, it prepares no
call (outcomes, errors, another try), which costs more CPU time than what is done with the event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import kopf

from tarmill_operator.model import Resource
from tarmill_operator.names import LABEL, plural
from tarmill_operator.watches import Watch

Told = Callable[[str, Resource], None]
"""Takes what a watch tells: "ADDED", "MODIFIED", "DELETED", or "LISTED" where a watch begins; and the object."""


def register(registry: kopf.OperatorRegistry, watches: Iterable[Watch], told: Told) -> None:
    """Make kopf watch, and tell of each event.

    Args:
        registry: of kopf.
        watches: what to watch.
        told: takes what is told.
    """
    for watch in watches:
        group, _, version = watch.api_version.rpartition("/")
        kopf.on.event(
            group=group,
            version=version,
            plural=plural(watch.kind),
            id=f"watch-{watch.kind}",
            when=_filter(watch, told),
            registry=registry,
        )(_handle)


def _filter(watch: Watch, told: Told) -> Any:
    def tell(event: Any, **_: Any) -> bool:
        # items of a list lack these two
        told(event["type"] or "LISTED", {**event["object"], "apiVersion": watch.api_version, "kind": watch.kind})
        return False

    return tell


def _handle(**_: Any) -> None:
    raise AssertionError("the filter lets no event through")


def settings_for(watches: Iterable[Watch]) -> kopf.OperatorSettings:
    """Make kopf's settings: watches that reconnect, selected by the server; no posting, no peers, nothing scanned."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True  # no rights on namespaces and definitions are needed then
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 30
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    settings.queueing.idle_timeout = 3.0  # of a task for each object; news of one come within some seconds
    settings.queueing.exit_timeout = 0.5
    settings.process.ultimate_exiting_timeout = 10
    # never written, but nothing of ours should ever carry kopf's own names
    settings.persistence.finalizer = f"{LABEL}operator"
    settings.persistence.progress_storage = _NoProgress()
    settings.persistence.diffbase_storage = _NoDiffs()
    for watch in watches:
        key = (*watch.api_version.rpartition("/")[::2], plural(watch.kind))
        if watch.labels:
            settings.watching.label_selectors[key] = watch.labels
        if watch.fields:
            settings.watching.field_selectors[key] = watch.fields
    return settings


class _NoDiffs(kopf.DiffBaseStorage):
    """Tells kopf that nothing ever differs: to find out it would copy each object twice, a third of our CPU time."""

    def build(self, *, body: Any, extra_fields: Any = None) -> Any:
        return {}

    def fetch(self, *, body: Any) -> Any:
        return None

    def store(self, *, body: Any, patch: Any, essence: Any) -> None:
        raise AssertionError("handlers of events change nothing")


class _NoProgress(kopf.ProgressStorage):
    """Has nothing to keep: handlers of events are never tried again."""

    def fetch(self, *, key: Any, body: Any) -> Any:
        return None

    def store(self, *, key: Any, record: Any, body: Any, patch: Any) -> None:
        raise AssertionError("handlers of events have no progress")

    def purge(self, *, key: Any, body: Any, patch: Any) -> None:
        pass

    def touch(self, *, body: Any, patch: Any, value: Any) -> None:
        pass

    def clear(self, *, essence: Any) -> Any:
        return essence
