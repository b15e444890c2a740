"""What to look at next: keys, each at most once in the queue and never with two workers at a time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Awaitable, Callable

FIRST_BACKOFF_S = 1.0
LAST_BACKOFF_S = 300.0


class WorkQueue:
    """Gives keys out when they are due.

    A key that is added while a worker has it is given out again afterwards. Of several delays the shortest counts, but
    a key that failed is not given out before its pause is over, whatever is added meanwhile.

    Args:
        jitter: gives a number between 0 and 1, to spread what failed together.
    """

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._order = itertools.count()
        self._busy: set[str] = set()
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()
        """Of the worker that waits for the next key: a change is to wake one of them, not all."""

    def __len__(self) -> int:
        """Count the keys that are due now."""
        now = _now()
        return sum(1 for due in self._due.values() if due <= now)

    def add(self, key: str, delay_s: float = 0.0) -> None:
        """Give a key out after a delay, or sooner if it was to be given out sooner.

        Args:
            key: what to deal with.
            delay_s: how long it waits first. Less than nothing is a head start: the key goes before those that have
                waited for less than that, and after those that have waited for longer, so that none waits for ever.
        """
        due = max(_now() + delay_s, self._not_before.get(key, 0.0))
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._order), key))
        self._changed.set()

    async def take(self) -> str:
        """Wait for a key that is due, and that no other worker has; `done` gives it back."""
        async with self._turn:
            while True:
                self._changed.clear()
                pause = self._until_next()
                if pause is not None and pause <= 0:
                    key = heapq.heappop(self._heap)[2]
                    del self._due[key]
                    self._busy.add(key)
                    return key
                await _wait(self._changed, pause)

    def _until_next(self) -> float | None:
        """Tell how long it takes until the first key of the heap is due; None where there is none."""
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) == due and key not in self._busy:
                return due - _now()
            heapq.heappop(self._heap)  # sooner meanwhile, or it comes back by `done`
        return None

    def done(self, key: str, again_s: float | None = None) -> None:
        """Give a key back that was dealt with; `again_s` adds it again."""
        self._failures.pop(key, None)
        self._not_before.pop(key, None)
        self._give_back(key)
        if again_s is not None:
            self.add(key, again_s)

    def failed(self, key: str, *, at_least_s: float = 0.0, first_s: float = FIRST_BACKOFF_S) -> float:
        """Give a key back that could not be dealt with; it comes again after a pause that doubles each time.

        Args:
            key: what was taken.
            at_least_s: shortest pause.
            first_s: pause after the first failure.

        Returns:
            The pause in seconds.
        """
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        pause: float = min(first_s * 2 ** min(count, 30), LAST_BACKOFF_S)
        pause = max(pause * (1 + 0.2 * self._jitter()), at_least_s)
        self._not_before[key] = _now() + pause
        if key in self._due:
            self._due[key] = max(self._due[key], self._not_before[key])
        self._give_back(key)
        self.add(key, pause)
        return pause

    def end_pauses(self) -> None:
        """Give keys that wait after failures out again within some seconds: what they failed for is mended."""
        for key in list(self._not_before):
            del self._not_before[key]
            self.add(key, 3 * self._jitter())

    def _give_back(self, key: str) -> None:
        self._busy.discard(key)
        if key in self._due:  # added while a worker had it
            heapq.heappush(self._heap, (self._due[key], next(self._order), key))
        self._changed.set()


async def run_workers(queue: WorkQueue, count: int, work: Callable[[str], Awaitable[None]]) -> None:
    """Let workers take keys for ever; `work` deals with one and gives it back, and raises nothing."""

    async def one() -> None:
        while True:
            await work(await queue.take())

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(one())


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
