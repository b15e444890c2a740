"""Messages over a stream socket between the driver and one worker process: pickles, each after its length.

`multiprocessing.connection` does the same, at 25 ms of CPU for the import in every worker.
"""

from __future__ import annotations

import os
import pickle
import struct
import threading
from typing import Any

_LENGTH = struct.Struct("!Q")


class Channel:
    """One end of the socket. Several threads may send; one may receive."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._sending = threading.Lock()

    def send(self, message: Any) -> None:
        """Send one message, whole.

        Raises:
            OSError: the other end is gone.
        """
        body = pickle.dumps(message, protocol=5)
        with self._sending:
            for part in (_LENGTH.pack(len(body)), body):
                rest = memoryview(part)
                while rest:
                    rest = rest[os.write(self.fd, rest) :]

    def receive(self) -> Any:
        """Wait for the next message.

        Raises:
            EOFError: the other end is gone, perhaps in the middle of a message.
        """
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return pickle.loads(self._read(length))

    def _read(self, length: int) -> bytes:
        parts: list[bytes] = []
        while length:
            try:
                part = os.read(self.fd, min(length, 1 << 20))
            except ConnectionError:
                part = b""
            if not part:
                raise EOFError("the other end of the channel is gone")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close this end; may be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
