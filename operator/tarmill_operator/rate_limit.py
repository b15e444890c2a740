"""How often the API server is called: a token bucket, which also keeps still when the server asks for it."""

from __future__ import annotations

import asyncio


class RateLimit:
    """Lets calls through, `per_second` in the long run and `burst` at once.

    Args:
        per_second: calls each second.
        burst: calls that may follow each other at once after a quiet time.
    """

    def __init__(self, per_second: float, burst: int) -> None:
        self._interval = 1.0 / per_second
        self._burst = burst
        self._next = 0.0
        """When the bucket would be full of what it let through; each call moves it on by one interval."""

    async def wait(self) -> None:
        """Return when a call may be made."""
        now = asyncio.get_running_loop().time()
        self._next = max(self._next, now - self._interval * (self._burst - 1))
        pause = self._next - now
        self._next += self._interval
        if pause > 0:
            await asyncio.sleep(pause)

    def keep_still(self, seconds: float) -> None:
        """Let nothing through for so long."""
        self._next = max(self._next, asyncio.get_running_loop().time() + seconds)
