"""The files that a job left: found by names alone, in folders that are no links to somewhere else."""

from __future__ import annotations

import os
import re
import stat as stat_bits
from collections.abc import Container, Sequence
from contextlib import suppress

from tarmill import storage
from tarmill.errors import AccessError, NotFoundError, StorageError
from tarmill.jobs.manifests import in_parallel
from tarmill.storage.file_write import TEMP_NAME
from tarmill.storage.urls import local_path
from tarmill.values import field, valueclass

RECENT_S = 60.0
"""A job that changed a file of its own so lately may be running."""


@valueclass
class Leftover:
    """One file that would go."""

    url: str
    size_bytes: int
    mtime_s: float
    """0.0 where the store does not tell."""


@valueclass(frozen=False)
class JobLeftovers:
    """What one job left."""

    job: str
    folder: str
    """URL of the outputs' folder, '/' at its end or ''; where the job's folder is in it, if it has one."""
    has_folder: bool
    files: list[Leftover] = field(default_factory=list)
    """In the order in which they go: `job.json`, which knows the others, last."""
    folders: list[str] = field(default_factory=list)
    """Local folders that are empty then."""
    temp_folders: list[str] = field(default_factory=list)
    """Folders of a store that is to be asked to sweep what was not finished there."""
    outputs: Container[str] = ()
    """URLs that are outputs of the job."""
    manifest: str = ""
    """The data set's manifest, where it says that this job is complete."""
    notes: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The job's folder."""
        return f"{self.folder}_tarmill/{self.job}/"

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)

    def changed_s_ago(self, now_s: float) -> float | None:
        """Tell how long ago the job changed a file; None where no store tells."""
        times = [file.mtime_s for file in self.files if file.mtime_s]
        return now_s - max(times) if times else None

    def may_run(self, now_s: float) -> bool:
        """Tell whether a file was changed so lately that the job may be running."""
        ago = self.changed_s_ago(now_s)
        return ago is not None and ago < RECENT_S


def take(found: JobLeftovers, url: str, ending: str) -> bool:
    """Note all files below a folder, which must end so, symbolic links resolved; tell whether there is one."""
    if storage.scheme_of(url) != "file":
        files = _with_facts(listed(url))
        found.files += files
        return bool(files)
    path = os.path.abspath(local_path(url))
    shown = local_path(url).rstrip("/")
    if not os.path.lexists(path):
        return False
    above = path[: -len(ending)]
    if not path.endswith("/" + ending) or os.path.realpath(path) != os.path.join(os.path.realpath(above), ending):
        found.notes.append(f"{shown} is a symbolic link to somewhere else: left alone")
        return False
    if not os.path.isdir(path):
        return False
    for place, names, others in os.walk(shown, topdown=False, onerror=_raise):
        links = [name for name in names if os.path.islink(os.path.join(place, name))]
        for name in sorted(others + links):
            with suppress(FileNotFoundError):
                found.files.append(_leftover(os.path.join(place, name)))
        found.folders.append(place)
    return True


def _raise(error: OSError) -> None:
    raise AccessError(f"{error.filename} cannot be listed: {error.strerror}", url=error.filename) from error


def _leftover(path: str) -> Leftover:
    seen = os.lstat(path)
    return Leftover(path, seen.st_size if stat_bits.S_ISREG(seen.st_mode) else 0, seen.st_mtime)


def take_temp_files(found: JobLeftovers, below: str) -> None:
    """Note the temp files of the job in a folder of outputs; other stores keep unfinished outputs out of sight."""
    folder = found.folder + below
    if storage.scheme_of(folder) != "file":
        found.temp_folders.append(folder)
        return
    path = local_path(folder) if folder else "./"
    root = local_path(found.folder) if found.folder else "./"
    if os.path.realpath(path) != os.path.normpath(os.path.join(os.path.realpath(root), below)):
        return  # a link leads to a folder of somebody else
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for name in sorted(os.listdir(path)):
            match = re.fullmatch(TEMP_NAME, name)
            if match and match["owner"] == found.job:
                with suppress(FileNotFoundError):
                    found.files.append(_leftover(os.path.join(path, name)))


def listed(url: str) -> list[storage.Stat]:
    """List what is below a folder of a store.

    Raises:
        StorageError: the store cannot list.
    """
    try:
        files = list(storage.list_urls(url))
    except StorageError as error:
        raise unlisted(url) from error
    return [info for info in files if info.url.startswith(url) and ".." not in info.url.split("/")]


def unlisted(url: str) -> StorageError:
    """Make the error that says that a folder of a store cannot be listed."""
    shown = storage.mask(url)
    return StorageError(
        f"{shown} cannot be listed, so that what is in it cannot be known; let the server list folders (nginx: "
        "`autoindex on; autoindex_format json;`), or remove that folder where the server has it",
        url=shown,
    )


def _with_facts(files: Sequence[storage.Stat]) -> list[Leftover]:
    """Ask for sizes and times where the listing did not tell them."""

    def look(info: storage.Stat) -> Leftover | None:
        if info.size_bytes is None or info.mtime_s is None:
            try:
                info = storage.stat(info.url)
            except NotFoundError:
                return None
        return Leftover(info.url, info.size_bytes or 0, info.mtime_s or 0.0)

    return [file for file in in_parallel(look, files) if file is not None]
