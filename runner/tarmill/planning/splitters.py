"""Where the buckets of an external sort begin: chosen after the runs are written, from marks in them; pure.

No sample of the data is read for it, and a bad one cannot be drawn. Equal keys split as evenly as others, since run and
row are the last part of a splitter's key.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tarmill.formats.span_order import is_cut, key_bounds
from tarmill.planning.external_tasks import Run, Splitter

MARKS_PER_RUN = 128
"""With as many runs as buckets, n of each, a bucket is off by about sqrt(n) / (3.5 * 128) of its size."""


def choose_splitters(runs: Sequence[Run], bucket_bytes: int) -> list[Splitter]:
    """Choose where buckets begin, so that each has about so many bytes; the first begins before everything.

    Args:
        runs: in the order of the input.
        bucket_bytes: wanted; a bucket comes out larger by a mark's share of each run at most, or where keys are longer
            than they are kept and agree so far.
    """
    marks = sorted(
        ((mark.key, number, mark.row, mark.size_bytes) for number, run in enumerate(runs) for mark in run.marks),
        key=lambda mark: mark[:3],
    )
    total = sum(mark[3] for mark in marks)
    buckets = max(1, -(-total // max(1, bucket_bytes)))
    splitters: list[Splitter] = []
    passed = 0
    for key, number, row, size in marks:
        passed += size
        if len(splitters) + 1 < buckets and passed * buckets >= (len(splitters) + 1) * total:
            splitters.append(Splitter(key, number, row + 1))
    return splitters


def rows_at(keys: NDArray[np.generic], number: int, splitters: Sequence[Splitter]) -> list[int]:
    """Find the first row of each bucket in the sorted keys of a run; 0 for the first bucket, the count at the end.

    Args:
        keys: of the run.
        number: of the run.
        splitters: of all buckets but the first.
    """
    places = [0]
    for splitter in splitters:
        whole = not (isinstance(splitter.key, bytes) and is_cut(splitter.key))
        if not whole or number > splitter.run:
            place = key_bounds(keys, splitter.key, "left")  # of cut keys nobody knows the order yet: all go together
        elif number < splitter.run:
            place = key_bounds(keys, splitter.key, "right")
        else:
            place = splitter.row
        places.append(max(place, places[-1]))
    return [*places, len(keys)]
