"""The one caller of the Kubernetes API: JSON over aiohttp, with limits on time and rate.

Not the official client: it adds 126 MB to the image and 34 MB to the process for classes of each kind, where plain JSON
is what we decide on, and it needs a thread for each call. kopf brings aiohttp, and reads kubeconfigs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import aiohttp

from tarmill_operator.api import ApiError, Listed, status_of
from tarmill_operator.connection import Connection
from tarmill_operator.model import Ref, Resource
from tarmill_operator.names import MANAGER, plural
from tarmill_operator.rate_limit import RateLimit

_TIMEOUT_S = 30.0
_LIST_TIMEOUT_S = 60.0
_LOG_TIMEOUT_S = 15.0
_PAGE = 500
LOG_LINES = 200
LOG_BYTES = 65_536

Observer = Callable[[str, int], None]
"""Told of each call: its verb, and the HTTP status of the answer, 0 for none."""


class Kube:
    """Speaks with an API server; see `Api` for what each call does.

    Args:
        connection: where, and as whom.
        limit: how often.
        observer: told of each call.
    """

    def __init__(
        self, connection: Connection, limit: RateLimit, observer: Observer = lambda verb, status: None
    ) -> None:
        self._connection = connection
        self._limit = limit
        self._observer = observer
        self._session: aiohttp.ClientSession | None = None
        self._away = False
        self.outages = 0
        """How often a call was answered after one that was not."""

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()

    async def get(self, namespace: str, ref: Ref) -> Resource:
        """Read one object."""
        return await self._ask("get", "GET", path_of(ref.api_version, ref.kind, namespace, ref.name))

    async def list(
        self, api_version: str, kind: str, namespace: str = "", *, labels: str = "", fields: str = ""
    ) -> Listed:
        """Read all objects of a kind, page by page."""
        parameters = {"limit": str(_PAGE)}
        if labels:
            parameters["labelSelector"] = labels
        if fields:
            parameters["fieldSelector"] = fields
        path = path_of(api_version, kind, namespace)
        items: list[Resource] = []
        while True:
            page = await self._ask("list", "GET", path, parameters=parameters, timeout_s=_LIST_TIMEOUT_S)
            items += [{"apiVersion": api_version, "kind": kind, **item} for item in page.get("items") or []]
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return Listed(items, str(metadata.get("resourceVersion", "")))
            parameters["continue"] = metadata["continue"]

    async def create(self, resource: Resource) -> Resource:
        """Create an object."""
        metadata = resource["metadata"]
        path = path_of(resource["apiVersion"], resource["kind"], metadata["namespace"])
        return await self._ask("create", "POST", path, body=resource, parameters={"fieldManager": MANAGER})

    async def apply(self, resource: Resource) -> Resource:
        """Apply the fields given, by server-side apply."""
        parameters = {"fieldManager": MANAGER, "force": "true"}
        # a JSON document is a YAML document
        kind = "application/apply-patch+yaml"
        return await self._ask("apply", "PATCH", _path(resource), body=resource, parameters=parameters, content=kind)

    async def replace(self, resource: Resource) -> Resource:
        """Replace an object."""
        return await self._ask("update", "PUT", _path(resource), body=resource, parameters={"fieldManager": MANAGER})

    async def put_status(self, resource: Resource) -> Resource:
        """Replace an object's status."""
        path = f"{_path(resource)}/status"
        return await self._ask("update_status", "PUT", path, body=resource, parameters={"fieldManager": MANAGER})

    async def delete(self, namespace: str, ref: Ref) -> Resource | None:
        """Delete an object, and what it owns in the background."""
        body: Resource = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if ref.uid:
            body["preconditions"] = {"uid": ref.uid}
        path = path_of(ref.api_version, ref.kind, namespace, ref.name)
        answer = await self._ask("delete", "DELETE", path, body=body)
        left = (answer.get("metadata") or {}).get("deletionTimestamp") is not None
        return {"apiVersion": ref.api_version, "kind": ref.kind, **answer} if left else None

    async def pod_log(self, namespace: str, pod: str, container: str, *, previous: bool = False) -> str:
        """Read the last lines of a container."""
        parameters = {"container": container, "tailLines": str(LOG_LINES), "limitBytes": str(LOG_BYTES)}
        if previous:
            parameters["previous"] = "true"
        path = f"{path_of('v1', 'Pod', namespace, pod)}/log"
        text = await self._send("log", "GET", path, parameters=parameters, timeout_s=_LOG_TIMEOUT_S)
        return text.decode("utf-8", "replace")

    async def kinds(self, api_version: str) -> set[str]:
        """Name the kinds of an API group's version."""
        try:
            found = await self._ask("discover", "GET", f"/apis/{api_version}")
        except ApiError as error:
            if error.status == 404:
                return set()
            raise
        return {str(resource["kind"]) for resource in found.get("resources") or []}

    async def _ask(self, verb: str, method: str, path: str, **more: Any) -> Resource:
        body = json.loads(await self._send(verb, method, path, **more))
        return body if isinstance(body, dict) else {}

    async def _send(
        self,
        verb: str,
        method: str,
        path: str,
        *,
        body: Resource | None = None,
        parameters: dict[str, str] | None = None,
        content: str = "application/json",
        timeout_s: float = _TIMEOUT_S,
    ) -> bytes:
        await self._limit.wait()
        status = 0
        try:
            async with self._open().request(
                method,
                self._connection.server + path,
                params=parameters,
                data=None if body is None else json.dumps(body).encode(),
                headers={**self._connection.headers(), "Content-Type": content},
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as answer:
                status = answer.status
                data = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._away = True
            raise ApiError(0, f"{method} {path}: {str(error) or type(error).__name__}") from error
        finally:
            self._observer(verb, status)
        self.outages += self._away
        self._away = False
        if status >= 400:
            raise self._error(status, data, answer.headers.get("Retry-After"))
        return data

    def _error(self, status: int, data: bytes, retry_after: str | None) -> ApiError:
        try:
            reason, message = status_of(json.loads(data))
        except ValueError:
            reason, message = "", data.decode("utf-8", "replace")[:500]
        seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
        if status == 401:
            self._connection.reload()
        if status == 429:
            self._limit.keep_still(seconds or 1.0)
        return ApiError(status, message, reason, seconds)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=32, ssl=self._connection.tls())
            self._session = aiohttp.ClientSession(connector=connector, headers={"User-Agent": MANAGER})
        return self._session


def path_of(api_version: str, kind: str, namespace: str, name: str = "") -> str:
    """Give the path of an object, or of all of a kind; of all namespaces where none is named."""
    group = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
    place = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    path = f"{group}{place}/{plural(kind)}"
    return f"{path}/{quote(name, safe='')}" if name else path


def _path(resource: Resource) -> str:
    metadata = resource["metadata"]
    return path_of(resource["apiVersion"], resource["kind"], metadata["namespace"], metadata["name"])
