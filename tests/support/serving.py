"""`tarmill run --serve` as a pod runs it, with workers beside it, all on loopback."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from support.daskcluster import DaskWorker
from support.maps import Running
from support.tls import make_authority

QUIET = {"PYTHONWARNINGS": "default"}
"""distributed itself warns of this and that."""


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def last_words(path: Path) -> dict[str, Any]:
    words: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return words


class Served(Running):
    """A job with its own scheduler and TLS; `words` are its last ones.

    Args:
        folder: where it runs.
        job: contents of its spec file.
        more: arguments.
    """

    def __init__(self, folder: Path, job: dict[str, Any], *more: str) -> None:
        self.folder = folder
        self.dask_port, self.status_port = free_port(), free_port()
        (folder / "job.json").write_text(json.dumps(job))
        authority = make_authority(folder)
        files = [str(authority.ca_file), str(authority.server.certificate_file), str(authority.server.key_file)]
        self._tls = [*("--tls-ca-file", files[0]), *("--tls-cert", files[1]), *("--tls-key", files[2])]
        self.workers: list[DaskWorker] = []
        ports = ["--host", "127.0.0.1", "--dask-port", str(self.dask_port), "--status-port", str(self.status_port)]
        tls = ["--tls-ca", files[0], "--tls-cert", files[1], "--tls-key", files[2]]
        log = ["--termination-log", str(folder / "words.json"), "--log-format", "json"]
        super().__init__(
            ["run", "--spec", "job.json", "--serve", *ports, *tls, *log, *more], folder, tool="tarmill", **QUIET
        )

    def start_worker(self) -> DaskWorker:
        name = f"worker-{len(self.workers)}"
        self.workers.append(DaskWorker(self.folder, name, f"tls://127.0.0.1:{self.dask_port}", tls=self._tls))
        return self.workers[-1]

    def get(self, path: str) -> bytes:
        """What the status port answers; fails where nobody listens."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.status_port}{path}", timeout=10) as answer:
            found: bytes = answer.read()
            return found

    def progress(self) -> dict[str, Any]:
        """What /progress answers; {} as long as nobody listens."""
        try:
            found: dict[str, Any] = json.loads(self.get("/progress"))
        except OSError:
            return {}
        return found

    @property
    def words(self) -> dict[str, Any]:
        assert (self.folder / "words.json").stat().st_size <= 4096
        return last_words(self.folder / "words.json")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for worker in self.workers:
            worker.kill()
