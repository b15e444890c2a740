"""When to try again, and how long to wait before: capped exponential backoff with full jitter, Retry-After, a budget.

What may be tried again is decided where the failure is understood: it arrives here as a StorageError with `retryable`
and, where the server asked for a pause, `retry_after_s`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TypeVar

from tarmill.errors import StorageError
from tarmill.storage.log import log
from tarmill.storage.settings import StorageSettings

Result = TypeVar("Result")
_MIN_TRIES = 4  # an upload may use up the whole budget before it fails for the first time
# https://www.rfc-editor.org/rfc/rfc9110#section-15: 501, 505 and 507 will be the same a moment later
RETRIED_STATUSES = frozenset({408, 425, 429}) | frozenset(range(500, 600)) - {501, 505, 507, 511}


def retry_after_s(headers: Mapping[str, str], now_s: Callable[[], float] = time.time) -> float | None:
    """Read a Retry-After header (seconds, or a date by the server's own clock); None without a usable one (pure)."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = parsedate_to_datetime(text).timestamp()
        now = parsedate_to_datetime(headers["Date"]).timestamp() if "Date" in headers else now_s()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, until - now)


class Retrier:
    """The pauses and the patience of one operation.

    Args:
        settings: the budget and the bounds of the pauses.
        pause: sleeps that many seconds; may raise to end the operation.
        clock, jitter: for tests.
    """

    def __init__(
        self,
        settings: StorageSettings,
        pause: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._settings = settings
        self._pause = pause
        self._clock = clock
        self._jitter = jitter
        self._since = clock()
        self.tries = 0

    def progress(self) -> None:
        """Note that something arrived: the budget starts anew."""
        if self.tries:
            self.tries = 0
        self._since = self._clock()

    def failed(self, error: StorageError) -> None:
        """Pause before the next try, or raise `error` when there is to be none."""
        if not error.retryable:
            raise error
        self.tries += 1
        settings = self._settings
        spent = self._clock() - self._since
        left = settings.retry_budget_s - spent
        asked = error.facts.get("retry_after_s") or 0.0
        if (left <= 0 and self.tries >= _MIN_TRIES) or asked > max(left, settings.backoff_most_s):
            raise self._gave_up(error, spent, asked) from error
        bound = min(settings.backoff_most_s, settings.backoff_first_s * 2.0 ** min(self.tries - 1, 60))
        delay = max(self._jitter(0.0, bound), asked)
        if left > 0:
            delay = min(delay, max(left, asked))
        log().warning("%s; try %d follows in %.1f s", error.message, self.tries + 1, delay)
        self._pause(delay)

    def _gave_up(self, error: StorageError, spent: float, asked: float) -> StorageError:
        why = f"gave up after {self.tries} tries in {spent:.0f} s"
        if asked and asked > self._settings.retry_budget_s - spent:
            why += f", since the server asks to wait {asked:.0f} s more"
        return type(error)(
            f"{error.message}; {why} (retry budget {self._settings.retry_budget_s:g} s)",
            **{**error.facts, "retryable": False, "tries": self.tries},
        )


def with_retries(call: Callable[[], Result], retrier: Retrier) -> Result:
    """Call until it succeeds or `retrier` has had enough."""
    while True:
        try:
            return call()
        except StorageError as error:
            retrier.failed(error)
