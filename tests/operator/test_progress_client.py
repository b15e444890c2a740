"""Runners are asked over HTTP, and may answer anything."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from support import virtualtime

from tarmill_operator import progress_client
from tarmill_operator.cache import Cache
from tarmill_operator.model import Settings
from tarmill_operator.progress_client import Fetch, HttpFetch, ProgressClient, url_of

OWNER = "0000000a-0000-4000-8000-000000000000"


def pod(number: int, *, role: str = "runner", phase: str = "Running", attempt: int = 1, address: str = "") -> Any:
    labels = {"tarmill.dev/uid": OWNER, "tarmill.dev/role": role, "tarmill.dev/run": "1"}
    metadata = {
        "name": f"p{number}",
        "namespace": "team",
        "uid": f"p{number}",
        "resourceVersion": str(number + 1),
        "labels": labels | {"tarmill.dev/attempt": str(attempt)},
    }
    status = {"phase": phase, "podIP": address or f"10.0.0.{number}"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}


def test_each_running_runner_is_asked_and_news_wake_its_resource() -> None:
    async def story() -> None:
        cache, woken, asked = Cache(), [], []
        done = {"done": 1}

        async def fetch(url: str) -> dict[str, Any] | None:
            asked.append(url)
            if url.endswith(".3:8788/progress"):
                return None
            return {"format": 1, "shards": dict(done), "elapsedSeconds": len(asked)}

        for item in (pod(1), pod(2, role="worker"), pod(3, attempt=2), pod(4, phase="Succeeded")):
            cache.put(item)
        client = ProgressClient(cache, fetch, woken.append, every_s=5, per_second=10)
        running = asyncio.create_task(client.run())
        await asyncio.sleep(4)
        assert set(asked) == {"http://10.0.0.1:8788/progress", "http://10.0.0.3:8788/progress"}
        assert woken == [OWNER]
        await asyncio.sleep(5)
        assert asked.count("http://10.0.0.1:8788/progress") == 2
        assert woken == [OWNER]
        done["done"] = 2
        await asyncio.sleep(5)
        assert woken == [OWNER, OWNER]
        running.cancel()

        cache.put(
            {
                "apiVersion": "tarmill.dev/v1alpha1",
                "kind": "ShardMap",
                "metadata": {"name": "digits", "namespace": "team", "uid": OWNER, "resourceVersion": "50"},
                "spec": {},
                "status": {"run": 1, "attempt": 1},
            }
        )
        observed = cache.observe(OWNER, Settings("x"))
        assert observed is not None
        assert (client.of(observed) or {})["shards"] == {"done": 2}
        observed.resource["status"]["attempt"] = 2
        assert client.of(observed) is None

    virtualtime.run(story())


def asked_at(client_for: Callable[[Cache, Fetch], ProgressClient], count: int, seconds: float) -> list[list[float]]:
    """Let a client ask runners that are all there at its start; the times at which each was asked."""
    times: dict[str, list[float]] = {url_of(f"10.0.0.{number}"): [] for number in range(count)}

    async def story() -> None:
        cache = Cache()

        async def fetch(url: str) -> dict[str, Any]:
            times[url].append(asyncio.get_running_loop().time())
            return {"format": 1}

        for number in range(count):
            cache.put(pod(number))
        running = asyncio.create_task(client_for(cache, fetch).run())
        await asyncio.sleep(seconds)
        running.cancel()

    virtualtime.run(story())
    return list(times.values())


@pytest.mark.parametrize(("count", "every_s"), [(1, 5.0), (20, 5.0), (100, 25.0)])
def test_runners_are_asked_evenly_over_time_and_more_seldom_where_there_are_many(count: int, every_s: float) -> None:
    """All at once would be a burst of writes, behind which new resources wait."""
    times = asked_at(
        lambda cache, fetch: ProgressClient(cache, fetch, lambda uid: None, every_s=5, per_second=4), count, 300
    )
    for first, *later in times:
        assert first < 5  # all are new
        pauses = [after - before for before, after in itertools.pairwise(later)]
        assert len(pauses) >= 240 / (every_s + 1)
        assert all(every_s <= pause <= every_s + 1 for pause in pauses)
    per_second = Counter(int(time) for _, *later in times for time in later)
    assert max(per_second.values()) <= 4


def test_a_runner_that_comes_later_is_asked_before_those_that_have_said_something() -> None:
    async def story() -> None:
        cache, asked = Cache(), []

        async def fetch(url: str) -> dict[str, Any]:
            asked.append(url)
            return {"format": 1}

        for number in range(100):
            cache.put(pod(number))
        client = ProgressClient(cache, fetch, lambda uid: None, every_s=5, per_second=4)
        running = asyncio.create_task(client.run())
        await asyncio.sleep(60)
        assert client.every_s == 25
        cache.put(pod(100))
        asked.clear()
        await asyncio.sleep(1)
        assert url_of("10.0.0.100") in asked
        running.cancel()

    virtualtime.run(story())


def test_a_runner_that_only_begins_is_asked_again_a_second_later_until_it_says_something() -> None:
    async def story() -> list[float]:
        cache, asked = Cache(), []

        async def fetch(url: str) -> dict[str, Any] | None:
            asked.append(asyncio.get_running_loop().time())
            return {"format": 1} if len(asked) > 3 else None

        cache.put(pod(1))
        running = asyncio.create_task(ProgressClient(cache, fetch, lambda uid: None, every_s=5, per_second=4).run())
        await asyncio.sleep(12)
        running.cancel()
        return asked

    assert virtualtime.run(story()) == [0, 1, 2, 3, 8]


def test_a_runner_that_was_being_asked_when_asking_ended_is_asked_when_it_begins_again() -> None:
    async def story() -> int:
        cache, asked = Cache(), []

        async def fetch(url: str) -> dict[str, Any] | None:
            asked.append(url)
            await asyncio.sleep(1)
            return None

        cache.put(pod(1))
        client = ProgressClient(cache, fetch, lambda uid: None, every_s=5, per_second=4)
        for _ in range(2):
            running = asyncio.create_task(client.run())
            await asyncio.sleep(0.1)
            running.cancel()
            await asyncio.sleep(2)
        return len(asked)

    assert virtualtime.run(story()) == 2


def test_a_runner_that_hangs_is_asked_by_one_at_a_time_and_holds_nobody_up() -> None:
    async def story() -> None:
        cache, asked, at_a_time = Cache(), Counter[str](), Counter[str]()

        async def fetch(url: str) -> dict[str, Any] | None:
            asked[url] += 1
            at_a_time[url] += 1
            assert at_a_time[url] == 1
            hangs = url.endswith(".1:8788/progress")
            await asyncio.sleep(30 if hangs else 0)
            at_a_time[url] -= 1
            return None if hangs else {"format": 1}

        for number in (1, 2, 3):
            cache.put(pod(number))
        running = asyncio.create_task(ProgressClient(cache, fetch, lambda uid: None, every_s=5, per_second=4).run())
        await asyncio.sleep(100)
        running.cancel()
        hung, *others = sorted(asked.values())
        assert hung <= 4
        assert min(others) >= 18

    virtualtime.run(story())


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(body=b"{" * 100_000),
        lambda: web.Response(body=b'{"format": 1, "x": "' + b"a" * 100_000 + b'"}'),
        lambda: web.Response(text="[" * 50_000),
        lambda: web.Response(text="not JSON"),
        lambda: web.json_response([1]),
        lambda: web.json_response({"format": 2}),
        lambda: web.json_response({"format": 1}, status=500),
        lambda: web.Response(status=302, headers={"Location": "http://169.254.169.254/"}),
        lambda: web.Response(body=b"\xff\xfe\x00"),
        None,
    ],
)
def test_an_answer_that_is_none_is_taken_for_none(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_client, "_TIMEOUT_S", 0.2)

    async def story() -> tuple[Any, list[bool]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            if answer is None:
                await asyncio.sleep(5)
            return answer()

        application = web.Application()
        application.router.add_get("/progress", handle)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        seen: list[bool] = []
        fetch = HttpFetch(seen.append)
        try:
            return await fetch(f"http://127.0.0.1:{runner.addresses[0][1]}/progress"), seen
        finally:
            await fetch.close()
            await runner.cleanup()

    assert asyncio.run(story()) == (None, [False])


def test_an_address_that_nobody_is_at_gives_no_answer() -> None:
    async def story() -> Any:
        fetch = HttpFetch()
        try:
            return await fetch("http://127.0.0.1:1/progress")
        finally:
            await fetch.close()

    assert asyncio.run(story()) is None


def test_addresses_of_both_kinds() -> None:
    assert url_of("10.0.0.7") == "http://10.0.0.7:8788/progress"
    assert url_of("fd00::7") == "http://[fd00::7]:8788/progress"
