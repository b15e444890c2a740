"""The fake cluster behind HTTP, for tests of the operator's process: lists, watches, calls, runners to be asked."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from support.fakeapi import drive
from support.fakecluster import SHARDS, FakeCluster
from tarmill_operator.api import ApiError
from tarmill_operator.model import Ref, Resource
from tarmill_operator.names import plural
from tarmill_operator.watches import DASK_CLUSTERS, WATCHES

KINDS = {
    **{watch.kind: watch.api_version for watch in WATCHES},
    "Secret": "v1",
    "Lease": "coordination.k8s.io/v1",
    "Namespace": "v1",
    "CustomResourceDefinition": "apiextensions.k8s.io/v1",
    DASK_CLUSTERS.kind: DASK_CLUSTERS.api_version,
}
STEP_S = 0.25


class FakeServer:
    """Serves a fake cluster from a thread of its own, and moves it on.

    Args:
        folder: takes the kubeconfig.
        address: of loopback, where runners are to be asked.
    """

    def __init__(self, folder: Path, address: str) -> None:
        self.cluster = FakeCluster(time.time())
        self.address = address
        self.kubeconfig = folder / "kubeconfig"
        self.requests: list[tuple[str, str]] = []
        self.away = False
        """Whether requests are refused and watches are cut."""
        self.missing = {DASK_CLUSTERS.kind}
        """Kinds that nobody has installed."""
        self.lock = threading.RLock()
        self._log: list[tuple[int, str, Resource]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        config: dict[str, Any] = {
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u", "namespace": "tarmill-system"}}],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "u", "user": {"token": "secret-token"}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def phases(self, resource: Resource) -> list[str]:
        """Give the phases that a resource has been in."""
        self._take_log()
        uid = resource["metadata"]["uid"]
        told = [item.get("status", {}).get("phase", "") for _, _, item in self._log if item["metadata"]["uid"] == uid]
        return [phase for place, phase in enumerate(told) if phase and phase not in told[:place]]

    # ---- the server -------------------------------------------------------------------------------------------------

    async def _start(self) -> int:
        application = web.Application(middlewares=[self._refuse_when_away])
        application.router.add_get("/api", self._versions)
        application.router.add_get("/apis", self._groups)
        for group in ("/api/{version}", "/apis/{group}/{version}"):
            application.router.add_get(group, self._kinds)
            for place in (group, f"{group}/namespaces/{{namespace}}"):
                application.router.add_get(f"{place}/{{plural}}", self._list)
            place = f"{group}/namespaces/{{namespace}}/{{plural}}"
            application.router.add_post(place, self._create)
            application.router.add_get(f"{place}/{{name}}", self._get)
            application.router.add_put(f"{place}/{{name}}", self._put)
            application.router.add_put(f"{place}/{{name}}/status", self._put_status)
            application.router.add_patch(f"{place}/{{name}}", self._patch)
            application.router.add_delete(f"{place}/{{name}}", self._delete)
            application.router.add_get(f"{place}/{{name}}/log", self._log_of)
        self._api_server = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._api_server.setup()
        site = web.TCPSite(self._api_server, "127.0.0.1", 0)
        await site.start()
        runners = web.Application()
        runners.router.add_get("/progress", self._progress)
        self._runners = web.AppRunner(runners, access_log=None, shutdown_timeout=0.1)
        await self._runners.setup()
        await web.TCPSite(self._runners, self.address, 8788).start()
        self._moving = asyncio.create_task(self._move())
        return int(self._api_server.addresses[0][1])

    async def _stop(self) -> None:
        self._moving.cancel()
        self.away = True
        await self._runners.cleanup()
        await self._api_server.cleanup()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _move(self) -> None:
        while True:
            with self.lock:
                self.cluster.now = time.time()
                self.cluster.step()
                for pod in self.cluster.api.of("Pod"):
                    if pod["status"].get("podIP") == "10.0.0.1":
                        self.cluster.api.change(pod, lambda item: item["status"].update(podIP=self.address))
            await asyncio.sleep(STEP_S)

    @web.middleware
    async def _refuse_when_away(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs))
        if self.away:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=503)
        if request.headers.get("Authorization") != "Bearer secret-token":
            return _status(ApiError(401, "who are you?", "Unauthorized"))
        return await handler(request)

    async def _versions(self, request: web.Request) -> web.Response:
        return _json({"versions": ["v1"]})

    async def _groups(self, request: web.Request) -> web.Response:
        names = sorted({version for version in self._kinds_there().values() if "/" in version})
        versions = {name.partition("/")[0]: name.partition("/")[2] for name in names}
        groups = [
            {"name": group, "versions": [{"version": version}], "preferredVersion": {"version": version}}
            for group, version in versions.items()
        ]
        return _json({"groups": groups})

    async def _kinds(self, request: web.Request) -> web.Response:
        found = [
            {
                "name": plural(kind),
                "singularName": kind.lower(),
                "kind": kind,
                "namespaced": kind not in ("Namespace", "CustomResourceDefinition"),
                "verbs": ["get", "list", "watch", "create", "patch", "delete"],
            }
            for kind, version in self._kinds_there().items()
            if version == _version(request)
        ]
        return _json({"resources": found}) if found else _status(ApiError(404, "no such group", "NotFound"))

    def _kinds_there(self) -> dict[str, str]:
        return {kind: version for kind, version in KINDS.items() if kind not in self.missing}

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            return await self._watch(request)
        kind, namespace = _kind(request), request.match_info.get("namespace", "")
        with self.lock:
            listed = drive(self.cluster.api.list("", kind, namespace, labels=request.query.get("labelSelector", "")))
        items = [{name: value for name, value in item.items() if name != "kind"} for item in listed.items]
        return _json({"metadata": {"resourceVersion": listed.version}, "items": items})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        kind, namespace = _kind(request), request.match_info.get("namespace", "")
        label, since = request.query.get("labelSelector", ""), int(request.query["resourceVersion"])
        answer = web.StreamResponse()
        await answer.prepare(request)
        while not self.away:
            self._take_log()
            for version, type_, item in self._log:
                metadata = item["metadata"]
                chosen = item["kind"] == kind and namespace in ("", metadata["namespace"])
                if version > since and chosen and (not label or label in (metadata.get("labels") or {})):
                    await answer.write(json.dumps({"type": type_, "object": item}).encode() + b"\n")
            since = max([since, *(version for version, _, _ in self._log)])
            await asyncio.sleep(STEP_S / 10)
        if request.transport is not None:
            request.transport.abort()
        return answer

    def _take_log(self) -> None:
        with self.lock:
            for told in self.cluster.api.told.values():
                while told:
                    type_, item = told.popleft()
                    self._log.append((int(item["metadata"]["resourceVersion"]), type_, item))
            self._log.sort(key=lambda entry: entry[0])

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        return self._answer(self.cluster.api.create(body), 201)

    async def _get(self, request: web.Request) -> web.Response:
        return self._answer(self.cluster.api.get(request.match_info["namespace"], _ref(request)))

    async def _put(self, request: web.Request) -> web.Response:
        return self._answer(self.cluster.api.replace(await request.json()))

    async def _put_status(self, request: web.Request) -> web.Response:
        return self._answer(self.cluster.api.put_status(await request.json()))

    async def _patch(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/apply-patch+yaml"
        return self._answer(self.cluster.api.apply(json.loads(await request.text())))

    async def _delete(self, request: web.Request) -> web.Response:
        options = await request.json()
        assert options["propagationPolicy"] == "Background"
        uid = options.get("preconditions", {}).get("uid", "")
        ref = _ref(request)._replace(uid=uid)
        return self._answer(self.cluster.api.delete(request.match_info["namespace"], ref))

    async def _log_of(self, request: web.Request) -> web.Response:
        with self.lock:
            name = request.match_info["name"]
            text = drive(self.cluster.api.pod_log(request.match_info["namespace"], name, request.query["container"]))
        return web.Response(text=text)

    def _answer(self, call: Any, status: int = 200) -> web.Response:
        with self.lock:
            try:
                body = drive(call)
            except ApiError as error:
                return _status(error)
        return _json(body if body is not None else {"kind": "Status", "status": "Success"}, status)

    async def _progress(self, request: web.Request) -> web.Response:
        with self.lock:
            pods = self.cluster.running_runners()
            done = max((len(self.cluster.done_by(pod)) for pod in pods), default=0)
        shards = {"total": SHARDS, "done": done, "failed": 0}
        return _json({"format": 1, "phase": "running", "shards": shards, "elapsedSeconds": time.time()})


def _version(request: web.Request) -> str:
    group = request.match_info.get("group", "")
    return f"{group}/{request.match_info['version']}" if group else request.match_info["version"]


def _kind(request: web.Request) -> str:
    return next(kind for kind in KINDS if plural(kind) == request.match_info["plural"])


def _ref(request: web.Request) -> Ref:
    return Ref(_version(request), _kind(request), request.match_info["name"])


def _json(body: Any, status: int = 200) -> web.Response:
    return web.json_response(body, status=status)


def _status(error: ApiError) -> web.Response:
    headers = {"Retry-After": str(int(error.retry_after_s))} if error.retry_after_s else {}
    body = {"kind": "Status", "status": "Failure", "reason": error.reason, "message": error.message}
    return web.json_response(body, status=error.status, headers=headers)
