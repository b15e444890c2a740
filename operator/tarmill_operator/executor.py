"""Carries out what `reconcile` decided, call by call, in an order in which each can be the last.

The first call that fails ends it; what is left is decided again. Answers go into the cache at once, so that the next
decision knows of them before any watch tells.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from tarmill_operator.api import Api, ApiError
from tarmill_operator.cache import Cache
from tarmill_operator.children import Children
from tarmill_operator.contents import filled
from tarmill_operator.model import Cause, Decision, Observed, Ref, Resource
from tarmill_operator.names import UID_LABEL, is_owned_by
from tarmill_operator.notices import Notices
from tarmill_operator.refusals import cause_of_refusal, name_conflict
from tarmill_operator.watches import JOBS, PODS

log = logging.getLogger(__name__)


class LookAgain(Exception):
    """Something was not as it had been seen; it is known now."""


class NamespaceEnds(Exception):
    """The namespace is being deleted, and the resource will be."""


class Executor:
    """Makes decisions true.

    Args:
        api: the API server.
        cache: takes the answers.
        notices: posts Events.
        wake: told the uids of other resources that an answer is about: those that wait for one to be complete.
    """

    def __init__(self, api: Api, cache: Cache, notices: Notices, wake: Callable[[str], None]) -> None:
        self._api = api
        self._cache = cache
        self._notices = notices
        self._wake = wake

    async def carry_out(self, observed: Observed, decision: Decision) -> Cause | None:
        """Do what was decided; it may be done again after any failure.

        Returns:
            Why the API server refuses what was to be applied, if it does.

        Raises:
            ApiError: a call failed in a way that may pass.
            LookAgain: what was decided on has changed.
            NamespaceEnds: nothing can be made there any more.
        """
        resource = observed.resource
        if decision.status != (resource.get("status") or {}):
            resource = await self._store(resource, decision.status)
            for notice in decision.notices:
                await self._notices.post(resource, notice)
        if decision.logs:
            await self._keep_logs(observed, decision)
        refusal = None
        for wanted in decision.apply:
            if refusal := await self._apply(resource, wanted):
                break
        for ref in decision.delete:
            await self._delete(resource, ref)
        if decision.delete_resource:
            metadata = resource["metadata"]
            await self._delete(
                resource, Ref(resource["apiVersion"], resource["kind"], metadata["name"], metadata["uid"])
            )
        return refusal

    async def look_closer(self, resource: Resource) -> None:
        """Read Jobs and pods of a resource from the API server into the cache."""
        uid, namespace = resource["metadata"]["uid"], resource["metadata"]["namespace"]
        for watch in (JOBS, PODS):
            listed = await self._api.list(watch.api_version, watch.kind, namespace, labels=f"{UID_LABEL}={uid}")
            self._cache.correct(watch.kind, listed.items, listed.version, lambda item: _belongs_to(item, uid))

    async def _store(self, resource: Resource, status: dict[str, Any]) -> Resource:
        try:
            answer = await self._api.put_status({**resource, "status": status})
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            await self._read_again(resource)
            raise LookAgain from error
        self._wake_others(resource, self._cache.put(answer))
        return answer

    def _wake_others(self, resource: Resource, uids: set[str]) -> None:
        for uid in uids - {resource["metadata"]["uid"]}:
            self._wake(uid)

    async def _read_again(self, known: Resource) -> None:
        metadata = known["metadata"]
        try:
            there = await self._api.get(
                metadata["namespace"], Ref(known["apiVersion"], known["kind"], metadata["name"])
            )
        except ApiError as error:
            if error.status != 404:
                raise
            there = None
        if there is None or there["metadata"]["uid"] != metadata["uid"]:
            self._wake_others(known, self._cache.remove(known))
        if there is not None:
            self._wake_others(known, self._cache.put(there))

    async def _apply(self, resource: Resource, wanted: Resource) -> Cause | None:
        metadata = wanted["metadata"]
        try:
            if "uid" in metadata:
                answer = await self._api.apply(wanted)
            else:
                made = await filled(self._api, wanted)
                if isinstance(made, Cause):
                    return made
                answer = await self._api.create(made)
        except ApiError as error:
            if error.is_transient:
                raise
            if error.is_farewell:
                raise NamespaceEnds from error
            if error.status == 409:
                return await self._look_at_namesake(resource, wanted, error)
            return cause_of_refusal(error, wanted)
        if wanted["kind"] != "Secret":
            self._cache.put(answer)
        return None

    async def _look_at_namesake(self, resource: Resource, wanted: Resource, error: ApiError) -> Cause | None:
        """Tell what is in the way: ours, which the cache did not know, or another's."""
        if wanted["kind"] == "Secret":  # nobody here may read one; were it another's, the pods would say what it lacks
            return None
        metadata = wanted["metadata"]
        namespace, ref = metadata["namespace"], Ref(wanted["apiVersion"], wanted["kind"], metadata["name"])
        try:
            there = await self._api.get(namespace, ref)
        except ApiError as second:
            if second.status == 404:
                raise LookAgain from error
            raise
        if not is_owned_by(there, resource["metadata"]["uid"]):
            return name_conflict(wanted)
        self._cache.put(there)
        raise LookAgain from error

    async def _delete(self, resource: Resource, ref: Ref) -> None:
        namespace = resource["metadata"]["namespace"]
        try:
            left = await self._api.delete(namespace, ref)
        except ApiError as error:
            if error.status == 409 and not (ref.uid and await self._is_another(namespace, ref)):
                raise LookAgain from error
            if error.status not in (404, 409):
                raise
            left = None
        if left is not None:
            self._cache.put(left)
        elif ref.uid:
            self._wake_others(resource, self._cache.forget(ref))

    async def _is_another(self, namespace: str, ref: Ref) -> bool:
        try:
            there = await self._api.get(namespace, ref)
        except ApiError as error:
            if error.status == 404:
                return True
            raise
        return bool(there["metadata"]["uid"] != ref.uid)

    async def _keep_logs(self, observed: Observed, decision: Decision) -> None:
        """Keep the last lines of pods before they go; whatever that fails for must not keep what follows from it."""
        resource = observed.resource
        namespace = resource["metadata"]["namespace"]
        pods = {pod["metadata"]["name"]: pod for pod in observed.pods}
        lines = {f"{name}.log": await self._log_of(namespace, pods[name]) for name in decision.logs if name in pods}
        refusal: object = None
        try:
            if observed.child("ConfigMap", decision.logs_name) is None:
                made = Children(resource, observed.settings, int(decision.status["run"])).logs(lines)
                refusal = await self._apply(resource, made)
            else:
                there = await self._api.get(namespace, Ref("v1", "ConfigMap", decision.logs_name))
                there["data"] = {**(there.get("data") or {}), **lines}
                self._cache.put(await self._api.replace(there))
        except ApiError as error:
            if error.is_transient:
                raise
            refusal = error
        if refusal is not None:
            log.warning("the last lines of %s cannot be kept: %s", ", ".join(decision.logs), refusal)

    async def _log_of(self, namespace: str, pod: Resource) -> str:
        name = pod["metadata"]["name"]
        for container in pod.get("status", {}).get("containerStatuses") or []:
            ended, before = (
                ((container.get(state) or {}).get("terminated") or {}).get("exitCode")
                for state in ("state", "lastState")
            )
            if ended or before:
                try:
                    return await self._api.pod_log(namespace, name, container["name"], previous=not ended)
                except ApiError as error:
                    return f"(its log could not be read: {error})\n"
        return "(it has left no log)\n"


def _belongs_to(item: Resource, uid: str) -> bool:
    return bool((item["metadata"].get("labels") or {}).get(UID_LABEL) == uid)
