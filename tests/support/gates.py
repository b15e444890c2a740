"""Jobs that a test holds in the middle: their script waits, at one sample of each later shard, for a file to appear."""

from __future__ import annotations

from support.operated import System

SCRIPT = """
import time, urllib.error, urllib.request

def process_sample(record):
    if record["__key__"].endswith("-015") and not record["__key__"].startswith("k0"):
        while not is_open():
            time.sleep(0.05)
    return {{**record, "txt": record["txt"].upper()}}

def is_open():
    try:
        urllib.request.urlopen({gate!r}, timeout=5).close()
        return True
    except OSError:
        return False
"""


class Gate:
    """The file that a script waits for.

    Args:
        system: whose storage it is in.
        folder: there.
        name: of the file; a test with several gates has several.
    """

    def __init__(self, system: System, folder: str, name: str = "gate") -> None:
        self._system = system
        self._path = f"{folder}/{name}"
        self.script = SCRIPT.format(gate=f"{system.url}/{self._path}")
        """Upper-cases `txt`, as `maps.UPPER`; shard 0 goes through, the others wait at their 16th sample."""

    def open(self) -> None:
        self._system.put(self._path, b"open")
