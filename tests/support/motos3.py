"""moto's S3 server, for s3fs: in this process, on a free loopback port; it checks no signatures."""

from __future__ import annotations

import logging
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tarmill.storage import registry

BUCKET = "shards"


class MotoS3:
    """A server thread; the context manager ends it."""

    def __enter__(self) -> Self:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.port = port
        self.base = f"http://{host}:{port}"
        # keys are not looked at, but which account it is follows from them
        request = urllib.request.Request(f"{self.base}/{BUCKET}", method="PUT")
        with urllib.request.urlopen(request, timeout=30):
            pass
        return self

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let s3:// lead here, by s3fs: in this process and in those that it starts there is no obstore."""
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", self.base)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "without_obstore"))
        monkeypatch.setitem(sys.modules, "obstore", None)
        registry._store_of_scheme.cache_clear()

    def put_many(self, prefix: str, count: int) -> None:
        """Store small objects without asking for each."""
        from moto.s3.models import s3_backends

        account = next(name for name in s3_backends if BUCKET in s3_backends[name]["aws"].buckets)
        for number in range(count):
            s3_backends[account]["aws"].put_object(BUCKET, f"{prefix}{number:05d}.tar", b"x")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
