from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from support.virtualtime import run

from tarmill_operator.work_queue import LAST_BACKOFF_S, WorkQueue, run_workers


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_key_that_is_added_often_is_given_out_once() -> None:
    async def story() -> list[str]:
        queue = WorkQueue()
        for key in ("a", "b", "a", "a"):
            queue.add(key)
        assert len(queue) == 2
        taken = [await queue.take(), await queue.take()]
        assert len(queue) == 0
        return taken

    assert run(story()) == ["a", "b"]


def test_of_several_delays_the_shortest_counts() -> None:
    async def story() -> float:
        queue = WorkQueue()
        queue.add("a", 60)
        queue.add("a", 5)
        queue.add("a", 30)
        await queue.take()
        return now()

    assert run(story()) == 5


def test_a_head_start_overtakes_what_has_waited_for_less_and_no_more() -> None:
    async def story() -> list[str]:
        queue = WorkQueue()
        queue.add("has waited")
        await asyncio.sleep(20)
        queue.add("waits")
        await asyncio.sleep(5)
        queue.add("new", -10)
        return [await queue.take() for _ in range(3)]

    assert run(story()) == ["has waited", "new", "waits"]


def test_a_head_start_ends_no_pause_after_a_failure() -> None:
    async def story() -> float:
        queue = WorkQueue(jitter=lambda: 0.0)
        queue.add("a")
        await queue.take()
        queue.failed("a", at_least_s=7)
        queue.add("a", -10)
        await queue.take()
        return now()

    assert run(story()) == 7


def test_a_worker_that_ends_while_it_waits_takes_nothing_with_it() -> None:
    async def story() -> str:
        queue = WorkQueue()
        first, second = (asyncio.create_task(queue.take()) for _ in range(2))
        await asyncio.sleep(1)
        first.cancel()
        await asyncio.sleep(1)
        queue.add("a")
        return await second

    assert run(story()) == "a"


def test_a_key_added_while_a_worker_has_it_comes_again_when_it_is_given_back() -> None:
    async def story() -> None:
        queue = WorkQueue()
        queue.add("a")
        queue.add("b")
        assert await queue.take() == "a"
        queue.add("a")
        assert await queue.take() == "b"
        other = asyncio.create_task(queue.take())
        await asyncio.sleep(100)
        assert not other.done()
        queue.done("a")
        assert await other == "a"

    run(story())


def test_pauses_after_failures_double_up_to_five_minutes_and_end_with_success() -> None:
    async def story() -> tuple[list[float], float]:
        queue = WorkQueue(jitter=lambda: 0.0)
        queue.add("a")
        pauses = []
        for _ in range(12):
            await queue.take()
            pauses.append(queue.failed("a"))
        await queue.take()
        queue.done("a", 1.0)
        await queue.take()
        return pauses, queue.failed("a")

    pauses, first = run(story())
    assert pauses[:5] == [1, 2, 4, 8, 16]
    assert pauses[-1] == LAST_BACKOFF_S
    assert first == 1


def test_a_key_that_failed_waits_for_its_pause_whatever_is_told_meanwhile() -> None:
    async def story() -> float:
        queue = WorkQueue(jitter=lambda: 0.0)
        queue.add("a")
        await queue.take()
        queue.add("a")
        queue.failed("a", at_least_s=7)
        queue.add("a")
        await queue.take()
        return now()

    assert run(story()) == 7


def test_pauses_end_when_what_failed_is_mended() -> None:
    async def story() -> float:
        queue = WorkQueue(jitter=lambda: 0.5)
        queue.add("a")
        for _ in range(10):
            await queue.take()
            queue.failed("a")
        before = now()
        queue.end_pauses()
        await queue.take()
        return now() - before

    assert run(story()) == 1.5


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 20), st.booleans()), max_size=40), st.integers(1, 4))
def test_no_key_is_with_two_workers_and_none_is_lost(adds: list[tuple[str, float, bool]], workers: int) -> None:
    async def story() -> None:
        queue = WorkQueue()
        busy: set[str] = set()
        added: dict[str, float] = {}
        begun: dict[str, float] = {}

        async def work(key: str) -> None:
            assert key not in busy
            busy.add(key)
            begun[key] = now()
            await asyncio.sleep(3)
            busy.remove(key)
            fails = next((fails for name, _, fails in adds if name == key), False)
            if fails and now() < 100:
                queue.failed(key)
            else:
                queue.done(key)

        running = asyncio.create_task(run_workers(queue, workers, work))
        for key, delay, _ in adds:
            queue.add(key, delay)
            added[key] = now() + delay
            await asyncio.sleep(1)
        await asyncio.sleep(1000)
        running.cancel()
        assert not busy
        assert begun.keys() == added.keys()
        assert len(queue) == 0

    run(story())
