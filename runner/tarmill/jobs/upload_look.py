"""A look at each file of a folder: size, time, inode. Here, or in workers where there are very many."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from tarmill.errors import ChangedError, NotFoundError, TarmillError
from tarmill.jobs.upload_files import open_folder
from tarmill.planning.upload_listing import Entry, Part
from tarmill.planning.upload_names import fault_of_field
from tarmill.planning.upload_runs import MARK, Run
from tarmill.storage.file_facts import raise_os_error
from tarmill.values import field, replace, valueclass

_REGULAR = stat.S_IFREG
_FORMAT = 0o170000
_FEW_NAMES = 8
"""For fewer it does not pay to open their folder."""


@valueclass(frozen=False)
class Looked:
    """What looking at files gave besides their entries."""

    problems: list[tuple[str, str, str]] = field(default_factory=list)
    """(key, reason, message) of samples that cannot be packed."""
    empty: int = 0


def look(run: Run, root: int, prefix: str, follow: bool, looked: Looked) -> Iterator[Entry]:
    """Look at files and give their samples, in order.

    Args:
        run: the files.
        root: number of their source.
        prefix: what is put before every key.
        follow: whether symbolic links are followed.
        looked: takes what is wrong.
    """
    status = os.stat if follow else os.lstat
    folder = run.base + run.rel
    front = prefix + run.rel
    more = run.more
    last: str | None = None
    parts: list[Part] = []
    bad = False
    with _opened(folder, len(run.names)) as (here, folder_fd):
        for marked in run.names:
            stem, _, name = marked.partition(MARK)
            if stem != last:
                if parts and not bad:
                    yield front + last, root, (*parts, *more)  # type: ignore[operator]  # not None: it has parts
                last, parts, bad = stem, [], False
            try:
                found = status(f"{here}{stem}.{name}", dir_fd=folder_fd)  # the dearest of all: a system call per file
                size = found.st_size
                if found.st_mode & _FORMAT != _REGULAR or _is_refused(name, more):
                    raise _refusal(f"{folder}{stem}.{name}", name, found.st_mode)
            except (OSError, TarmillError) as error:
                if not bad:
                    looked.problems.append((front + stem, *problem_of(error, f"{folder}{stem}.{name}")))
                bad = True
                parts.append((name, "", 0, 0, 0))  # the sample is there, as long as it is left out by name
                continue
            if not size:
                looked.empty += 1
            parts.append((name, "", size, found.st_mtime_ns, found.st_ino))
    if parts and not bad:
        yield front + last, root, (*parts, *more)  # type: ignore[operator]


def possible(run: Run, prefix: str, looked: Looked) -> Run:
    """Leave out of a run the samples with fields that cannot be, without a look at any file.

    Args:
        run: the files.
        prefix: what is put before every key.
        looked: takes what is wrong.
    """
    joined = "/".join(run.names)
    if f"{MARK}__" not in joined and (not run.more or f"{MARK}cls" not in joined):
        return run
    bad: set[str] = set()
    for marked in run.names:
        stem, _, name = marked.partition(MARK)
        if stem not in bad and _is_refused(name, run.more):
            path = f"{run.base}{run.rel}{stem}.{name}"
            looked.problems.append((prefix + run.rel + stem, *problem_of(_refusal(path, name, _REGULAR), path)))
            bad.add(stem)
    return replace(run, names=[marked for marked in run.names if marked.partition(MARK)[0] not in bad])


def _is_refused(field: str, more: tuple[Part, ...]) -> bool:
    return field[:2] == "__" or (bool(more) and field == "cls")


@contextmanager
def _opened(folder: str, names: int) -> Iterator[tuple[str, int | None]]:
    """Give what to write before the names of a folder's files, and what they are relative to.

    An open folder spares the kernel the walk along its path for every file.
    """
    if names < _FEW_NAMES or (fd := open_folder(folder)) is None:
        yield folder, None
        return
    try:
        yield "", fd
    finally:
        os.close(fd)


def _refusal(path: str, name: str, mode: int) -> TarmillError:
    if mode & _FORMAT != _REGULAR:
        return ChangedError(f"{path} was a file a moment ago, and is none now; run it again", url=path)
    if (fault := fault_of_field(name)) is not None:
        return TarmillError(f"{path}: {fault[1]}", reason=fault[0])
    return TarmillError(
        f"{path}: its sample has a field 'cls' already, which --class-from-dir adds; leave the file out with --exclude "
        "'*.cls', or the option away",
        reason="duplicate-field",
    )


def problem_of(error: BaseException, path: str) -> tuple[str, str]:
    """Give the reason by which a sample is counted, and what to tell of it."""
    if isinstance(error, OSError):
        try:
            raise_os_error(error, path, "looking at")
        except TarmillError as told:
            error = told
    assert isinstance(error, TarmillError)
    return reason_of(error), error.message


def reason_of(error: TarmillError) -> str:
    """Name the reason by which a sample that could not be had is counted."""
    if reason := error.facts.get("reason"):
        return str(reason)
    if isinstance(error, NotFoundError):
        return "vanished" if "://" not in str(error.facts.get("url", "")) else "not-found"
    return "changed" if isinstance(error, ChangedError) else "unreadable"
