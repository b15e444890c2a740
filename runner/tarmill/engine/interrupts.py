"""From signals to an exception: what Ctrl-C and `kill` mean while a job runs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tarmill.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked = 0


def raise_if_asked() -> None:
    """Raise the Interrupted that a bare `except:` of a user's script has swallowed; called between tasks."""
    if _asked:
        raise Interrupted(_asked)


def settle() -> None:
    """Signals change nothing from now on: what there was to do is decided, and the end has a bound of its own.

    Within `interruptible`, at whose end they count again; outside of the main thread nothing changes.
    """
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block the first SIGINT or SIGTERM raises Interrupted in the main thread; a second ends the process.

    The second one is for a person who cannot wait for the clean-up: `os._exit` at once. Worker processes notice that
    their driver is gone and end by themselves. Outside of the main thread, where Python cannot take signals, the block
    changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _asked
    _asked = 0

    def on_signal(number: int, _frame: FrameType | None) -> None:
        global _asked
        if _asked:
            os._exit(128 + number)
        _asked = number
        raise Interrupted(number)

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        _asked = 0
        for number, handler in before.items():
            signal.signal(number, handler)
