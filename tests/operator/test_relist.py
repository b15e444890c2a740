"""Lists correct what watches did not tell, and tell which watch is deaf."""

from __future__ import annotations

from support.fakeapi import FakeApi, drive
from support.virtualtime import run

from tarmill_operator.cache import Cache
from tarmill_operator.relist import Relist
from tarmill_operator.watches import JOBS, Watch

WATCHES = (Watch("tarmill.dev/v1alpha1", "ShardMap"), JOBS)


def world() -> tuple[FakeApi, Cache, Relist, list[str]]:
    api, cache, woken = FakeApi(lambda: 0.0), Cache(), []  # type: ignore[var-annotated]
    return api, cache, Relist(api, cache, woken.append, watches=lambda: WATCHES, every_s=300), woken


def add(api: FakeApi, name: str) -> dict[str, object]:
    metadata = {"name": name, "namespace": "team"}
    return api.add({"apiVersion": "tarmill.dev/v1alpha1", "kind": "ShardMap", "metadata": metadata, "spec": {}})


def test_what_no_watch_told_is_found_added_changed_and_gone() -> None:
    api, cache, relist, woken = world()
    first, second = add(api, "first"), add(api, "second")
    drive(relist.each(WATCHES))
    assert sorted(woken) == sorted(cache.uids())
    woken.clear()
    api.change(first, lambda item: item["spec"].update(x=1))
    api.remove(second)
    third = add(api, "third")
    drive(relist.each(WATCHES))
    assert sorted(woken) == sorted(item["metadata"]["uid"] for item in (first, second, third))
    assert set(cache.uids()) == {first["metadata"]["uid"], third["metadata"]["uid"]}


def test_a_watch_that_tells_of_nothing_for_two_lists_is_deaf_and_one_that_is_late_is_not() -> None:
    api, _, relist, _ = world()
    drive(relist.each(WATCHES))
    late = add(api, "late")
    drive(relist.each(WATCHES))
    relist.heard(late)
    drive(relist.each(WATCHES))
    drive(relist.each(WATCHES))
    assert relist.deaf == ""
    for number in range(3):
        add(api, f"untold {number}")
        drive(relist.each(WATCHES))
    assert relist.deaf == "ShardMap"


def test_a_kind_that_cannot_be_listed_does_not_keep_others_from_being_corrected() -> None:
    api, cache, relist, _ = world()
    metadata = {"name": "j", "namespace": "team", "labels": {"tarmill.dev/uid": "x"}}
    api.add({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata})
    api.fault = lambda call: "server error" if call == 1 else None
    assert drive(relist.each(WATCHES)) == [WATCHES[0]]
    assert cache.knows("Job", "00000001-0000-4000-8000-000000000000")


def test_it_lists_every_few_minutes_soon_when_told_and_again_after_a_failure() -> None:
    import asyncio

    async def story() -> list[int]:
        api, _, relist, _ = world()
        running = asyncio.create_task(relist.run())
        counts = []
        await asyncio.sleep(340)
        counts.append(len(api.calls))
        relist.hurry()
        relist.hurry()
        await asyncio.sleep(5)
        counts.append(len(api.calls))
        api.fault = lambda call: "time-out" if call == 6 else None
        relist.hurry()
        await asyncio.sleep(20)
        counts.append(len(api.calls))
        running.cancel()
        return counts

    assert run(story()) == [2, 4, 7]
