"""An upload that ends in a thread, while the next output is filled."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tarmill.storage.base import Stat

_CANCEL_WAIT_S = 5.0


class UploadCancelled(Exception):
    """The upload was told to stop, and did before its object could appear."""


def pause(stop: threading.Event, seconds: float) -> None:
    """Sleep, unless told to stop. Raises UploadCancelled."""
    if stop.wait(seconds):
        raise UploadCancelled


class PendingUpload:
    """The `PendingCommit` of stores that are waited for: an upload in a thread.

    Args:
        run: uploads and looks at what was stored; raises UploadCancelled when it stopped because of `stop`.
        stop: is set to make it end soon.
    """

    def __init__(self, run: Callable[[], Stat], stop: threading.Event) -> None:
        self._call = run
        self._stop = stop
        self._receipt: Stat | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._receipt = self._call()
        except BaseException as error:  # whatever it is belongs to who asks for the result
            self._error = error

    def result(self, timeout: float | None = None) -> Stat:
        """Wait until the object is stored and looked at."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError
        if self._error is not None:
            raise self._error
        assert self._receipt is not None
        return self._receipt

    def done(self) -> bool:
        """Tell whether `result` would return at once."""
        return not self._thread.is_alive()

    def cancel(self) -> bool:
        """Stop sending; True when the last byte was certainly not sent."""
        self._stop.set()
        self._thread.join(_CANCEL_WAIT_S)
        return isinstance(self._error, UploadCancelled)
