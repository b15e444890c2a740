"""A simulated node: pods that are bound to it run for some seconds and end well, without any container.

A simulation of our own, not kwok: the operator reads the runner's last words from the termination message and asks
running pods for their progress over HTTP, and both must be what a runner would say.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from cluster.client import MERGE, ApiError, Client, Object
from tarmill_operator.names import ROLE_LABEL, RUNNER, STATUS_PORT

NAME = "simulated"
START_S, STOP_S = 1.0, 0.3
HEARTBEAT_S = 8.0
SHARDS = 10


class SimulatedNode:
    """One node with room for all.

    Args:
        client: of the API server.
        address: of this machine, from where progress is told for all its pods.
        run_s: how long a runner takes.
    """

    def __init__(self, client: Client, address: str, run_s: float) -> None:
        self._client = client
        self._address = address
        self._run_s = run_s
        self._known: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve for ever."""
        await self._register()
        application = web.Application()
        application.router.add_get("/progress", self._progress)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._address, STATUS_PORT).start()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._beat())
                group.create_task(self._follow_pods())
        finally:
            await runner.cleanup()

    async def _register(self) -> None:
        labels = {"kubernetes.io/hostname": NAME, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
        await self._client.call(
            "POST", "/api/v1/nodes", {"kind": "Node", "apiVersion": "v1", "metadata": {"name": NAME, "labels": labels}}
        )
        room = {"cpu": "10k", "memory": "100Ti", "pods": "100k", "ephemeral-storage": "100Ti"}
        conditions = [
            {"type": "Ready", "status": "True", "reason": "Simulated", "message": "", "lastHeartbeatTime": _now()}
        ]
        status = {"capacity": room, "allocatable": room, "conditions": conditions}
        await self._client.call("PATCH", f"/api/v1/nodes/{NAME}/status", {"status": status}, MERGE)

    async def _beat(self) -> None:
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        lease: Object = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": NAME},
            "spec": {"holderIdentity": NAME, "leaseDurationSeconds": 40},
        }
        await self._client.call("POST", path, lease)
        while True:
            renewed = {"spec": {"renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}}
            await self._client.call("PATCH", f"{path}/{NAME}", renewed, MERGE)
            await asyncio.sleep(HEARTBEAT_S)

    async def _follow_pods(self) -> None:
        async for type_, pod in self._client.watch("/api/v1/pods", f"fieldSelector=spec.nodeName%3D{NAME}"):
            uid = pod["metadata"]["uid"]
            if type_ == "DELETED":
                continue
            if pod["metadata"].get("deletionTimestamp"):
                self._once(uid, "end", self._let_go(pod))
            elif pod["status"].get("phase") == "Pending":
                self._once(uid, "start", self._live(pod))

    def _once(self, uid: str, what: str, story: Coroutine[Any, Any, None]) -> None:
        if (uid, what) in self._known:
            story.close()
            return
        self._known.add((uid, what))
        task = asyncio.create_task(_unless_gone(story))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, pod: Object) -> None:
        """Start a pod's containers; those of a runner end well after a while."""
        await asyncio.sleep(START_S)
        started = _now()
        await self._tell(pod, "Running", {"running": {"startedAt": started}}, ready="True")
        if pod["metadata"].get("labels", {}).get(ROLE_LABEL) != RUNNER:
            return
        await asyncio.sleep(self._run_s)
        ended = {
            "exitCode": 0,
            "reason": "Completed",
            "startedAt": started,
            "finishedAt": _now(),
            "message": json.dumps(last_words()),
        }
        await self._tell(pod, "Succeeded", {"terminated": ended}, ready="False")

    async def _let_go(self, pod: Object) -> None:
        await asyncio.sleep(STOP_S)
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        await self._client.call("DELETE", _path(pod), options)

    async def _tell(self, pod: Object, phase: str, state: Object, *, ready: str) -> None:
        containers = [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": container["image"],
                "ready": ready == "True",
                "restartCount": 0,
                "state": state,
            }
            for container in pod["spec"]["containers"]
        ]
        conditions = [
            {"type": type_, "status": status, "lastTransitionTime": _now()}
            for type_, status in (
                ("PodScheduled", "True"),
                ("Initialized", "True"),
                ("ContainersReady", ready),
                ("Ready", ready),
            )
        ]
        status = {
            "phase": phase,
            "hostIP": self._address,
            "podIP": self._address,
            "podIPs": [{"ip": self._address}],
            "startTime": _now(),
            "conditions": conditions,
            "containerStatuses": containers,
        }
        await self._client.call("PATCH", f"{_path(pod)}/status", {"status": status}, MERGE)

    async def _progress(self, request: web.Request) -> web.Response:
        """Tell something new each time: the operator writes a status for it, which is the worst case."""
        done = time.monotonic_ns() // 1_000_000
        return web.json_response(
            {
                "format": 1,
                "phase": "running",
                "stage": "mapping",
                "shards": {"total": SHARDS, "done": done % SHARDS, "failed": 0, "running": 1},
                "samples": {"read": done, "written": done},
                "bytes": {"read": done, "written": done, "total": 2 * done},
                "elapsedSeconds": 1.0,
                "etaSeconds": 10,
                "workers": 2,
                "lastProgressTime": _now(),
                "failures": [],
            }
        )


async def _unless_gone(story: Coroutine[Any, Any, None]) -> None:
    try:
        await story
    except ApiError as error:
        if error.status not in (404, 409):  # deleted meanwhile
            raise


def last_words() -> Object:
    """What a runner that has done its job leaves as its termination message."""
    return {
        "format": 1,
        "outcome": "succeeded",
        "exitCode": 0,
        "job": "0123456789abcdef",
        "reason": "",
        "message": "",
        "shards": {"total": SHARDS, "done": SHARDS, "failed": 0},
        "samples": {"read": 1000, "written": 1000},
        "bytes": {"read": 10**6, "written": 10**6, "total": 10**6},
        "dropped": {},
        "manifest": "http://store/out.manifest.json",
        "report": "",
        "failures": [],
    }


def _path(pod: Object) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
