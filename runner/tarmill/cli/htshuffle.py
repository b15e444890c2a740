"""htshuffle, `tarmill shuffle`: a global random permutation of all samples, into new shards."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from typing import Any

from tarmill.cli.arguments import split_values
from tarmill.cli.job_command import JobCommand
from tarmill.cli.output import finish_job
from tarmill.jobs.listener import Listener
from tarmill.spec import ReorderOptions, ReorderSpec, RunOptions, ShuffleSpec

HELP = """\
Write all samples of the IN shards, in random order over all of them, into the OUT shards.

Every permutation is equally likely, and the seed alone decides which one it is: not the number of workers, not
the plan, not an interruption. Local files are copied from straight; what is compressed or remote goes through
memory or scratch files.

IN: as for htmapper; OUT: 'out-@0100.tar' for just 100 shards, 'out-@.tar' for as many as the cut gives.
"""

EPILOG = """\b
Examples: a hundred shards, the same for everybody; shards of 1,000 samples; what would be done; nothing was lost.
  $ htshuffle 'train-@0040.tar' 'shuffled-@0100.tar' --seed 7
  $ htshuffle 'train-@0040.tar' 'shuffled-@.tar' --samples-per-shard 1000
  $ htshuffle 'train-@0040.tar' 'shuffled-@.tar' --dry-run
  $ tarmill verify 'train-@0040.tar' 'shuffled-@.tar'
"""


def _read(values: dict[str, Any]) -> tuple[ShuffleSpec, ReorderOptions]:
    options = ReorderOptions(**split_values(ReorderOptions, values))
    return ShuffleSpec(**split_values(ShuffleSpec, values)), options


def run_reorder(spec: ReorderSpec, options: RunOptions, title: str, listeners: Sequence[Listener] = ()) -> None:
    """Run a shuffle or sort as a command does."""
    # before numpy is imported: it starts threads for linear algebra, of which there is none
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()  # none of the many objects that numpy's import makes is garbage, now or later
    from tarmill.jobs.reorder import run

    gc.freeze()
    gc.enable()
    finish_job(lambda listener: run(spec, options, listener), options, title, listeners)


COMMAND = JobCommand("htshuffle", "shuffle", (ShuffleSpec, ReorderOptions), _read, run_reorder, HELP, EPILOG)
make_command = COMMAND.make
main = COMMAND.main
