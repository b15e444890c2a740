"""`tarmill clean`: remove what jobs leave: `_tarmill/<job id>/` beside the outputs, scratch folders, temp files.

What may go is decided by names alone: files below `_tarmill/<job id>/`, files below a folder `tarmill-<job id>`, and
temp files that carry the job id as their owner. A path that a job's own `job.json` names goes only if it is of these;
who can write to a store must not be able to have files deleted elsewhere. Symbolic links are never followed.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from tarmill import storage
from tarmill.errors import AccessError, NotFoundError, StorageError, TarmillError, UsageError
from tarmill.formats.shard_grammar import find_regions
from tarmill.formats.shards import ShardPattern
from tarmill.jobs.clean_files import JobLeftovers, Leftover, listed, take, take_temp_files, unlisted
from tarmill.jobs.inputs import MANIFEST_SUFFIX
from tarmill.jobs.manifests import in_parallel, read_manifest
from tarmill.storage.urls import local_path

JOB_ID = re.compile(r"[0-9a-f]{16}")
_JOB_FOLDER = re.compile(r"(?P<folder>(?:.*/)?)_tarmill/(?P<job>[0-9a-f]{16})/?", re.DOTALL)
_MAX_OUTPUTS = 100_000


# ---- which jobs -------------------------------------------------------------------------------------------------


def find(target: str, *, every: bool = False, folders: Sequence[str] = (), scratch_dir: str = "") -> list[JobLeftovers]:
    """Find what one job left or, with `every`, all jobs of a folder.

    Args:
        target: a job's folder, a job id; with `every` a shard pattern or the folder of outputs.
        every: whether all jobs are meant.
        folders: of outputs, in which a bare job id is looked for besides the current one.
        scratch_dir: where scratch folders are; $TMPDIR by default.

    Raises:
        UsageError: nothing of that name is a job, or is there.
        StorageError: the store cannot list.
    """
    base = scratch_dir or tempfile.gettempdir()
    if every:
        folder = outputs_folder(target)
        return [gather(folder, job, base) for job in jobs_in(folder)]
    if match := _JOB_FOLDER.fullmatch(target):
        found = [gather(match["folder"], match["job"], base)]
        if not (found[0].has_folder or found[0].files):
            raise UsageError(f"{storage.mask(target)} is not there; no such job has left anything", url=target)
        return found
    if not JOB_ID.fullmatch(target):
        raise UsageError(
            f"{storage.mask(target)!r} is no job; name its folder (out/_tarmill/<16 hex digits>) or its id, or give "
            "--all for all jobs that wrote beside these shards"
        )
    places = list(dict.fromkeys(["", *(name if name.endswith("/") else f"{name}/" for name in folders)]))
    found = [gather(folder, target, base) for folder in places]
    there = [item for item in found if item.has_folder] or [item for item in found[:1] if item.files]
    if not there:
        looked = ", ".join(storage.mask(f"{folder or './'}_tarmill/") for folder in places)
        raise UsageError(
            f"job {target} has left nothing in {looked} or {base}; name the folder of its outputs with --in"
        )
    return there


def outputs_folder(target: str) -> str:
    """Give the folder of a shard pattern, or a folder as it is, with '/' at its end or ''."""
    if storage.scheme_of(target) == "file" and os.path.isdir(local_path(target)):
        return "" if target in (".", "./") else target.rstrip("/") + "/"
    return ShardPattern.parse(target).folder


def jobs_in(folder: str) -> list[str]:
    """List the ids of the jobs that have a folder below `_tarmill/`.

    Raises:
        StorageError: the store cannot list.
    """
    url = f"{folder}_tarmill/"
    if storage.scheme_of(url) == "file":
        try:
            names = set(os.listdir(local_path(url)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise AccessError(f"{url} cannot be listed: {error.strerror}", url=url) from error
    else:
        names = {info.url.removeprefix(url).partition("/")[0] for info in listed(url)}
    return sorted(name for name in names if JOB_ID.fullmatch(name))


def gather(folder: str, job: str, scratch_base: str) -> JobLeftovers:
    """Find all that one job left; nothing is changed.

    Args:
        folder: of the outputs.
        job: its id.
        scratch_base: the folder of scratch folders.
    """
    found = JobLeftovers(job, folder, False)
    scratch = [f"{scratch_base.rstrip('/')}/tarmill-{job}/"]
    facts = _facts(found)
    named = facts.get("scratch")
    for place in named if isinstance(named, list) else []:
        if (reason := why_not(place, found.url, job)) is None:
            scratch.append(place.rstrip("/") + "/")
        elif reason:
            found.notes.append(f"job.json names {storage.mask(str(place))!r}, {reason}: left alone")
    for place in {_spelled_once(place): place for place in scratch}.values():
        take(found, place, f"tarmill-{job}")
    for below in ("", *sorted(_output_folders(facts))):
        take_temp_files(found, below)
    before = len(found.files)
    found.has_folder = take(found, found.url, f"_tarmill/{job}")
    if facts and not found.has_folder and storage.scheme_of(found.url) != "file":
        raise unlisted(found.url)
    found.files[before:] = sorted(found.files[before:], key=_is_last)
    _take_pointer(found, facts)
    found.manifest = _manifest_of(found, facts)
    found.outputs = Outputs(_pattern_of(facts), found.folder)
    return found


def _take_pointer(found: JobLeftovers, facts: dict[str, Any]) -> None:
    """Note the file that tells of an unfinished shuffle or sort, if it tells of this one."""
    name = facts.get("pointer")
    if isinstance(name, str) and re.fullmatch(r"unfinished-[0-9a-f]{16}", name):
        url = f"{found.folder}_tarmill/{name}"
        with suppress(StorageError):
            if storage.read_bytes(url).strip() == found.job.encode():
                seen = storage.stat(url)
                found.files.insert(0, Leftover(url, seen.size_bytes or 0, seen.mtime_s or 0.0))


def _is_last(file: Leftover) -> bool:
    """`job.json` goes last, since it knows of the others: a removal that was stopped can be done again."""
    return file.url.endswith("/job.json")


def why_not(place: Any, job_url: str, job: str) -> str | None:
    """Tell why a scratch folder that a job's own file names must not be touched; None when it may go.

    "" says that it lies inside the job's folder, with which it goes anyway.
    """
    if not isinstance(place, str):
        return "which is no name"
    parts = place.rstrip("/").split("/")
    if ".." in parts or "?" in place or "#" in place or "\0" in place or "%" in parts[-1]:
        return "which is no plain name"
    scheme = storage.scheme_of(place)
    try:
        storage.store_for(place)
        if f"{_spelled_once(place)}/".startswith(_spelled_once(job_url).rstrip("/") + "/"):
            return ""
    except TarmillError:
        return "which no store knows"
    if parts[-1] != f"tarmill-{job}":
        return "which is no folder of this job"
    if scheme in ("http", "https") and _host(place) != _host(job_url):  # who else would get our credentials?
        return "which is on another host"
    return None


def _spelled_once(url: str) -> str:
    """Spell a folder in one way."""
    return os.path.abspath(local_path(url)) if storage.scheme_of(url) == "file" else url


def _host(url: str) -> str:
    return url[: find_regions(url).path].lower()


def _facts(found: JobLeftovers) -> dict[str, Any]:
    """Read `job.json`; {} where there is none to be read."""
    try:
        facts = json.loads(storage.read_bytes(found.url + "job.json"))
    except NotFoundError:
        return {}
    except (StorageError, ValueError) as error:
        found.notes.append(f"{storage.mask(found.url)}job.json cannot be read: {error}")
        return {}
    return facts if isinstance(facts, dict) else {}


def _output_folders(facts: dict[str, Any]) -> set[str]:
    """Name the folders of a job's outputs, relative to the one they have in common; only those below it."""
    pattern, folders = _pattern_of(facts), set[str]()
    if pattern is not None:
        count = 1 if pattern.is_open else pattern.count  # where the count is open, nothing else varies
        if count is not None and count <= _MAX_OUTPUTS:
            with suppress(TarmillError):
                urls = pattern.with_count(count).expand()
                folders = {url.removeprefix(pattern.folder).rpartition("/")[0] for url in urls}
    safe = (name for name in folders if name and not name.startswith("/") and "://" not in name)
    return {name + "/" for name in safe if not {"..", "_tarmill"} & set(name.split("/"))}


class Outputs:
    """The URLs below a folder that a pattern can name, also where its count is open."""

    def __init__(self, pattern: ShardPattern | None, folder: str) -> None:
        self._names = frozenset[str]()
        self._before = self._after = ""
        if pattern is None or pattern.folder != folder:
            return
        with suppress(TarmillError):
            if pattern.is_open:
                self._before, _, self._after = pattern.with_count(1).format(0).rpartition("000000")
            elif pattern.count is not None and pattern.count <= _MAX_OUTPUTS:
                self._names = frozenset(pattern.expand())

    def __contains__(self, url: object) -> bool:
        if not (self._before and isinstance(url, str)):
            return url in self._names
        digits = url.removeprefix(self._before).removesuffix(self._after)
        return len(digits) >= 6 and digits.isdigit() and url == f"{self._before}{digits}{self._after}"


def _manifest_of(found: JobLeftovers, facts: dict[str, Any]) -> str:
    """Find the data set's manifest that names the job; without one the job is not complete."""
    pattern = _pattern_of(facts)
    if pattern is not None and "/" not in pattern.stem:
        url = f"{found.folder}{pattern.stem}{MANIFEST_SUFFIX}"
        with suppress(TarmillError, KeyError):
            return url if read_manifest(url)["job"] == found.job else ""
    return ""


def _pattern_of(facts: dict[str, Any]) -> ShardPattern | None:
    """Read what the job called its output."""
    output = facts.get("output")
    if isinstance(output, str):
        with suppress(TarmillError):
            return ShardPattern.parse(output)
    return None


# ---- and away ---------------------------------------------------------------------------------------------------


def remove(found: JobLeftovers) -> None:
    """Remove all that was found of a job.

    Raises:
        StorageError: something cannot be removed; what is left is found again the next time.
    """
    in_parallel(storage.delete, [file.url for file in found.files if not _is_last(file)])
    for folder in found.temp_folders:
        storage.sweep(folder, found.job, found.outputs)
    for file in filter(_is_last, found.files):
        storage.delete(file.url)
    folders = list(found.folders)
    if found.has_folder and storage.scheme_of(found.url) == "file":
        folders.append(local_path(f"{found.folder}_tarmill"))
    for folder in folders:
        with suppress(OSError):  # something else is in it
            os.rmdir(folder)
