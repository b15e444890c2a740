"""From a shard pattern to pinned shards: listed where that is needed, looked at, hashes known from manifests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import lru_cache

from tarmill import storage
from tarmill.errors import NotFoundError, SpecError, StorageError
from tarmill.formats.shards import ShardPattern
from tarmill.planning.tasks import Shard
from tarmill.storage.urls import local_path

MANIFEST_SUFFIX = ".manifest.json"


def find_shards(pattern: ShardPattern) -> list[Shard]:
    """Resolve an input pattern into shards, each pinned to the version that is there now.

    Raises:
        ShardPatternError: it matches nothing, or its count is open.
        NotFoundError: a shard of a numbered pattern is missing; the message says which and how many.
    """
    urls = list_shards(pattern)
    if urls == ["-"]:
        return [Shard("-", "standard input")]
    hashes = known_hashes(pattern)
    found: list[Shard] = []
    try:
        for info in storage.stat_many(urls):
            size, digest = hashes.get(name_in(pattern.folder, info.url), (None, ""))
            content_hash = digest if size == info.size_bytes else ""
            found.append(Shard(info.url, storage.mask(info.url), info.size_bytes, info.version, content_hash))
    except NotFoundError as error:
        raise NotFoundError(
            f"input shard {storage.mask(urls[len(found)])} (number {len(found) + 1} of {len(urls)}) is not there; "
            "check the pattern's count and place, or write the missing shard",
            url=error.facts.get("url", ""),
        ) from None
    return found


def total_bytes(shards: Iterable[Shard]) -> int | None:
    """Sum up the sizes of shards; None where one is not known."""
    total = 0
    for shard in shards:
        if shard.size_bytes is None:
            return None
        total += shard.size_bytes
    return total


def list_shards(pattern: ShardPattern) -> list[str]:
    """Name the URLs of an input pattern, in order, without looking at them (but for lists, folders and wildcards)."""
    return pattern.resolve(
        lambda prefix: (info.url for info in storage.list_urls(prefix)),
        lambda url: storage.read_bytes(url).decode("utf-8", "surrogateescape").splitlines(),
    )


def manifest_url(pattern: ShardPattern) -> str:
    """Name the manifest of a data set: `train-@0100.tar` -> `train.manifest.json`."""
    return f"{pattern.folder}{pattern.stem}{MANIFEST_SUFFIX}"


def name_in(folder: str, url: str) -> str:
    """Name a shard as manifests do: relative to the data set's folder, without a query, which may hold a signature."""
    name = url.removeprefix(folder)
    return name.partition("?")[0] if storage.scheme_of(url) in ("http", "https") else name


def known_hashes(pattern: ShardPattern) -> dict[str, tuple[int, str]]:
    """Read what the input's own manifest, where tarmill wrote one, knows of its shards: name -> (size, hash)."""
    if pattern.needs_listing or pattern.list_files:
        return {}
    try:
        manifest = json.loads(storage.read_bytes(manifest_url(pattern)))
        return {shard["name"]: (shard["size_bytes"], shard["content_hash"]) for shard in manifest["shards"]}
    except (StorageError, ValueError, KeyError, TypeError):
        return {}  # most data sets have none; a damaged one proves nothing


def refuse_inputs(shards: Iterable[Shard], outputs: Iterable[str], output: str) -> None:
    """Refuse to write over an input, under whatever spelling.

    Args:
        shards: the inputs.
        outputs: URLs.
        output: what the outputs were called in the spec.

    Raises:
        SpecError: names the one that is both.
    """
    inputs = {_place(shard.url) for shard in shards}
    if clash := [url for url in outputs if url != "-" and _place(url) in inputs]:
        raise SpecError(
            f"{storage.mask(clash[0])} is both input and output; expected other names for the outputs",
            field="output",
            value=storage.mask(output),
        )


def _place(url: str) -> str:
    """Name what a URL stands for, so that two spellings of one file are equal."""
    if storage.scheme_of(url) != "file":
        return url
    folder, name = os.path.split(local_path(url))
    return os.path.join(_real_folder(os.path.join(os.getcwd(), folder)), name)


@lru_cache(1024)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)
