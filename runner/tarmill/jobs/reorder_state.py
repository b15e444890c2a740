"""What a shuffle or sort finds and leaves beside its outputs: its job folder, the pointer to it, and scratch files."""

from __future__ import annotations

import os
from contextlib import suppress

from tarmill import storage
from tarmill.errors import (
    ChangedError,
    NotFoundError,
    StorageError,
    TarmillError,
)
from tarmill.jobs.cut_outputs import named, shards_before
from tarmill.jobs.drive import from_anywhere
from tarmill.jobs.manifests import (
    JobFolder,
    in_parallel,
    is_of_another_job,
    read_manifest,
    refuse_existing,
    withdraw,
)
from tarmill.jobs.output_index import withdraw_index
from tarmill.jobs.reorder_job import Reorder
from tarmill.jobs.scratch_files import MEMORY
from tarmill.planning.counts import Counts
from tarmill.planning.jobid import job_id
from tarmill.storage.urls import local_path
from tarmill.values import replace


def is_complete(work: Reorder) -> bool:
    """Take over the result of the same job, if it was finished before and everything is still there."""
    try:
        found = read_manifest(work.manifest)
        if found["job"] != work.job.job:
            return False
        count = len(found["shards"])
        work.outputs = [from_anywhere(url) for url in named(work.out, count)]
        work.done = work.folder.finished(range(count), work.outputs)
        if len(work.done) < count:
            work.done = {}
            return False
        work.report.counts = Counts.from_dict(found["counts"])
        work.report.digest = found["digest"]
    except (TarmillError, KeyError, TypeError):
        return False  # there is none, or it is no use: the job itself will tell
    work.report.shards_total = work.report.shards_done = work.report.shards_resumed = count
    return True


def begin(work: Reorder) -> None:
    """Refuse what belongs to others, and note that this job may write from now on."""
    spec, job = work.spec, work.job.job
    if spec.exists != "overwrite":
        is_of_another_job(work.manifest, job, ())
    pointer = pointer_of(work)
    other = _unfinished_other(work, pointer)
    if other and spec.exists != "overwrite":
        raise ChangedError(
            f"inputs have changed since job {other} began to write {storage.mask(spec.output)!r}: they have other "
            f"sizes or versions; put them back, give that job up by `tarmill clean "
            f"{work.folder.url.replace(job, other)}`, or allow it with --exists overwrite",
            job=other,
        )
    # what a stream held the last time nobody knows, so that nothing can be resumed
    work.is_ours = work.is_pinned and work.folder.has_begun()
    if not work.out.is_open and (spec.exists == "fail" or (spec.exists == "resume" and not work.is_ours)):
        refuse_existing(work.out.expand(), job)
    work.sweep()
    work.folder.sweep([pointer])
    if spec.exists == "overwrite":
        work.stale = shards_before(work.manifest)
    withdraw_index(work.manifest, work.out, job, spec.index if spec.exists == "resume" else ())
    withdraw(work.manifest)
    places = sorted({work.job.spill, work.job.scratch} - {MEMORY})
    name = pointer.rpartition("/")[2]
    masked = [storage.mask(place) for place in places]
    facts = {"kind": work.kind, "output": storage.mask(spec.output), "scratch": masked, "pointer": name}
    work.folder.begin(facts)
    storage.write_bytes(pointer, job.encode(), owner=job)


def pointer_of(work: Reorder) -> str:
    """Name the file that tells which unfinished job has these inputs, in whatever version, and these options."""
    bare = [replace(found.shard, size_bytes=None, version=None) for found in work.inputs]
    base = job_id(work.kind, work.spec, bare, [storage.mask(work.spec.output)])
    return f"{work.folder.url.removesuffix(work.job.job + '/')}unfinished-{base}"


def _unfinished_other(work: Reorder, pointer: str) -> str:
    try:
        other = storage.read_bytes(pointer).decode("ascii", "replace").strip()
    except NotFoundError:
        return ""
    if other == work.job.job or not JobFolder(work.out.folder, other).has_begun():
        return ""
    return other


def clear_scratch(work: Reorder) -> None:
    """Remove what the passes of a finished job left for each other, by name, and all of a folder where that is local.

    Failing to is told and no failure of the job: its outputs are complete.
    """
    try:
        in_parallel(storage.delete, sorted(work.scratch_files), work.job.state)
        for place in {work.job.spill, work.job.scratch} - {MEMORY}:
            if storage.scheme_of(place) == "file" and os.path.isdir(local_path(place)):
                import shutil  # takes longer than the rest of a small job's end; mostly there is no such folder

                shutil.rmtree(local_path(place), ignore_errors=True)
    except StorageError as error:
        work.listener.note(f"scratch files of the job stay in {storage.mask(work.job.spill)}: {error.message}")


def clear_after_kill(work: Reorder) -> None:
    """Remove what a job left that was killed between its manifest and its end."""
    if not _exists(pointer_of(work)):
        return
    for name in ("scan-", "batch-", "places"):
        with suppress(StorageError):  # where nothing can be listed, `tarmill clean` says what to do
            work.scratch_files.update(found.url for found in storage.list_urls(work.job.state + name))
    clear_scratch(work)
    storage.delete(pointer_of(work))


def _exists(url: str) -> bool:
    try:
        storage.stat(url)
    except NotFoundError:
        return False
    return True
