"""A Dask scheduler inside this process, for workers that come by themselves and are sent home at the end.

It runs in a thread with an event loop of its own. Its loss would lose what runs anyway, as the driver's does; so they
share one process, and one fate.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tarmill.engine.cluster_connect import tls_files
from tarmill.errors import TarmillError, UsageError

START_TIMEOUT_S = 60.0
RETIRE_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 10.0
_CONFIG: dict[str, Any] = {
    "distributed.scheduler.http.routes": [],
    "distributed.scheduler.idle-timeout": None,
    "distributed.admin.low-level-log-length": 100,  # each progress report is an event; nobody reads old ones
}

log = logging.getLogger(__name__)


class SchedulerThread:
    """A scheduler that listens from now on until `close`, without a dashboard.

    Args:
        port: where workers connect.
        host: the address to listen at.
        tls_ca_file, tls_cert, tls_key: PEM files; all three, and nothing but TLS is spoken, or none.

    Raises:
        UsageError: Dask is not installed, or a TLS file cannot be read.
        TarmillError: the port cannot be had.
    """

    def __init__(
        self,
        port: int,
        *,
        host: str = "0.0.0.0",
        tls_ca_file: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
    ) -> None:
        try:
            import distributed
        except ImportError as error:
            raise UsageError(
                f"a Dask scheduler needs Dask, which cannot be imported ({error}): pip install 'tarmill[serve]'"
            ) from error
        tls_files(tls_ca_file, tls_cert, tls_key)
        _require_free(host, port)
        self._security = distributed.Security(
            tls_ca_file=tls_ca_file,
            tls_scheduler_cert=tls_cert,
            tls_scheduler_key=tls_key,
            require_encryption=tls_ca_file is not None,
        )
        self._protocol = "tls" if tls_ca_file else "tcp"
        self._place = (host, port)
        self._started: Future[Any] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="tarmill-scheduler", daemon=True)
        self._thread.start()
        try:
            self._scheduler = self._started.result(START_TIMEOUT_S)
        except Exception as error:
            raise TarmillError(f"the Dask scheduler at {host}:{port} could not be started: {error}") from error
        except BaseException:  # somebody does not want to wait
            self.close()
            raise
        self.address = str(self._scheduler.address)
        """Where workers and clients connect."""

    @property
    def workers(self) -> int:
        """How many workers are connected now."""
        return len(self._scheduler.workers)

    def close(self) -> None:
        """Send all workers home, so that they end well, and stop to listen. Bounded in time; may be called twice."""
        if self._loop is not None and self._thread.is_alive():
            with suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(RETIRE_TIMEOUT_S + CLOSE_TIMEOUT_S)
            if self._thread.is_alive():
                log.warning("the Dask scheduler did not end in time; it ends with this process")

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        import dask
        from distributed import Scheduler

        self._loop = asyncio.get_running_loop()
        host, port = self._place
        try:
            with dask.config.set(_CONFIG):
                scheduler = await Scheduler(
                    host=f"[{host}]" if ":" in host else host,
                    port=port,
                    protocol=self._protocol,
                    security=self._security,
                    dashboard=False,
                    dashboard_address="127.0.0.1:0",  # Dask opens this port in any case; it serves nothing
                )
        except BaseException as error:
            self._started.set_exception(error)
            return
        self._started.set_result(scheduler)
        await self._stop.wait()
        try:
            await asyncio.wait_for(_send_home(scheduler), RETIRE_TIMEOUT_S)
        except Exception as error:
            log.warning("not all workers could be sent home: %r", error)  # they leave with the scheduler
        try:
            await asyncio.wait_for(scheduler.close(reason="the job has ended"), CLOSE_TIMEOUT_S)
        except Exception as error:
            log.warning("the Dask scheduler did not close as it should: %r", error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _require_free(host: str, port: int) -> None:
    """Look whether the port can be had; Dask, when it cannot, says less, and leaves sockets open."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise TarmillError(
            f"no Dask scheduler can listen at {host}:{port}: {error.strerror}; expected a free port there"
        ) from error


async def _send_home(scheduler: Any) -> None:
    """Tell all workers to close, and wait until they have hung up: a scheduler that closes before tells of errors."""
    comms = [stream.comm for stream in scheduler.stream_comms.values()]
    await scheduler.retire_workers(workers=list(scheduler.workers), close_workers=True, remove=True)
    while not all(comm is None or comm.closed() for comm in comms):
        await asyncio.sleep(0.02)
