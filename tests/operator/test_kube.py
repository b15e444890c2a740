"""The caller of the Kubernetes API, against a server over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from support import virtualtime

from tarmill.errors import UsageError
from tarmill_operator import kube
from tarmill_operator.api import ApiError
from tarmill_operator.connection import Connection
from tarmill_operator.kube import Kube, path_of
from tarmill_operator.model import Ref
from tarmill_operator.rate_limit import RateLimit

JOB = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "namespace": "team"}}


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Do something with a client of a server that answers as told; give what it does, and what was asked."""

    def run(
        answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
        do: Callable[[Kube], Awaitable[Any]],
        limit: RateLimit | None = None,
    ) -> Any:
        async def story() -> Any:
            application = web.Application()
            application.router.add_route("*", "/{path:.*}", answer)
            runner = web.AppRunner(application)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            user = {"token": "t"}
            config = {
                "current-context": "x",
                "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
                "clusters": [{"name": "x", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}],
                "users": [{"name": "x", "user": user}],
            }
            (tmp_path / "config").write_text(yaml.safe_dump(config))
            monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
            seen: list[tuple[str, int]] = []
            client = Kube(
                Connection(), limit or RateLimit(1000, 1000), lambda verb, status: seen.append((verb, status))
            )
            try:
                return await do(client), seen
            finally:
                await client.close()
                await runner.cleanup()

        return asyncio.run(story())

    return run


def test_each_call_asks_for_what_kubernetes_knows_by_it(call: Callable[..., Any]) -> None:
    asked = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.text()
        asked.append(
            (request.method, request.path, dict(request.query), request.content_type, body and json.loads(body))
        )
        assert request.headers["Authorization"] == "Bearer t"
        if request.path.endswith("/log"):
            return web.Response(body=b"a\xff\n")
        return web.json_response({"metadata": {"name": "j"}})

    async def do(client: Kube) -> Any:
        await client.create(JOB)
        await client.apply(JOB)
        await client.put_status(JOB)
        await client.delete("team", Ref("batch/v1", "Job", "j", "7"))
        return await client.pod_log("team", "p", "runner", previous=True)

    log, seen = call(answer, do)
    jobs = "/apis/batch/v1/namespaces/team/jobs"
    manager = {"fieldManager": "tarmill-operator"}
    deletion = {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "propagationPolicy": "Background",
        "preconditions": {"uid": "7"},
    }
    assert asked[:4] == [
        ("POST", jobs, manager, "application/json", JOB),
        ("PATCH", f"{jobs}/j", manager | {"force": "true"}, "application/apply-patch+yaml", JOB),
        ("PUT", f"{jobs}/j/status", manager, "application/json", JOB),
        ("DELETE", f"{jobs}/j", {}, "application/json", deletion),
    ]
    assert asked[4][1:3] == (
        "/api/v1/namespaces/team/pods/p/log",
        {"container": "runner", "tailLines": "200", "limitBytes": "65536", "previous": "true"},
    )
    assert log == "a\ufffd\n"
    assert seen == [("create", 200), ("apply", 200), ("update_status", 200), ("delete", 200), ("log", 200)]


def test_a_long_list_is_read_page_by_page_and_its_items_are_told_their_kind(call: Callable[..., Any]) -> None:
    async def answer(request: web.Request) -> web.Response:
        assert (request.query["limit"], request.query["labelSelector"]) == ("500", "tarmill.dev/uid")
        last = request.query.get("continue") == "next"
        items = [{"metadata": {"name": "b" if last else "a"}}]
        metadata = {"resourceVersion": "7"} if last else {"resourceVersion": "7", "continue": "next"}
        return web.json_response({"metadata": metadata, "items": items})

    listed, _ = call(answer, lambda client: client.list("v1", "Pod", labels="tarmill.dev/uid"))
    assert listed.version == "7"
    assert [(item["kind"], item["metadata"]["name"]) for item in listed.items] == [("Pod", "a"), ("Pod", "b")]


def test_what_holds_an_object_back_is_told_after_its_deletion(call: Callable[..., Any]) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(
            {"kind": "Job", "metadata": {"name": "j", "deletionTimestamp": "2027-01-01T00:00:00Z"}}
        )

    left, _ = call(answer, lambda client: client.delete("team", Ref("batch/v1", "Job", "j")))
    assert left["metadata"]["name"] == "j"


@pytest.mark.parametrize(
    ("status", "body", "is_transient"),
    [
        (409, {"kind": "Status", "reason": "Conflict", "message": "modified"}, False),
        (422, {"kind": "Status", "reason": "Invalid", "message": "spec.x"}, False),
        (500, {"kind": "Status", "reason": "InternalError", "message": "etcd"}, True),
        (503, "upstream away", True),
        (401, {"reason": "Unauthorized", "message": "who?"}, True),
    ],
)
def test_a_refusal_is_an_error_with_the_server_s_own_words(
    call: Callable[..., Any], status: int, body: Any, is_transient: bool
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=body if isinstance(body, str) else json.dumps(body))

    with pytest.raises(ApiError) as caught:
        call(answer, lambda client: client.get("team", Ref("v1", "Pod", "p")))
    assert (caught.value.status, caught.value.is_transient) == (status, is_transient)
    assert caught.value.message == (body if isinstance(body, str) else body["message"])


def test_a_server_that_asks_to_be_left_alone_is(call: Callable[..., Any]) -> None:
    limit = RateLimit(1000, 1000)

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"message": "slow down"}, status=429, headers={"Retry-After": "7"})

    async def do(client: Kube) -> float:
        with pytest.raises(ApiError) as caught:
            await client.get("team", Ref("v1", "Pod", "p"))
        assert caught.value.retry_after_s == 7
        return limit._next - asyncio.get_running_loop().time()

    left, _ = call(answer, do, limit)
    assert 6 < left <= 7


def test_no_answer_is_an_error_after_a_time(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "_TIMEOUT_S", 0.05)
    monkeypatch.setattr(Kube._send, "__kwdefaults__", Kube._send.__kwdefaults__ | {"timeout_s": 0.05})

    given_up = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        await given_up.wait()
        return web.Response()

    async def do(client: Kube) -> None:
        with pytest.raises(ApiError) as caught:
            await client.get("team", Ref("v1", "Pod", "p"))
        given_up.set()
        assert (caught.value.status, caught.value.is_transient) == (0, True)

    _, seen = call(answer, do)
    assert seen == [("get", 0)]


def test_the_first_answer_after_none_ends_an_outage_however_short_it_was(call: Callable[..., Any]) -> None:
    turn = itertools.count()

    async def answer(request: web.Request) -> web.Response:
        if next(turn) in (1, 2, 4) and request.transport is not None:
            request.transport.abort()
        return web.json_response(JOB)

    async def do(client: Kube) -> list[int]:
        seen = []
        for _ in range(6):
            with contextlib.suppress(ApiError):
                await client.apply(JOB)  # what is not idempotent is not sent again by aiohttp
            seen.append(client.outages)
        return seen

    outages, _ = call(answer, do)
    assert outages == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        (("v1", "Pod", "", ""), "/api/v1/pods"),
        (
            ("networking.k8s.io/v1", "NetworkPolicy", "a", "b"),
            "/apis/networking.k8s.io/v1/namespaces/a/networkpolicies/b",
        ),
        (
            ("tarmill.dev/v1alpha1", "ShardMap", "a", "b/../c"),
            "/apis/tarmill.dev/v1alpha1/namespaces/a/shardmaps/b%2F..%2Fc",
        ),
    ],
)
def test_paths(reference: tuple[str, str, str, str], path: str) -> None:
    assert path_of(*reference) == path


def test_without_a_cluster_there_is_an_error_that_tells_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match="KUBECONFIG"):
        Connection()


def test_calls_come_at_once_after_a_quiet_time_and_then_at_their_rate() -> None:
    async def story() -> list[float]:
        limit = RateLimit(10, burst=3)
        await asyncio.sleep(100)
        times = []
        for _ in range(6):
            await limit.wait()
            times.append(round(asyncio.get_running_loop().time() - 100, 3))
        return times

    assert virtualtime.run(story()) == [0, 0, 0, 0.1, 0.2, 0.3]
