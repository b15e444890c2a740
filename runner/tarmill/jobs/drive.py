"""What all jobs share: pick an engine, run tasks on it, gather outcomes, retry what a store may give next time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from tarmill import storage
from tarmill.engine.base import Engine, Outcome, R, T
from tarmill.engine.cores import usable_cores
from tarmill.engine.serial import serial_engine
from tarmill.errors import StorageError, TarmillError, UsageError
from tarmill.jobs.listener import Listener
from tarmill.planning.tasks import Shard
from tarmill.spec import RunOptions

SHARD_TRIES = 3
"""How often a shard is tried when the store fails in a way that may pass."""


def settings_of(options: RunOptions) -> storage.StorageSettings:
    """Give the storage settings that the options ask for, and put them in force in this process."""
    settings = storage.StorageSettings(
        ca_file=options.ca_file or None,
        s3_endpoint=options.s3_endpoint or None,
        anonymous=options.anonymous,
        requester_pays=options.requester_pays,
        store_options=options.store_options,
        scratch_dir=options.scratch_dir or None,
        verify_uploads=options.verify_uploads,
    )
    storage.configure(settings)
    return settings


def urls_of_this_process(urls: Sequence[str]) -> list[str]:
    """Pick those that no other process can read or write: streams and memory."""
    return [url for url in urls if storage.capabilities(url).shared == "process"]


def choose_engine(
    options: RunOptions, tasks: int, urls: Sequence[str], *, scripts: bool = False, apart: bool = False
) -> Engine:
    """Pick where tasks run: a Dask scheduler when one is named, worker processes, or this process for one worker.

    Args:
        options: scheduler, workers, task timeout.
        tasks: how many there are; no more workers than that.
        urls: what the tasks read and write; streams and memory stay in this process.
        scripts: the tasks run code of users, so that worker processes must not begin as copies of this one.
        apart: a fault of a task may end its process, which must not be this one.

    Raises:
        UsageError: `-c` with a stream or memory, which workers elsewhere cannot reach.
    """
    here = urls_of_this_process(urls)
    if options.scheduler:
        if here:
            raise UsageError(
                f"{storage.mask(here[0])!r} belongs to this process; with -c use files or URLs that workers reach"
            )
        from tarmill.engine.cluster import DaskEngine

        return DaskEngine(
            options.scheduler,
            tls_ca_file=options.tls_ca or None,
            tls_cert=options.tls_cert or None,
            tls_key=options.tls_key or None,
            task_timeout_s=options.task_timeout or None,
            no_worker_timeout_s=options.wait_for_workers or None,
        )
    if here and options.task_timeout:
        raise UsageError(
            f"{storage.mask(here[0])!r} belongs to this process, where --task-timeout cannot end a script that hangs; "
            "use files, or leave the option away"
        )
    cores = usable_cores()
    remote = any(storage.capabilities(url).shared == "everywhere" for url in urls)
    # an upload waits for the network while nothing is computed: twice the processes keep the cores busy
    workers = min(options.workers or (2 * cores if remote else cores), tasks)
    if here or (workers <= 1 and not options.task_timeout and not apart):
        return serial_engine()
    from tarmill.engine.processes import process_engine

    return process_engine(max(1, workers), task_timeout_s=options.task_timeout or None, forks=not scripts)


def run_tasks(
    engine: Engine, function: Callable[[T], R], tasks: Sequence[T], listener: Listener, *, fail_fast: bool = False
) -> Iterator[Outcome[T, R]]:
    """Run tasks and yield each one's last outcome; those whose store failed in a way that may pass are tried again.

    Args:
        engine: runs them.
        function: for each task.
        tasks: to run.
        listener: is told of progress and of what is tried again.
        fail_fast: end with the first task that failed; what runs is stopped.
    """
    listener.engine(engine)
    left = list(tasks)
    for attempt in range(1, SHARD_TRIES + 1):
        again = []
        with closing(engine.run(function, left, on_progress=listener.progress)) as outcomes:
            for outcome in outcomes:
                error = outcome.error
                if attempt < SHARD_TRIES and isinstance(error, StorageError) and error.retryable:
                    listener.note(f"trying {outcome.task.label} again: {error}")
                    again.append(outcome.task)
                else:
                    yield outcome
                    if fail_fast and error is not None:
                        return
        left = again
        if not left:
            return


def results(engine: Engine, function: Callable[[T], R], tasks: Sequence[T], listener: Listener) -> Iterator[R]:
    """Run tasks and yield their results in the order of the tasks, each as soon as all before it are there.

    The first error is raised, and stops what runs.
    """
    waiting = [task.index for task in reversed(tasks)]
    found: dict[int, R] = {}
    with closing(run_tasks(engine, function, tasks, listener)) as outcomes:  # type: ignore[type-var]
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
            assert outcome.result is not None
            found[outcome.task.index] = outcome.result
            while waiting and waiting[-1] in found:
                yield found.pop(waiting.pop())


def from_anywhere(url: str) -> str:
    """Make a relative path absolute, since workers of a cluster have another current folder; URLs stay as they are."""
    if url and storage.scheme_of(url) == "file" and "://" not in url:
        return os.path.join(os.getcwd(), url)
    return url


def probe_workers(engine: Engine, shard: Shard, folder: str) -> None:
    """Make sure, before the work starts, that every worker of a cluster is of our version and sees the same files.

    Args:
        engine: those that run in this machine's processes need no probe.
        shard: an input; every worker must see it in the same version.
        folder: of the outputs; every worker must be able to write there.

    Raises:
        UsageError: a worker differs or cannot; the message names it.
    """
    check, require = getattr(engine, "check_versions", None), getattr(engine, "require", None)
    if check is None or require is None:
        return
    check()
    places = tuple(url if storage.scheme_of(url) == "file" else "" for url in (shard.url, folder or "./"))
    if any(places):
        require(look_from_worker, (places[0], shard.version, places[1]))


def look_from_worker(places: tuple[str, str | None, str]) -> None:
    """Run on every worker by `probe_workers`, also on those that join later.

    Raises:
        UsageError: the worker does not see the input as it was planned, or cannot write to the outputs' folder.
    """
    url, version, folder = places
    try:
        if url and storage.stat(url).version != version:
            raise UsageError(f"{url} is another file there", url=url)
        if folder:
            storage.open_write(f"{folder}.tarmill-probe-{os.getpid()}", owner="probe").abort()
    except TarmillError as error:
        raise UsageError(
            f"the worker does not see the same files as this machine: {error.message}; use a folder that all workers "
            "share under the same path, or URLs",
            url=url,
        ) from None
