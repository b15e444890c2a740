"""`tarmill run --serve`: a job in a cluster, with its own Dask scheduler, its status over HTTP, and last words."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tarmill.cli.arguments import split_values
from tarmill.cli.output import say
from tarmill.cli.serve_options import ServeOptions
from tarmill.engine.interrupts import settle
from tarmill.errors import UsageError
from tarmill.serve.last_words import last_words, message_of, write_last_words
from tarmill.serve.status import Status
from tarmill.spec import RunOptions
from tarmill.storage.log import JsonLines
from tarmill.values import replace

FOR_EVER_S = 10.0**8


def serve_job(
    values: dict[str, Any], read: Callable[[], tuple[Any, RunOptions]], run: Callable[[Any, RunOptions, Status], None]
) -> None:
    """Run a job and tell of it, from before it is planned to its end, however it ends.

    Args:
        values: of the options of the command line, those of `ServeOptions` among them.
        read: reads the job's spec and run options.
        run: runs it; tells the status that it is given.

    Raises:
        BaseException: whatever ended the job; the last words are written by then.
    """
    # before Dask may import numpy: it starts threads for linear algebra, of which there is none
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    status = Status()
    error: BaseException | None = None
    with ExitStack() as parts:
        try:
            places = ServeOptions(**split_values(ServeOptions, values))
            if places.status_port:
                from tarmill.serve.status_server import StatusServer

                parts.enter_context(StatusServer(places.host, places.status_port, status))
            spec, options = read()
            if places.dask_port:
                places.check_tls(options)
                _set_up_logs(options.log_format)
                options = _own_scheduler(parts, places, options, status)
            elif options.scheduler:
                _set_up_logs(options.log_format)
                _wait_for_scheduler(options)
            run(spec, options, status)
        except BaseException as found:
            error = found
            raise
        finally:
            settle()
            _end(status, error, values["termination_log"])


def _own_scheduler(parts: ExitStack, places: ServeOptions, options: RunOptions, status: Status) -> RunOptions:
    """Start a scheduler, as long as the other parts live; gives the options that lead to it."""
    from tarmill.engine.cluster_scheduler import SchedulerThread

    scheduler = parts.enter_context(SchedulerThread(places.dask_port, host=places.host, **_tls_of(options)))
    status.workers_of = lambda: scheduler.workers
    return replace(options, scheduler=scheduler.address)


def _wait_for_scheduler(options: RunOptions) -> None:
    """Give a scheduler that starts at the same time as this process the time that its workers get."""
    from tarmill.engine.cluster_connect import connect

    connect(options.scheduler, timeout_s=options.wait_for_workers or FOR_EVER_S, **_tls_of(options)).close()


def _tls_of(options: RunOptions) -> dict[str, Any]:
    files = {"tls_ca_file": options.tls_ca, "tls_cert": options.tls_cert, "tls_key": options.tls_key}
    return {name: file or None for name, file in files.items()}


def _end(status: Status, error: BaseException | None, path: str) -> None:
    status.end(error is None, message_of(error))
    try:
        write_last_words(path, last_words(status, error))
    except OSError as failure:
        say(f"note: the termination message could not be written to {path}: {failure.strerror}")


def say_refused(path: str, error: BaseException) -> None:
    """Write the last words of a command line that cannot be read."""
    _end(Status(), error, path)


def _set_up_logs(log_format: str) -> None:
    """Keep Dask from logging its every step, and give what libraries log the form of the other lines."""
    try:
        import distributed  # sets up loggers of its own
    except ImportError as error:
        raise UsageError(
            f"this needs Dask, which cannot be imported ({error}): pip install 'tarmill[serve]'"
        ) from error
    del distributed
    if "DASK_LOGGING__DISTRIBUTED" not in os.environ:
        logging.getLogger("distributed").setLevel(logging.WARNING)
    if log_format != "json":
        return
    for name in ("distributed", "distributed.client", "bokeh", "tornado", "tornado.application"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)  # Dask warns of a slow disk, for example
