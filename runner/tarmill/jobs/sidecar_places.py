"""Where the small files for other readers lie: beside each shard, and in the folder of the data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tarmill import storage
from tarmill.errors import NotFoundError, SpecError
from tarmill.formats import sidecar_names
from tarmill.formats.shard_grammar import find_regions
from tarmill.formats.shard_tokens import common_start
from tarmill.values import valueclass


@valueclass
class Places:
    """Which files are wanted for the shards of a data set; made by `places_for`."""

    wanted: tuple[str, ...]
    """Names of `sidecar_names.SIDECARS`, in that order."""
    stem: str
    """Of the data set's pattern."""
    folder: str
    """That all shards have in common, '/' at its end, or ""."""
    names: tuple[str, ...]
    """Of the shards, relative to it."""
    urls: tuple[str, ...]

    def beside(self, number: int) -> dict[str, str]:
        """Give the files of one shard: kind -> URL."""
        zone = find_regions(self.urls[number])
        url = self.urls[number]
        before, name, query = url[: zone.last], url[zone.last : zone.query], url[zone.query :]
        name_of = {"energon": sidecar_names.energon_index_name, "dali": sidecar_names.dali_index_name}
        return {
            kind: f"{before}{name_of[kind](name)}{query}" for kind in sidecar_names.OF_EACH_SHARD if kind in self.wanted
        }

    def of_data_set(self) -> dict[str, str]:
        """Give the files that stand for the whole data set: kind -> URL."""
        first = self.urls[0][: find_regions(self.urls[0]).last]
        urls = {
            "wids": self.folder + sidecar_names.wids_name(self.stem),
            "energon": self.folder + sidecar_names.ENERGON_INFO,
            "sizes": first + sidecar_names.SIZES,
            "timm": self.folder + sidecar_names.TIMM_INFO,
        }
        return {kind: url for kind, url in urls.items() if kind in self.wanted}

    def told(self) -> Iterator[str]:
        """Name all files to a person: those of the data set, and how many stand beside shards."""
        for url in self.of_data_set().values():
            yield storage.mask(url)
        for url in self.beside(0).values():
            files = f"{len(self.urls)} files such as " if len(self.urls) > 1 else ""
            yield files + storage.mask(url)


def places_for(urls: Sequence[str], stem: str, wanted: Sequence[str]) -> Places:
    """Find where the files for some shards go, and refuse what cannot come out right.

    Args:
        urls: of the shards, in order; at least one.
        stem: of their pattern.
        wanted: names of `sidecar_names.SIDECARS`; may be none, to have only the names.

    Raises:
        SpecError: the shards have no folder in common, or their names do not allow what is wanted.
    """
    if wanted and "-" in urls:
        raise SpecError(
            "nothing can be written beside standard input or output; name a file or URL", field="index", value="-"
        )
    folder, names = place_of(urls)
    kinds = tuple(kind for kind in sidecar_names.SIDECARS if kind in wanted)
    places = Places(kinds, stem, folder, tuple(names), tuple(urls))
    _refuse_shared(places)
    return places


def _refuse_shared(places: Places) -> None:
    files = [url for number in range(len(places.urls)) for url in places.beside(number).values()]
    if "sizes" in places.wanted:
        files += [name.rpartition("/")[2] for name in places.names]
    for url, times in Counter(files).items():
        if times > 1:
            raise SpecError(
                f"{times} shards would share {storage.mask(url)!r} in what is to be written; rename the shards so that "
                "they differ before the first dot and, for sizes, whatever their folder",
                field="index",
                value=storage.mask(url),
            )


def place_of(urls: Sequence[str]) -> tuple[str, list[str]]:
    """Find the folder that shards have in common ('/' at its end, or ''), and their names below it (pure).

    Raises:
        SpecError: they have none, being on several hosts or under several roots.
    """
    if list(urls) == ["-"]:
        return "", ["-"]
    zones = [find_regions(url) for url in urls]
    common = common_start([url[: zone.last] for url, zone in zip(urls, zones, strict=True)])
    common = common[: common.rfind("/") + 1]
    names = [url[len(common) : zone.query] for url, zone in zip(urls, zones, strict=True)]
    if len(common) < zones[0].path or any(name.startswith("/") or "://" in name for name in names):
        raise SpecError(
            f"{storage.mask(urls[0])} and {storage.mask(urls[-1])} have no folder in common, relative to which they "
            "could be named; index them one by one",
            field="input",
            value=storage.mask(urls[0]),
        )
    return common, names


def bytes_at(url: str) -> bytes | None:
    """Read a small file; None where there is none."""
    try:
        return storage.read_bytes(url)
    except NotFoundError:
        return None
