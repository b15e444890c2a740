"""A look after all at files that were listed by name: by a dry run, and where finished shards hold them already."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from tarmill import storage
from tarmill.errors import OutputExistsError
from tarmill.jobs.listener import Listener
from tarmill.jobs.upload_collect import paths_of
from tarmill.jobs.upload_files import MANY_NUMBERS, Seen
from tarmill.planning.tasks import ShardDone

if TYPE_CHECKING:
    from tarmill.jobs.upload_plan import Upload

_MANY_FILES = 100_000
"""To look at more may take a while."""


def weigh(work: Upload) -> None:
    """Put into the listing how many bytes its files have, and how many are empty; one that is gone counts as none."""
    found = work.found
    for entry in found.listing:
        for path in paths_of(entry, work.job.roots, work.spec.key_prefix):
            try:
                size = os.stat(path, follow_symlinks=work.job.follow).st_size
            except OSError:
                continue  # the job would tell
            found.listing.content_bytes += size
            found.empty += not size


def refuse_changed(work: Upload, finished: Collection[ShardDone], listener: Listener) -> None:
    """Refuse to go on behind shards whose files are not any more what they were when they were packed.

    Raises:
        OutputExistsError: names the first such shard, and how to go on.
    """
    files = sum(done.output.members for done in finished if done.seen and done.output)
    if files > _MANY_FILES:
        listener.note(f"looking whether the {files:,} files of {len(finished):,} finished shards are what they were")
    for done in finished:
        if done.seen and done.seen != _seen_now(work, done):
            url = storage.mask(work.outputs[done.index])
            raise OutputExistsError(
                f"{url} was packed from files that have changed since, or are gone, and this is the same job "
                f"({work.job.job}); pack all anew with --exists overwrite, or choose another name",
                url=url,
                job=work.job.job,
            )


def _seen_now(work: Upload, done: ShardDone) -> str:
    """Hash what the files of a finished shard are now, as it was done when they were read; "" where one is gone."""
    seen, left_out = Seen(), frozenset(done.left_out)
    begin, end = work.edges[done.index], work.edges[done.index + 1]
    for place, entry in enumerate(work.found.listing.entries(work.order, begin, end)):
        if place in left_out:
            continue
        for path in paths_of(entry, work.job.roots, work.spec.key_prefix):
            try:
                now = os.stat(path, follow_symlinks=work.job.follow)
            except OSError:
                return ""
            seen.numbers += (now.st_size, now.st_mtime_ns, now.st_ino)
        if len(seen.numbers) > MANY_NUMBERS:
            seen.settle()
    return seen.hexdigest()
