"""Jobs that a test holds in the middle: their script waits, at one sample of each later shard, for a file to appear."""

from __future__ import annotations

from collections import Counter

from support.operated import System

SCRIPT = """
import base64, os, time, urllib.error, urllib.request, uuid

def process_sample(record):
    key = record["__key__"]
    if key.endswith("-001"):  # the first is tried by the runner too
        note(key)
    if key.endswith("-015") and not key.startswith("k0"):
        while not is_open():
            time.sleep(0.05)
    return {{**record, "txt": record["txt"].upper()}}

def is_open():
    try:
        urllib.request.urlopen({gate!r}, timeout=5).close()
        return True
    except OSError:
        return False

def note(key):
    login = base64.b64encode((os.environ["TARMILL_HTTP_USER"] + ":" + os.environ["TARMILL_HTTP_PASSWORD"]).encode())
    request = urllib.request.Request({begun!r} + "/" + key + "." + uuid.uuid4().hex, b"", method="PUT")
    request.add_header("Authorization", "Basic " + login.decode())
    for left in reversed(range(200)):
        try:
            return urllib.request.urlopen(request, timeout=20).close()
        except OSError:  # a kubelet that comes back has the storage's Service without a pod for a moment
            if not left:
                raise
            time.sleep(0.1)
"""

HANGING = """
import time

def process_sample(record):
    if record["__key__"] == "k1-003":
        time.sleep(1000)
    return record
"""
"""Never goes past one sample of shard 1."""


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
        self._begun = f"{self._path}-begun"
        self.script = SCRIPT.format(gate=f"{system.url}/{self._path}", begun=f"{system.url}/{self._begun}")
        """Upper-cases `txt`, as `maps.UPPER`; shard 0 goes through, the others wait at their 16th sample."""

    def open(self) -> None:
        self._system.put(self._path, b"open")

    def begun(self) -> Counter[str]:
        """How often each shard was begun, by the key of its second sample."""
        return Counter(name.partition(".")[0] for name in self._system.names(self._begun))
