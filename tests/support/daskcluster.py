"""A real Dask cluster on loopback: `dask scheduler` and `dask worker` processes on free ports, ended by their ids."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from support.waiting import wait_for

TESTS = Path(__file__).parents[1]


class DaskProcess:
    """One `dask ...` command with its log in a file."""

    def __init__(self, folder: Path, name: str, arguments: Sequence[str]) -> None:
        self.log_path = folder / f"{name}.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(TESTS), "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False"},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text("utf-8", errors="replace")

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        """The first match of a pattern in the log; fails at once when the process has ended without it."""

        def look() -> re.Match[str] | None:
            alive = self.is_alive()
            found = re.search(pattern, self.log)
            assert found or alive, f"{self.log_path.name} ended with {self.process.returncode}:\n{self.log}"
            return found

        return wait_for(look, what=f"{pattern!r} in {self.log_path}")

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory is short."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        """SIGTERM, as Kubernetes does when it takes a pod away."""
        self.process.terminate()


class DaskWorker(DaskProcess):
    """A `dask worker` without a nanny; `address` once it is registered.

    Args:
        folder: for its log and scratch.
        name: of the worker.
        scheduler: its address.
        threads: how many.
        tls: arguments such as `--tls-ca-file ca.pem`.
    """

    def __init__(self, folder: Path, name: str, scheduler: str, threads: int = 1, tls: Sequence[str] = ()) -> None:
        super().__init__(
            folder,
            name,
            [
                *("worker", scheduler, "--name", name, "--host", "127.0.0.1", "--no-nanny", "--no-dashboard"),
                *("--nthreads", str(threads), "--memory-limit", "0"),
                *("--local-directory", str(folder / name), *tls),
            ],
        )

    @property
    def address(self) -> str:
        return self.wait_for_log(r"Start worker at: +(\S+)")[1]

    def wait_until_registered(self) -> None:
        self.wait_for_log(r"Registered to:")


class DaskCluster:
    """A scheduler and workers, as a context manager.

    Args:
        folder: for logs, the scheduler file and the workers' scratch.
        workers: how many processes, each with `threads` threads.
        tls: arguments such as `--tls-ca-file ca.pem`, given to scheduler and workers.
    """

    def __init__(self, folder: Path, workers: int = 2, threads: int = 1, tls: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.threads = threads
        self.tls = list(tls)
        self.scheduler_file = folder / "scheduler.json"
        self.workers: list[DaskWorker] = []
        protocol = ["--protocol", "tls"] if tls else []
        port = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        file = ["--scheduler-file", str(self.scheduler_file)]
        self.scheduler = DaskProcess(folder, "scheduler", ["scheduler", *port, *file, *protocol, *self.tls])
        try:
            self.address = self._read_address()
            for _ in range(workers):
                self.start_worker()
            for worker in self.workers:
                worker.wait_until_registered()
        except BaseException:
            self.close()
            raise

    def _read_address(self) -> str:
        def look() -> str:
            assert self.scheduler.is_alive(), self.scheduler.log
            try:
                return str(json.loads(self.scheduler_file.read_text("utf-8"))["address"])
            except (FileNotFoundError, ValueError):
                return ""

        return wait_for(look, what="the address in the scheduler file")

    @property
    def host_and_port(self) -> str:
        return self.address.partition("://")[2]

    def start_worker(self, threads: int | None = None) -> DaskWorker:
        """Start one more worker; returns before it is registered."""
        worker = DaskWorker(self.folder, f"worker-{len(self.workers)}", self.address, threads or self.threads, self.tls)
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        """Kill all processes that this cluster started, and wait for their end."""
        for process in (*self.workers, self.scheduler):
            process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
