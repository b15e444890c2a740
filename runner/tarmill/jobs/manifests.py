"""What a job leaves beside its outputs: `_tarmill/<job id>/` while it works, the data set's manifest at the end.

Each finished shard leaves a small manifest; a rerun of the same job does only what has none. The data set's manifest
comes last, after every shard was looked at once more: who trusts only the manifest never sees half a data set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from tarmill import __version__, storage
from tarmill.errors import ChangedError, NotFoundError, OutputExistsError, StorageError, TarmillError
from tarmill.formats.digest import to_hex
from tarmill.planning.counts import Counts
from tarmill.planning.tasks import OutputShard, ShardDone
from tarmill.values import fields

MANIFEST_FORMAT = 1
_PARALLEL = 16
_FEW_FILES = 64

A = TypeVar("A")
B = TypeVar("B")


class JobFolder:
    """The small files of one job, at a folder URL that ends with '/'."""

    def __init__(self, outputs_folder: str, job: str) -> None:
        self.job = job
        self.url = f"{outputs_folder}_tarmill/{job}/"

    def begin(self, facts: dict[str, Any]) -> None:
        """Note that this job may write its outputs from now on."""
        text = _to_json({"format": MANIFEST_FORMAT, "job": self.job, **facts})
        storage.write_bytes(self.url + "job.json", text, owner=self.job)

    def has_begun(self) -> bool:
        """Tell whether this job was begun before."""
        return _find(self.url + "job.json") is not None

    def finished(self, indices: Iterable[int], outputs: Sequence[str]) -> dict[int, ShardDone]:
        """Read which shards are finished: those with a manifest whose output still has that size and version."""

        def look(index: int) -> ShardDone | None:
            try:
                done = ShardDone.from_dict(json.loads(storage.read_bytes(shard_manifest(self.url, index))))
            except (NotFoundError, ValueError, KeyError, TypeError):
                return None
            return done if done.output and fault_of(done.output, outputs[index]) is None else None

        return {done.index: done for done in in_parallel(look, indices, self.url) if done is not None}

    def sweep(self, files: Iterable[str]) -> None:
        """Remove what killed processes of this job left unfinished, here and beside its other files."""
        outputs = frozenset(files)
        for folder in sorted({url[: url.rfind("/") + 1] for url in outputs} | {self.url}):
            with suppress(NotFoundError):
                storage.sweep(folder or "./", self.job, outputs)


def shard_manifest(state: str, index: int) -> str:
    """Name the manifest of one finished shard in a job's folder."""
    return f"{state}shard-{index:07d}.json"


def rejected_part(state: str, index: int) -> str:
    """Name the file of one shard's rejected samples in a job's folder."""
    return f"{state}rejected-{index:07d}.jsonl"


def save_shard(state: str, done: ShardDone, owner: str) -> None:
    """Note that a shard is finished; called after its output was committed."""
    storage.write_bytes(shard_manifest(state, done.index), _to_json(done.to_dict()), owner=owner)


def fault_of(output: OutputShard, url: str) -> str | None:
    """Look at a committed output once more: what is wrong with it, or None."""
    found = _find(url)
    if found is None:
        return "is gone"
    # a store that was not asked after the upload (--verify-uploads none) gave no version
    if found.size_bytes != output.size_bytes or (output.version and found.version != output.version):
        return f"has {found.size_bytes} bytes, version {found.version}, not {output.size_bytes} and {output.version}"
    return None


def refuse_existing(outputs: Sequence[str], job: str) -> None:
    """Refuse to write over outputs of another job.

    Raises:
        OutputExistsError: names the first one, and how to go on.
    """
    there = [
        url for url, found in zip(outputs, in_parallel(_find, outputs, *outputs[:1]), strict=True) if found is not None
    ]
    if there:
        raise OutputExistsError(
            f"{len(there)} of {len(outputs)} outputs exist already and are not of this job ({job}), the first is "
            f"{storage.mask(there[0])}; choose another name, or allow it with --exists overwrite",
            url=storage.mask(there[0]),
            job=job,
        )


def is_of_another_job(url: str, job: str, names: Collection[str]) -> bool:
    """Tell whether the data set whose manifest would stand at a URL was last written by another job.

    Args:
        url: of the data set's manifest.
        job: ours.
        names: of our outputs, as manifests hold them.

    Raises:
        OutputExistsError: what is there tells of other shards than ours, which would lose their manifest.
    """
    try:
        manifest = read_manifest(url)
        others = {shard["name"] for shard in manifest["shards"]} - set(names)
    except NotFoundError:
        return False
    except StorageError:
        raise
    except (TarmillError, KeyError, TypeError):
        manifest, others = {"job": ""}, {"of something else than tarmill"}
    if others and manifest["job"] != job:
        raise OutputExistsError(
            f"{storage.mask(url)} is the manifest of another data set ({min(others)}) and would be overwritten; "
            "choose another name for the output, or allow it with --exists overwrite",
            url=storage.mask(url),
            job=job,
        )
    return bool(manifest["job"] != job)


def publish(
    url: str,
    kind: str,
    job: str,
    done: Sequence[ShardDone],
    outputs: Sequence[str],
    counts: Counts,
    *,
    digest: str | None = None,
    members: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Look at every shard once more, then write the data set's manifest.

    Args:
        url: of the manifest.
        kind, job, counts: of the job.
        done, outputs: its shards and their URLs, in order.
        digest, members: of the whole data set, where the shards' own do not add up to it.
        facts: what else to record.

    Raises:
        ChangedError: an output is no longer what this job wrote.
    """
    shards = [item.output for item in done if item.output is not None]
    faults = in_parallel(lambda pair: fault_of(*pair), list(zip(shards, outputs, strict=True)), url)
    for output, fault in zip(shards, faults, strict=True):
        if fault is not None:
            raise ChangedError(
                f"output {output.name} {fault}: something else writes there; the data set's manifest was not written. "
                "Run the command again: it writes just what is missing",
                url=output.name,
            )
    manifest = {
        "format": MANIFEST_FORMAT,
        "tarmill": __version__,
        "kind": kind,
        "job": job,
        "samples": sum(shard.samples for shard in shards),
        "members": sum(shard.members for shard in shards) if members is None else members,
        "size_bytes": sum(shard.size_bytes for shard in shards),
        "digest": to_hex(sum(int(shard.digest, 16) for shard in shards)) if digest is None else digest,
        "counts": counts.to_dict(),
        **(facts or {}),
        "shards": [{one.name: getattr(shard, one.name) for one in fields(shard)} for shard in shards],
    }
    storage.write_bytes(url, _to_json(manifest), owner=job)


def amend(url: str, facts: Mapping[str, Any], owner: str) -> None:
    """Record more facts in the manifest of a data set that is finished."""
    storage.write_bytes(url, _to_json({**read_manifest(url), **facts}), owner=owner)


def withdraw(url: str) -> None:
    """Remove the data set's manifest, if there is one, before its shards are written anew."""
    if _find(url) is not None:
        storage.delete(url)


def _find(url: str) -> storage.Stat | None:
    try:
        return storage.stat(url)
    except NotFoundError:
        return None


def in_parallel(function: Callable[[A], B], items: Iterable[A], place: str = "") -> list[B]:
    """Call a function that waits for a store on many items; results in order, the first error is raised.

    Args:
        function: is called in threads.
        items: its arguments.
        place: a URL of the store; a few files are looked at in less time than threads take to start.
    """
    known = list(items)
    is_local = bool(place) and storage.capabilities(place).shared != "everywhere"
    if len(known) < (_FEW_FILES if is_local else 2):
        return [function(item) for item in known]
    from concurrent.futures import ThreadPoolExecutor  # dear, and small jobs need no threads

    with ThreadPoolExecutor(_PARALLEL) as pool:
        return list(pool.map(function, known))


def _to_json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=True) + "\n").encode()


def read_manifest(url: str) -> dict[str, Any]:
    """Read a data set's manifest.

    Raises:
        NotFoundError: there is none.
        TarmillError: it is no manifest of tarmill.
    """
    try:
        found = json.loads(storage.read_bytes(url))
        if found["format"] == MANIFEST_FORMAT and isinstance(found["shards"], list):
            return dict(found)
    except (ValueError, KeyError, TypeError):
        pass
    raise TarmillError(f"{storage.mask(url)} is no data set manifest of tarmill; remove it, or name another", url=url)
