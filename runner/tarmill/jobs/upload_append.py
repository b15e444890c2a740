"""`--append`: shards behind those of a data set that is there already, and one manifest for all of them."""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tarmill import storage
from tarmill.engine.base import Engine
from tarmill.engine.meter import current
from tarmill.errors import NotFoundError, SampleError, TarmillError, UsageError
from tarmill.formats.samples import ReadOptions, Tally
from tarmill.formats.shards import ShardPattern
from tarmill.jobs.cut_outputs import numbered
from tarmill.jobs.drive import from_anywhere, results
from tarmill.jobs.inputs import manifest_url
from tarmill.jobs.listener import Listener
from tarmill.jobs.manifests import JobFolder, in_parallel, read_manifest
from tarmill.jobs.shard_io import open_samples
from tarmill.jobs.upload_collect import Collector, hash_of_key
from tarmill.planning.counts import Counts
from tarmill.planning.tasks import OutputShard, Shard, ShardDone
from tarmill.planning.upload_listing import Listing, Samples
from tarmill.planning.upload_names import another_key
from tarmill.spec import UploadSpec
from tarmill.values import field, replace, valueclass


@valueclass(frozen=False)
class Base:
    """The data set that shards are added to."""

    shards: list[OutputShard] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    samples: int = 0
    members: int = 0
    digest: str = "0"
    counts: Counts = field(default_factory=Counts)
    history: list[dict[str, Any]] = field(default_factory=list)
    """What was appended before: job, number of its first shard, how many, its counts."""
    first: int = 0
    """Number of the next shard."""
    width: int = 6

    def done(self) -> list[ShardDone]:
        """Give its shards as `publish` wants them."""
        return [ShardDone(index, Counts(), shard) for index, shard in enumerate(self.shards)]

    def part_of(self, job: str) -> dict[str, Any] | None:
        """Find what a job has appended before."""
        return next((entry for entry in self.history if entry.get("job") == job), None)

    def facts(self, job: str, shards: int, counts: Counts) -> dict[str, Any]:
        """Give what the manifest records of all that was appended."""
        entry = {"job": job, "first": self.first, "shards": shards, "counts": counts.to_dict()}
        return {"appended": [*self.history, entry]}


def find_base(out: ShardPattern) -> Base:
    """Read the manifest of the data set to add to, and make sure that its shards are there; an empty one where none is.

    Raises:
        UsageError: its shards are not named as the output pattern says, or are not as its manifest says.
    """
    if not out.is_open:
        raise UsageError(
            f"--append decides about the number of shards; leave it open, as in 'train-@.tar', instead of {out.text!r}"
        )
    url = manifest_url(out)
    try:
        manifest = read_manifest(url)
        shards = [OutputShard(**shard) for shard in manifest["shards"]]
        base = Base(
            shards=shards,
            samples=manifest["samples"],
            members=manifest["members"],
            digest=manifest["digest"] or "0",
            counts=Counts.from_dict(manifest["counts"]),
            history=list(manifest.get("appended", [])),
        )
    except NotFoundError:
        return Base()
    except (KeyError, TypeError) as error:
        raise TarmillError(f"{storage.mask(url)} is no manifest that can be added to: {error!r}", url=url) from None
    base.urls = [f"{out.folder}{shard.name}" for shard in shards]
    _pin(base, url)
    _number(base, out)
    return base


def _pin(base: Base, manifest: str) -> None:
    """Look at each shard: as large as the manifest says, in the version that is there now."""

    def look(index: int) -> OutputShard:
        shard, url = base.shards[index], base.urls[index]
        try:
            found = storage.stat(url)
        except NotFoundError:
            found = None
        if found is None or found.size_bytes != shard.size_bytes:
            size = "is gone" if found is None else f"has {found.size_bytes} bytes instead of {shard.size_bytes}"
            raise UsageError(
                f"{storage.mask(url)} {size}: the data set is not as {storage.mask(manifest)} says; look with `tarmill "
                "verify`"
            )
        return replace(shard, version=found.version)

    base.shards = in_parallel(look, range(len(base.shards)), manifest)


def _number(base: Base, out: ShardPattern) -> None:
    """Find the next number, and how many digits it has."""
    pattern = re.compile(numbered(out))
    numbers = [match[1] for shard in base.shards if (match := pattern.fullmatch(shard.name)) is not None]
    if len(numbers) < len(base.shards) or len(widths := {len(number) for number in numbers}) > 1:
        raise UsageError(
            f"the shards of the data set, such as {base.shards[0].name}, are not all named as {out.text!r} would name "
            "them; write the pattern of the data set"
        )
    if numbers:
        base.first, base.width = max(map(int, numbers)) + 1, widths.pop()


def names_after(base: Base, out: ShardPattern, count: int) -> list[str]:
    """Name the shards that are added."""
    if count and len(str(base.first + count - 1)) > base.width:
        raise UsageError(
            f"numbers of {base.width} digits do not reach for {base.first + count:,} shards; shuffle or sort the data "
            "set into shards with a wider number first"
        )
    example = out.with_count(1).format(0)
    cut = example.rfind("/") + 1  # of a URL's query there is none: it could not be listed in a manifest
    match = re.fullmatch(numbered(out), example[cut:])
    assert match is not None
    front, back = example[: cut + match.start(1)], example[cut + match.end(1) :]
    return [f"{front}{base.first + index:0{base.width}d}{back}" for index in range(count)]


def begun_at(folder: JobFolder) -> int | None:
    """Tell with which number an earlier run of this job began; None where there was none."""
    try:
        facts = json.loads(storage.read_bytes(folder.url + "job.json"))
        return int(facts["first"])
    except (NotFoundError, ValueError, KeyError, TypeError):
        return None


# ---- keys that are taken --------------------------------------------------------------------------------------------


@valueclass
class KeysTask:
    """Read the keys of a shard."""

    index: int
    shard: Shard
    settings: Any

    @property
    def label(self) -> str:
        """What messages call the task."""
        return self.shard.label


def keys_of_shard(task: KeysTask) -> bytes:
    """Give the hashes of a shard's keys, 8 bytes each; the function that engines run."""
    storage.configure(task.settings)
    meter, found = current(), array("Q")
    options = ReadOptions(load=frozenset(), on_error="ignore")
    with open_samples(task.shard, options, Tally(), meter, verify=False) as samples:
        for record in samples:
            meter.samples += 1
            found.append(hash_of_key(record["__key__"]))
    return found.tobytes()


def existing_keys(base: Base, engine: Engine, listener: Listener) -> Sequence[int]:
    """Read the keys of all shards of a data set, as sorted hashes."""
    if not base.shards:
        return ()
    settings = storage.current_settings()
    tasks = [
        KeysTask(index, Shard(from_anywhere(url), storage.mask(url), shard.size_bytes, shard.version or None), settings)
        for index, (url, shard) in enumerate(zip(base.urls, base.shards, strict=True))
    ]
    listener.note(f"reading the keys of {base.samples:,} samples in {len(tasks):,} shards")
    keys = array("Q")
    for found in results(engine, keys_of_shard, tasks, Listener()):
        keys.frombytes(found)
    return array("Q", sorted(keys))


def without_taken(spec: UploadSpec, collector: Collector, existing: Sequence[int]) -> None:
    """Give other keys to samples whose keys the data set has already, or refuse them.

    Raises:
        SampleError: there are some; tells how many and the first.
    """

    def exists(key: str) -> bool:
        digest = hash_of_key(key)
        at = bisect_left(existing, digest)
        return at < len(existing) and existing[at] == digest

    listing = collector.found.listing
    taken = [index for index, (key, _, _) in enumerate(listing) if exists(key)] if existing else []
    if not taken:
        return
    if spec.same_key == "fail":
        key = listing.entry(taken[0])[0]
        raise SampleError(
            f"{len(taken):,} of {len(listing):,} samples have keys that the data set has already, the first is "
            f"{key!r}; give them others with --key-prefix or --same-key rename, or leave them out",
            key=key,
            reason="same-key",
        )
    given = {hash_of_key(key) for key, _, _ in listing}
    renamed = Listing(storage.current_settings().scratch_dir)
    for entry in _renamed(collector, listing, set(taken), lambda key: hash_of_key(key) in given or exists(key), given):
        renamed.add(entry)
    renamed.finish()
    listing.close()
    collector.found.listing = renamed
    collector.found.renamed += len(taken)


def _renamed(
    collector: Collector, listing: Samples, taken: set[int], is_taken: Callable[[str], bool], given: set[int]
) -> Iterator[Any]:
    for index, entry in enumerate(listing):
        if index not in taken:
            yield entry
            continue
        name = another_key(entry[0], is_taken)
        given.add(hash_of_key(name))
        yield name, -1, collector.explicit(entry)
