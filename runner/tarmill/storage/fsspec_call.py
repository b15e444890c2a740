"""Calls into libraries that may never return, each with a time limit: done in a thread that can be left alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from tarmill.storage.body import Stopped

T = TypeVar("T")


class Call(Generic[T]):
    """A function under way in a daemon thread.

    Args:
        function: what it gives or raises belongs to who asks for `result`.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._value: T
        self._error: BaseException | None = None
        self._over = threading.Event()
        self._is_left = False
        threading.Thread(target=self._run, name="fsspec", daemon=True).start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:  # a thread has nobody to tell
            self._error = error
        self._over.set()

    def result(self, limit_s: float) -> T:
        """Wait for it.

        Raises:
            TimeoutError: it takes longer. Stopped: `leave` was called meanwhile.
        """
        if not self._over.wait(limit_s):
            raise TimeoutError(f"no answer within {limit_s:g} s")
        if self._is_left:
            raise Stopped
        if self._error is not None:
            raise self._error
        return self._value

    def leave(self) -> None:
        """Wake who waits; what comes of the function is not wanted any more."""
        self._is_left = True
        self._over.set()


def within(limit_s: float, function: Callable[[], T]) -> T:
    """Call a function, and raise TimeoutError when it takes longer."""
    return Call(function).result(limit_s)
