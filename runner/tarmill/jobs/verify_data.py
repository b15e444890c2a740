"""The data sets of `tarmill verify`: which shards a pattern, a folder or a manifest stands for, and what it says.

A manifest comes from whoever can write beside the shards: a name in it that leaves its folder is told, and not opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Self

from tarmill import storage
from tarmill.errors import NotFoundError, ShardPatternError, StorageError, TarmillError, UsageError
from tarmill.formats.digest import to_hex
from tarmill.formats.shard_grammar import find_regions
from tarmill.formats.shards import ShardPattern
from tarmill.jobs.inputs import MANIFEST_SUFFIX, list_shards, manifest_url, name_in
from tarmill.jobs.manifests import read_manifest
from tarmill.jobs.verify_shard import ShardFound
from tarmill.planning.tasks import OutputShard
from tarmill.storage.urls import local_path
from tarmill.values import field, replace, valueclass


@valueclass
class Fault:
    """Something that is not as it should be."""

    shard: str
    """What messages call the shard; "" for the whole data set."""
    kind: str
    """missing, extra, unnamed, unreadable, size, hash, samples, members, digest, or the reason of a format error."""
    message: str


@valueclass(frozen=False)
class Entry:
    """One shard of a data set, as far as it is known before anything is read."""

    name: str
    """As manifests name it."""
    url: str
    expected: OutputShard | None
    """None where the manifest does not list it."""
    named: bool
    """Whether the pattern names it."""
    stat: storage.Stat | None = None
    """What the store says of it, once it was looked at; None where it is not there."""
    found: ShardFound | None = None

    @property
    def label(self) -> str:
        """What messages call the shard."""
        return storage.mask(self.url)


@valueclass(frozen=False)
class DataSet:
    """The shards that a pattern or a manifest stands for, and what the manifest says of them."""

    text: str
    """The pattern, for people."""
    manifest_url: str
    """Where the manifest is or would be, for people."""
    manifest: dict[str, Any] | None
    entries: list[Entry]
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    """Manifests that could be meant."""

    def totals(self) -> Totals | None:
        """Sum up the shards that the pattern names; None when one of them could not be read."""
        return Totals.of(entry for entry in self.entries if entry.named)

    def extra(self, url: str) -> Fault:
        """Tell of a shard that is there and should not be."""
        label = storage.mask(url)
        told = f"{label} is named like a shard of the data set, but {self.manifest_url} does not list it"
        return Fault(label, "extra", told)


@valueclass
class Totals:
    """Sums over shards."""

    shards: int
    samples: int
    members: int
    size_bytes: int
    digest: str

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Self | None:
        """Sum up; None when one of them could not be read."""
        found = [entry.found for entry in entries]
        shards = [shard for shard in found if shard is not None and not shard.error]
        if len(shards) < len(found):
            return None
        return cls(
            len(shards),
            sum(shard.samples for shard in shards),
            sum(shard.members for shard in shards),
            sum(shard.size_bytes for shard in shards),
            to_hex(sum(int(shard.digest, 16) for shard in shards)),
        )


def find_data_set(text: str) -> DataSet:
    """Find the shards that a pattern, a folder or a manifest stands for, and the manifest where there is one.

    Raises:
        UsageError: they cannot be known, or there are none.
        TarmillError: the manifest is damaged.
    """
    zones = find_regions(text)
    if text[: zones.query].endswith(MANIFEST_SUFFIX):
        return _of_manifest(text, text[: zones.last], text[zones.query :])
    pattern = ShardPattern.parse(_with_slash(text))
    if "-" in pattern.text.split("::"):
        raise UsageError(
            "standard input can be read only once, and has no manifest; name files or URLs, or count and digest it "
            "with `tarmill cat --check -`"
        )
    url = manifest_url(pattern)
    manifest = _manifest_at(url)
    if pattern.is_open:
        return _of_open(pattern, url, manifest)
    try:
        urls = list_shards(pattern)
    except ShardPatternError:
        if manifest is None or not pattern.needs_listing:
            raise
        urls = []
    names = {_name(pattern.folder, shard): shard for shard in urls}
    data = DataSet(storage.mask(text), storage.mask(url), manifest, [])
    if manifest is None and pattern.needs_listing:
        _search_manifest(data, pattern, set(names))
    expected = _expected(data.manifest, data.manifest_url)
    for entry in _listed(data, expected, pattern.folder, urls=names):
        entry.named = entry.name in names or pattern.match(entry.url)
        data.entries.append(entry)
        if not entry.named:
            told = f"{entry.label} is in {data.manifest_url}, but not in {data.text}"
            data.faults.append(Fault(entry.label, "unnamed", told))
    data.entries += [Entry(name, shard, None, True) for name, shard in names.items() if name not in expected]
    return data


def _of_manifest(text: str, folder: str, query: str) -> DataSet:
    """Take the shards that a manifest lists, whose URL is given."""
    shown = storage.mask(text)
    manifest = _manifest_at(text)
    if manifest is None:
        raise UsageError(f"{shown} is not there; name the shards, or an existing manifest", url=shown)
    data = DataSet(shown, shown, manifest, [])
    data.entries += _listed(data, _expected(manifest, shown), folder, query)
    return data


def _of_open(pattern: ShardPattern, url: str, manifest: dict[str, Any] | None) -> DataSet:
    """Take the shards that the manifest lists, or those that are there, for a pattern whose count is open."""
    data = DataSet(storage.mask(pattern.text), storage.mask(url), manifest, [])
    expected = _expected(manifest, data.manifest_url)
    query = pattern.text[find_regions(pattern.text).query :]
    data.entries += _listed(data, expected, pattern.folder, query)
    try:
        there = [(_name(pattern.folder, shard), shard + query) for shard in _siblings(pattern)]
    except StorageError as error:
        if manifest is None:
            raise UsageError(
                f"{data.text} leaves the count open, and there is neither a manifest nor a listing that tells it "
                f"({error.message}); write the count after '@'"
            ) from None
        data.notes.append(f"shards that the manifest does not list were not looked for: {error.message}")
        there = []
    if manifest is not None:
        data.faults += [data.extra(shard) for name, shard in there if name not in expected]
    elif there:
        data.entries += [Entry(name, shard, None, True) for name, shard in there]
    else:
        raise UsageError(f"{data.text} leaves the count open, and no such shard is there; check its name and place")
    return data


def _siblings(pattern: ShardPattern) -> list[str]:
    """List the shards that an open count could stand for, whatever their numbers; without the query."""
    first, second = pattern.with_count(2).expand()
    end = next(at for at, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1]) + 1
    start = len(first[:end].rstrip("0"))
    last = find_regions(first).query
    name = re.compile(re.escape(first[:start]) + r"\d+" + re.escape(first[end:last]))
    return [info.url for info in storage.list_urls(first[:start]) if name.fullmatch(info.url)]


def _search_manifest(data: DataSet, pattern: ShardPattern, names: set[str]) -> None:
    """Find the manifest in the folder whose shards a wildcard matches, where none is called after the pattern."""
    if len(pattern.parts) > 1:
        return
    found: list[tuple[str, dict[str, Any]]] = []
    for info in storage.list_urls(pattern.folder or "./"):
        if info.url.endswith(MANIFEST_SUFFIX) and "/" not in _name(pattern.folder, info.url):
            with suppress(TarmillError):
                manifest = read_manifest(info.url)
                if names & _expected(manifest, info.url).keys():
                    found.append((storage.mask(info.url.removeprefix("./")), manifest))
    if len(found) == 1:
        [(data.manifest_url, data.manifest)] = found
    data.ambiguous = [url for url, _ in found]


def as_source(data: DataSet) -> DataSet:
    """Take a data set as what another was made of: what its own manifest says of bytes and counts is not at stake."""
    entries = [replace(entry, expected=None) for entry in data.entries if entry.named]
    read = {entry.label for entry in entries}
    faults = [fault for fault in data.faults if fault.kind != "unnamed" and fault.shard not in read]
    return replace(data, manifest=None, entries=entries, faults=faults)


def _manifest_at(url: str) -> dict[str, Any] | None:
    try:
        return read_manifest(url)
    except NotFoundError:
        return None


def _expected(manifest: dict[str, Any] | None, url: str) -> dict[str, OutputShard]:
    """Take what a manifest, where there is one, says of its shards, by name.

    Raises:
        TarmillError: it is damaged.
    """
    if manifest is None:
        return {}
    try:
        shards = [
            OutputShard(
                name=str(shard["name"]),
                size_bytes=int(shard["size_bytes"]),
                version="",  # of the place where it was written; a copy has another
                content_hash=str(shard["content_hash"]),
                samples=int(shard["samples"]),
                members=int(shard["members"]),
                digest=str(shard["digest"]),
            )
            for shard in manifest["shards"]
        ]
        found = {shard.name: shard for shard in shards}
        if len(found) == len(shards) and {"samples", "members", "digest"} <= manifest.keys():
            return found
        fact = "it names a shard twice, or has no sums"
    except (KeyError, TypeError, ValueError) as error:
        fact = f"{type(error).__name__}: {error}"
    raise TarmillError(f"{url} is damaged: {fact}; restore it, or run the job again", url=url)


def _listed(
    data: DataSet,
    expected: Mapping[str, OutputShard],
    folder: str,
    query: str = "",
    urls: Mapping[str, str] = {},
) -> Iterator[Entry]:
    """Give the shards that a manifest lists; one that leaves the folder is a fault, and is not opened."""
    for name, known in expected.items():
        if name not in urls and (name.startswith("/") or "://" in name or ".." in name.split("/")):
            told = f"{data.manifest_url} lists {name!r}, which is no name below its folder"
            data.faults.append(Fault(name, "unreadable", told))
        else:
            yield Entry(name, urls.get(name, f"{folder}{name}{query}"), known, True)


def _name(folder: str, url: str) -> str:
    """Name a shard as manifests do, also where a listing began with './'."""
    return name_in(folder, url).removeprefix("./")


def _with_slash(text: str) -> str:
    """Write the name of a local folder as patterns have it."""
    if storage.scheme_of(text) == "file" and not text.endswith("/"):
        with suppress(TarmillError):
            if os.path.isdir(local_path(text)):
                return text + "/"
    return text
