"""htshuffle, `tarmill shuffle`: a global random permutation of all samples, into new shards."""

from __future__ import annotations

import os
from typing import Any

from tarmill.cli.arguments import split_values
from tarmill.cli.job_command import JobCommand
from tarmill.cli.output import finish_job
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


def _run(values: dict[str, Any]) -> None:
    options = ReorderOptions(**split_values(ReorderOptions, values))
    run_reorder(ShuffleSpec(**split_values(ShuffleSpec, values)), options, "htshuffle")


def run_reorder(spec: ReorderSpec, options: RunOptions, title: str) -> None:
    """Run a shuffle or sort as a command does."""
    # before numpy is imported: it starts threads for linear algebra, of which there is none
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from tarmill.jobs.reorder import run

    finish_job(lambda console: run(spec, options, console), options, title)


COMMAND = JobCommand("htshuffle", "shuffle", (ShuffleSpec, ReorderOptions), _run, HELP, EPILOG)
make_command = COMMAND.make
main = COMMAND.main
