"""Samples by the names of their files alone, at which nobody has looked: folder by folder, as they were listed."""

from __future__ import annotations

import marshal
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from tarmill.planning.upload_listing import MARSHAL_VERSION, Entry, Packed, Part, Samples, whole
from tarmill.values import replace, valueclass

MARK = "\0"
"""Stands in for the first dot of a file's name: sorted so, names are in the order of key and field."""

_PIECE_FILES = 1024
"""Longer runs are cut, between samples: shards begin and end within pieces."""

RunPiece = tuple[int, str, str, int | None]
"""(root, folder below it, names joined by "/", class): fewer objects, fewer bytes."""


@valueclass
class Run:
    """Files of one folder that follow each other in the order of keys."""

    base: str
    """Folder of the source, with "/" at its end, or ""."""
    rel: str
    """Folder below it, likewise."""
    names: Sequence[str]
    """With a `MARK` in the place of the first dot."""
    label: int | None = None
    """Number of their class."""

    @property
    def more(self) -> tuple[Part, ...]:
        """The fields of each sample that are no files."""
        return () if self.label is None else (label_part(self.label),)


def label_part(label: int) -> Part:
    """Make the field with the number of a class."""
    text = b"%d" % label
    return "cls", None, len(text), text, None


def cut(run: Run, most: int) -> Iterator[Run]:
    """Cut a run, between samples, into pieces that have at least `most` files as long as there are more."""
    names, begin = run.names, 0
    while len(names) - begin > most:
        end = begin + most
        stem = names[end].partition(MARK)[0]
        while end < len(names) and names[end].partition(MARK)[0] == stem:
            end += 1
        yield replace(run, names=names[begin:end])
        begin = end
    yield replace(run, names=names[begin:]) if begin else run


def samples_of(run: Run, root: int, prefix: str) -> Iterator[Packed]:
    """Give the samples of a run, in order.

    Args:
        run: the files.
        root: number of their source.
        prefix: what is put before every key.
    """
    front, names, more = prefix + run.rel, run.names, run.more
    if names and (alike := _alike(names)) is not None:
        stems, fields = alike
        parts = fields + more
        for stem in stems:
            yield front + stem, root, parts
        return
    last, found = "", list[str]()
    for marked in (*names, MARK):  # behind the last a stem that no file has
        stem, _, name = marked.partition(MARK)
        if stem == last:
            found.append(name)
            continue
        if found:
            yield front + last, root, (*found, *more)
        last, found = stem, [name]


def _alike(names: Sequence[str]) -> tuple[Sequence[str], tuple[str, ...]] | None:
    """Give stems and fields where all samples have the same fields, as most do; None where they differ."""
    front = names[0].partition(MARK)[0] + MARK
    count = 1
    while count < len(names) and names[count].startswith(front):
        count += 1
    fields = tuple(name[len(front) :] for name in names[:count])
    stems: list[str] = []
    for at, field in enumerate(fields):
        ending = MARK + field
        these = [name.removesuffix(ending) for name in names[at::count] if name.endswith(ending)]
        if at and these != stems:
            return None
        stems = these
    return (stems, fields) if len(stems) * count == len(names) else None


class RunListing(Samples):
    """Samples by their files' names: a piece is a run.

    Args:
        prefix: what is put before every key.
        args, options: as for `Spool`.
    """

    def __init__(self, prefix: str, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._prefix = prefix
        self._samples = array("Q")
        """How many samples are in all pieces up to each."""

    @property
    def sizes(self) -> Sequence[int]:  # type: ignore[override]  # nobody assigns to it
        """Nothing is known of any: zeros."""
        return bytes(self._samples[-1] if self._samples else 0)

    def __len__(self) -> int:
        return self._samples[-1] if self._samples else 0

    def add(self, run: Run, root: int) -> None:
        """Append the samples of a run, if there are any."""
        for part in cut(run, _PIECE_FILES) if run.names else ():
            packed: RunPiece = root, part.rel, "/".join(part.names), part.label
            self._recent += marshal.dumps(packed, MARSHAL_VERSION)
            self.ends.append(self._in_file + len(self._recent))
            count = len({name.partition(MARK)[0] for name in part.names})
            self._samples.append(len(self) + count)
            self.files += len(part.names) + count * len(part.more)
            self._added()

    def entries(self, order: Sequence[int] | None, begin: int, end: int) -> Iterator[Entry]:
        """Read the entries at some places; they have no other order than their own."""
        assert order is None
        first, last, skip = self.span(begin, end)
        runs = (marshal.loads(self.piece(index)) for index in range(first, last))
        return map(whole, islice(samples_of_packed(runs, self._prefix), skip, skip + end - begin))

    def span(self, begin: int, end: int) -> tuple[int, int, int]:
        """Tell in which pieces the samples at some places are: first, behind the last, samples to skip in the first."""
        if begin >= end:
            return 0, 0, 0
        first, last = bisect_right(self._samples, begin), bisect_left(self._samples, end)
        return first, last + 1, begin - (self._samples[first - 1] if first else 0)


def samples_of_packed(runs: Iterable[RunPiece], prefix: str) -> Iterator[Packed]:
    """Give the samples of runs as a `RunListing` packs them."""
    return chain.from_iterable(
        samples_of(Run("", rel, names.split("/"), label), root, prefix) for root, rel, names, label in runs
    )
