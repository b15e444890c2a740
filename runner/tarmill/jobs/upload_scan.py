"""The samples of one tree, with a look at each file here or in workers where there are many, or by name alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

from tarmill.engine.base import Engine
from tarmill.engine.meter import current
from tarmill.jobs.drive import from_anywhere, results
from tarmill.jobs.listener import Listener
from tarmill.jobs.upload_collect import Collector
from tarmill.jobs.upload_look import Looked, look, possible
from tarmill.planning.upload_listing import Listing, Piece
from tarmill.planning.upload_runs import Run, RunListing, cut, samples_of
from tarmill.spec import UploadSpec
from tarmill.values import valueclass

MANY_FILES = 4000
"""Fewer are no reason to start a worker."""
_TASK_FILES = 1024

PackedRun = tuple[str, str, str, int | None]
"""(base, folder below it, names joined by "/", class): fewer objects, fewer bytes."""


@valueclass
class LookTask:
    """Look at the files of some runs."""

    index: int
    runs: tuple[PackedRun, ...]
    files: int
    root: int
    prefix: str
    follow: bool

    @property
    def label(self) -> str:
        """What messages call the task."""
        return f"{self.runs[0][0]}{self.runs[0][1]}"


@valueclass
class LookDone:
    """The samples of a `LookTask`."""

    piece: Piece
    looked: Looked


def look_in_worker(task: LookTask) -> LookDone:
    """Look at the files of a task; the function that engines run."""
    listing, looked, meter = Listing(spill_bytes=1 << 62), Looked(), current()
    for base, rel, names, label in task.runs:
        for entry in look(Run(base, rel, names.split("/"), label), task.root, task.prefix, task.follow, looked):
            listing.add(entry)
        meter.samples = len(listing)
    return LookDone(listing.as_piece(), looked)


def look_at_tree(
    spec: UploadSpec,
    runs: Iterable[Run],
    root: int,
    collector: Collector,
    engine: Callable[[], Engine] | None,
    listener: Listener,
) -> None:
    """Look at the files of a tree and take its samples, in order; here as long as workers are not there yet.

    Args:
        spec: key_prefix, follow_symlinks.
        runs: the files; where workers look, at most twice as many wait in memory as were looked at, by name only.
        root: number of the tree.
        collector: takes samples, and what is wrong with them.
        engine: gives one whose workers can look, and which has begun to start them; None for here.
        listener: is told when it takes long.
    """
    tasks = _tasks(spec, runs, root)
    waiting: deque[LookTask] = deque()
    files = 0
    if engine is not None:
        for task in tasks:
            waiting.append(task)
            files += task.files
            if files >= MANY_FILES:
                break
    if engine is None or files < MANY_FILES:
        for task in chain(waiting, tasks):
            _take(collector, look_in_worker(task))
        return
    listener.note(f"looking at {files:,} files and more")
    workers = engine()
    while waiting and not workers.is_ready():
        _take(collector, look_in_worker(waiting.popleft()))
        waiting += islice(tasks, 1)
    for done in _looked_elsewhere(waiting, tasks, workers):
        _take(collector, done)


def name_tree(spec: UploadSpec, runs: Iterable[Run], root: int, collector: Collector, scratch_dir: str | None) -> None:
    """Take the samples of a tree, which are all there are, in order and without a look at any file.

    Args:
        spec: key_prefix; whether there is a shuffle, which needs each sample by itself.
        runs: the files.
        root: number of the tree.
        collector: takes samples, and what is wrong with them.
        scratch_dir: where very many names wait; None for the system's place.
    """
    looked, found = Looked(), collector.found
    found.by_name = True
    named = RunListing(spec.key_prefix, scratch_dir)
    if not spec.shuffle:
        found.listing = named
    for run in runs:
        kept = possible(run, spec.key_prefix, looked)
        collector.note(looked)
        if spec.shuffle:
            collector.listing.add_named(samples_of(kept, root, spec.key_prefix))
        else:
            named.add(kept, root)


def _looked_elsewhere(batch: Sequence[LookTask], tasks: Iterator[LookTask], workers: Engine) -> Iterator[LookDone]:
    """Let workers look at files while the walk goes on here; results come in the order of tasks.

    What is walked during one round of tasks is the next round. Each may be twice as long as the one before: workers
    wait at the end of rounds, and so there are few.
    """
    while batch:
        following: list[LookTask] = []
        for done in results(workers, look_in_worker, batch, Listener()):
            following += islice(tasks, 2)
            yield done
        batch = following


def _take(collector: Collector, done: LookDone) -> None:
    collector.listing.extend(done.piece)
    collector.note(done.looked)


def _tasks(spec: UploadSpec, runs: Iterable[Run], root: int) -> Iterator[LookTask]:
    index = files = 0
    waiting: list[PackedRun] = []
    for run in runs:
        for part in cut(run, _TASK_FILES):
            waiting.append((from_anywhere(part.base or "./"), part.rel, "/".join(part.names), part.label))
            files += len(part.names)
            if files >= _TASK_FILES:
                yield LookTask(index, tuple(waiting), files, root, spec.key_prefix, spec.follow_symlinks)
                waiting, files, index = [], 0, index + 1
    if waiting:
        yield LookTask(index, tuple(waiting), files, root, spec.key_prefix, spec.follow_symlinks)
