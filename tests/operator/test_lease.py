"""Of several operators one acts: elections in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.fakeapi import FakeApi
from support.virtualtime import run

from tarmill_operator.lease import DURATION_S, GIVE_UP_S, Election, Lost, Seen, may_take, taken


def now() -> float:
    return asyncio.get_running_loop().time()


def election(api: Any, name: str) -> Election:
    return Election(api, "system", "tarmill-operator", name, lambda: 1_800_000_000.0 + now())


def holder(api: FakeApi) -> str:
    (lease,) = api.of("Lease")
    return str(lease["spec"]["holderIdentity"])


def test_the_first_leads_and_the_second_when_the_first_gives_it_back() -> None:
    async def story() -> float:
        api = FakeApi(now)
        one, two = election(api, "one"), election(api, "two")
        await one.win()
        kept, second = asyncio.create_task(one.keep()), asyncio.create_task(two.win())
        await asyncio.sleep(100)
        assert not second.done()
        assert not kept.done()
        kept.cancel()
        await one.release()
        begun = now()
        await second
        assert holder(api) == "two"
        return now() - begun

    assert run(story()) < 3


def test_the_second_leads_when_the_first_is_not_heard_of_and_not_before_its_time() -> None:
    async def story() -> float:
        api = FakeApi(now)
        one, two = election(api, "one"), election(api, "two")
        await one.win()
        last = now()
        await two.win()
        return now() - last

    assert DURATION_S < run(story()) < DURATION_S + 5


def test_a_holder_whose_renewals_fail_stops_before_another_may_begin() -> None:
    async def story() -> tuple[float, float]:
        api = FakeApi(now)
        one, two = election(api, "one"), election(api, "two")
        await one.win()
        begun = now()

        class Away:
            async def get(self, *_: object) -> None:
                await asyncio.sleep(1000)

        one._api = Away()  # type: ignore[assignment]
        second = asyncio.create_task(two.win())
        with pytest.raises(Lost):
            await one.keep()
        stopped = now() - begun
        await second
        return stopped, now() - begun

    stopped, began = run(story())
    assert stopped <= GIVE_UP_S + 0.1
    assert began > stopped + 3


def test_a_renewal_that_fails_now_and_then_is_tried_again() -> None:
    async def story() -> None:
        api = FakeApi(now)
        one = election(api, "one")
        await one.win()
        api.fault = lambda call: "server error" if call % 3 == 0 else None
        kept = asyncio.create_task(one.keep())
        await asyncio.sleep(200)
        assert not kept.done()
        kept.cancel()

    run(story())


def test_a_lease_that_another_took_is_lost() -> None:
    async def story() -> None:
        api = FakeApi(now)
        one = election(api, "one")
        await one.win()
        (lease,) = api.of("Lease")
        api.change(lease, lambda item: item["spec"].update(holderIdentity="two"))
        with pytest.raises(Lost, match="two holds the Lease now"):
            await one.keep()

    run(story())


def test_of_two_that_see_a_free_lease_at_once_one_wins() -> None:
    async def story() -> None:
        api = FakeApi(now)
        elections = {name: election(api, name) for name in ("one", "two", "three")}
        tasks = {name: asyncio.create_task(one.win()) for name, one in elections.items()}
        await asyncio.sleep(10)
        assert [name for name, task in tasks.items() if task.done()] == [holder(api)]
        for task in tasks.values():
            task.cancel()

    run(story())


def test_a_lease_runs_out_by_our_own_clock_alone() -> None:
    lease = taken({"metadata": {}}, "one", 0.0)  # renewed in 1970, by the clock of its holder
    assert not may_take(lease, "two", Seen(), 1000.0)
    assert not may_take(lease, "two", Seen("7", 990.0), 1000.0)
    assert may_take(lease, "two", Seen("7", 980.0), 1000.0)
    assert may_take(lease, "one", Seen(), 1000.0)
    assert taken(lease, "two", 5.0)["spec"]["leaseTransitions"] == lease["spec"]["leaseTransitions"] + 1
