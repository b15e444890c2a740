"""The exact cut of what came out of a reduce: written in pieces first, cut into shards once its number is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarmill.engine.base import Engine
from tarmill.formats.digest import MASK_128, to_hex
from tarmill.formats.tar_header import BLOCK
from tarmill.jobs.gather import gather
from tarmill.jobs.gather_tasks import Samples, gather_tasks, run_gather, totals_of
from tarmill.jobs.reduce_writer import PieceDone, load_piece, piece_file
from tarmill.jobs.reorder_job import Reorder
from tarmill.jobs.report import Failure
from tarmill.jobs.scratch_files import MEMORY
from tarmill.planning.cuts import Cuts, plan_cuts, task_bytes
from tarmill.planning.span_tasks import Source


class Pieces:
    """What came out of a reduce, in pieces of scratch files, on its way into shards that are cut exactly."""

    def __init__(self, work: Reorder, samples: int, size_bytes: int) -> None:
        """Plan the pieces of so many samples, and find those that an earlier run has written."""
        self._work = work
        count = max(1, size_bytes // task_bytes(size_bytes)) if samples else 0
        self.cuts = Cuts("samples", np.arange(count + 1, dtype=np.int64) * samples // max(1, count))
        stem = f"{work.job.spill}piece-{work.plan.kind}-{samples}-"
        self.urls = [f"{stem}{number:07d}.dat" for number in range(count)]
        self.done: dict[int, PieceDone] = {}
        if work.job.spill != MEMORY:
            work.scratch_files.update(name for url in self.urls for name in (url, piece_file(url)))
            for number, url in enumerate(self.urls if work.may_resume else ()):
                if (found := load_piece(number, url)) is not None:
                    self.take(found)

    def take(self, found: PieceDone) -> None:
        """Take note of a finished piece."""
        self.done[found.number] = found
        self._work.report.counts.merge(found.counts)

    def cut(self, engine: Engine) -> None:
        """Cut all pieces into output shards."""
        work, pieces = self._work, [self.done[number] for number in range(len(self.urls))]
        proof = sum(piece.proof for piece in pieces) & MASK_128
        if proof != work.proof & MASK_128:
            fact = f"{to_hex(proof)} went into the reduce where {to_hex(work.proof)} was found"
            work.report.failures.append(Failure(-1, "the whole job", f"the proof does not hold: {fact}"))
            return
        work.proof = sum(piece.raw_digest for piece in pieces)
        work.digest = sum(piece.digest for piece in pieces)
        work.members = sum(piece.members for piece in pieces)
        samples = _samples_of(pieces)
        work.samples = len(samples)
        order = np.arange(len(samples))
        sizes = samples.sizes(order)
        cuts = plan_cuts(work.spec, work.fixed_count, len(work.inputs), totals_of(sizes), lambda: [sizes])
        work.name_outputs(cuts)
        tasks = gather_tasks(work.job, samples, order, cuts, work.outputs, work.done, None)
        run_gather(work, engine, "cutting", gather, tasks, work.take)


def _samples_of(pieces: Iterable[PieceDone]) -> Samples:
    found = list(pieces)

    def joined(columns: Iterator[NDArray[Any]]) -> NDArray[Any]:
        pieces = list(columns)
        return np.concatenate(pieces) if pieces else np.empty(0, np.uint32)

    return Samples(
        [Source(piece.url, piece.version, piece.url, 0) for piece in found],
        np.cumsum([len(piece.lengths) for piece in found], dtype=np.int64),
        joined((np.cumsum(piece.lengths, dtype=np.int64) - piece.lengths) // BLOCK for piece in found),
        joined(piece.lengths // BLOCK for piece in found),
        joined(piece.stems for piece in found),
        joined(piece.fields for piece in found),
    )
