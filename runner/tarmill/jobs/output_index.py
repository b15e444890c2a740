"""`--index` of the jobs that write shards: small files for other readers, beside outputs that are finished.

A job asks `plan_index` before it begins, which refuses what cannot come out right, and calls `index_outputs` when every
shard is done and before it publishes the manifest. It then looks at each shard once more: at its headers, or at all of
it where wids wants md5sums, and not at all where counts are enough (sizes, timm). So all jobs make them alike, however
they wrote the shards, they cost nothing where nobody asks for them, and a job that is run again with `--index` makes
just what is missing.

The manifest tells which there are. Who writes other shards under these names begins with `withdraw_index`, since a
stale index would lead readers to wrong bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from tarmill import storage
from tarmill.errors import NotFoundError, StorageError, TarmillError
from tarmill.formats.compression import codec_for
from tarmill.formats.shards import ShardPattern
from tarmill.formats.sidecar_names import SIDECARS, refuse_compressed
from tarmill.jobs.drive import settings_of
from tarmill.jobs.listener import Listener
from tarmill.jobs.manifests import JobFolder, in_parallel, read_manifest
from tarmill.jobs.report import Failure, Report
from tarmill.planning.tasks import OutputShard, Shard, ShardDone
from tarmill.spec import RunOptions

if TYPE_CHECKING:  # imported where they are used: few jobs have an index
    from tarmill.jobs.sidecar_places import Places
    from tarmill.jobs.sidecar_shard import ShardSummary


def plan_index(wanted: Sequence[str], pattern: ShardPattern, outputs: Sequence[str]) -> Places | None:
    """Find where the files go, and refuse what cannot come out right; None where nothing is wanted.

    Args:
        wanted: names of `sidecar_names.SIDECARS`.
        pattern: of the outputs.
        outputs: their URLs, or some such where their number is not known yet.

    Raises:
        SpecError: names or compression of the outputs do not allow it, or a file to be brought up to date is none.
        StorageError: such a file cannot be read.
    """
    if not wanted or not outputs:
        return None
    from tarmill.formats.sidecars import data_set_file
    from tarmill.jobs.sidecar_places import bytes_at, places_for

    places = places_for(outputs, pattern.stem, wanted)
    for url in outputs:
        refuse_compressed(storage.mask(url), codec_for(url), places.wanted)
    for kind, url in places.of_data_set().items():
        data_set_file(kind, places.stem, (), bytes_at(url) if kind != "wids" else None)
    return places


def index_outputs(
    places: Places,
    done: Sequence[ShardDone],
    folder: JobFolder,
    options: RunOptions,
    listener: Listener,
    report: Report,
    *,
    recount: bool = False,
) -> None:
    """Write the files for shards that are finished, those of the whole data set last; failures go into the report.

    Args:
        places: of the files, by `plan_index`.
        done: the shards, in the order of `places`.
        folder: of the job, where each shard that was looked at leaves a note.
        options: where and how it runs.
        listener: is told how it goes.
        report: takes what was written, or what failed.
        recount: whether other readers may see other samples than the job did, since it had a key function of its own.

    Raises:
        StorageError: a file of the whole data set could not be written.
    """
    from tarmill.formats.sidecars import ShardFacts
    from tarmill.jobs.sidecars import write_for_data_set

    outputs = [one.output for one in done if one.output is not None]
    if recount or not {"sizes", "timm"}.issuperset(places.wanted):
        found = _looked_at(places, outputs, folder, options, listener, report)
        if found is None:
            return
        facts = [
            ShardFacts(name, one.samples, one.size_bytes, one.md5)
            for name, one in zip(places.names, found, strict=True)
        ]
    else:
        facts = [ShardFacts(name, one.samples, one.size_bytes) for name, one in zip(places.names, outputs, strict=True)]
    write_for_data_set(places, facts, folder.job)
    report.index = list(places.told())


def _looked_at(
    places: Places,
    outputs: Sequence[OutputShard],
    folder: JobFolder,
    options: RunOptions,
    listener: Listener,
    report: Report,
) -> list[ShardSummary] | None:
    """Look at the shards that no earlier run of the job has looked at; None where one failed."""
    from tarmill.jobs.sidecar_shard import found_before
    from tarmill.jobs.sidecars import index_tasks, look_at_shards

    shards = [
        Shard(url, storage.mask(url), output.size_bytes, output.version or None)
        for url, output in zip(places.urls, outputs, strict=True)
    ]
    tasks = index_tasks(places, shards, settings_of(options), folder.job, folder.url)
    before = in_parallel(found_before, tasks, folder.url)
    found = {task.index: one for task, one in zip(tasks, before, strict=True) if one is not None}
    todo = [task for task in tasks if task.index not in found]
    if todo:
        listener.stage("indexing", len(todo), sum(task.shard.size_bytes or 0 for task in todo))
        new, failed = look_at_shards(todo, places.folder, options, listener)
        found.update(new)
        if failed:
            told = (
                f"{len(failed)} of {len(tasks)} shards could not be indexed, the first: {failed[0].message}. All "
                "shards are written: run it again to go on, without that --index if it cannot be"
            )
            report.failures.append(Failure(-1, "the index", told))
            return None
    return [found[task.index] for task in tasks]


# ---- files of a data set that is written anew ------------------------------------------------------------------------


def recorded_index(manifest: str, job: str) -> tuple[str, ...]:
    """Tell which files the manifest of a finished job says there are; () where there is none, or of another job."""
    try:
        found = read_manifest(manifest)
    except NotFoundError:
        return ()
    return _kinds_in(found) if found["job"] == job else ()


def withdraw_index(manifest: str, pattern: ShardPattern, job: str, keep: Collection[str] = ()) -> None:
    """Remove the files that a manifest records, before its shards are written anew.

    Args:
        manifest: URL of the data set's manifest, which may not be there.
        pattern: of its shards.
        job: ours.
        keep: what stays if the manifest is of this very job, since it will be brought up to date.
    """
    try:
        found = read_manifest(manifest)
        names = [pattern.folder + name for name in _names_in(found)]
        kinds = [kind for kind in _kinds_in(found) if found["job"] != job or kind not in keep]
        if not kinds or not names:
            return
        from tarmill.formats.sidecars import without_data_set
        from tarmill.jobs.sidecar_places import bytes_at, places_for

        places = places_for(names, pattern.stem, kinds)
    except NotFoundError:
        return
    except StorageError:
        raise
    except (TarmillError, KeyError, TypeError):
        return  # it is of something else, and leads nowhere
    beside = [url for number in range(len(names)) for url in places.beside(number).values()]
    in_parallel(storage.delete, beside, manifest)
    for kind, url in places.of_data_set().items():
        known = bytes_at(url)
        if known is None:
            continue
        if (left := without_data_set(kind, places.stem, places.names, known)) is None:
            storage.delete(url)
        else:
            storage.write_bytes(url, left, owner=job)


def _kinds_in(manifest: dict[str, Any]) -> tuple[str, ...]:
    found = manifest.get("index")
    return tuple(kind for kind in SIDECARS if isinstance(found, list) and kind in found)


def _names_in(manifest: dict[str, Any]) -> list[str]:
    """Name the shards of a manifest; only places below its folder, whatever it says."""
    names = [shard["name"] for shard in manifest["shards"] if isinstance(shard["name"], str)]
    return [name for name in names if name and name[0] != "/" and "://" not in name and ".." not in name.split("/")]
