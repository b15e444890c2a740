"""Outputs whose commit waits for a network, so that it can be left to a thread."""

from __future__ import annotations

import threading

from tarmill.storage.base import PendingCommit, Stat, WriteStream
from tarmill.storage.pending import PendingUpload, pause


class UploadStream(WriteStream):
    """A `WriteStream` whose `commit_async` commits in a thread; `_commit` looks at `_stop`, and pauses by `_pause`."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._stop = threading.Event()

    def commit_async(self) -> PendingCommit:
        """Commit in a thread; ask `result()` of what comes back."""
        self._must_be_open()
        self._state = "committed"
        return PendingUpload(self._run_pending, self._stop)

    def _run_pending(self) -> Stat:
        try:
            self._receipt = self._commit()
        except BaseException:
            self._state = "aborted"
            self._abort()
            raise
        return self._receipt

    def _pause(self, seconds: float) -> None:
        pause(self._stop, seconds)
