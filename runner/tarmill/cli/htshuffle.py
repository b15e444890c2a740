"""htshuffle, `tarmill shuffle`: a global random permutation of all samples, into new shards."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from tarmill.cli.arguments import plain_values, split_values
from tarmill.cli.output import finish_job, run_command, run_main
from tarmill.spec import ReorderOptions, ShuffleSpec

if TYPE_CHECKING:
    import click

EPILOG = """\b
Examples: a hundred shards, the same for everybody; shards of 1,000 samples; what would be done; nothing was lost.
  $ htshuffle 'train-@0040.tar' 'shuffled-@0100.tar' --seed 7
  $ htshuffle 'train-@0040.tar' 'shuffled-@.tar' --samples-per-shard 1000
  $ htshuffle 'train-@0040.tar' 'shuffled-@.tar' --dry-run
  $ tarmill verify 'train-@0040.tar' 'shuffled-@.tar'
"""


def make_command() -> click.Command:
    """Build the command as click knows it: for help, for mistakes, and as a part of `tarmill`."""
    import click

    from tarmill.cli.options import spec_options

    @click.command(
        "shuffle", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
    )
    @spec_options(ShuffleSpec)
    @spec_options(ReorderOptions)
    def command(**values: Any) -> None:
        """Write all samples of the IN shards, in random order over all of them, into the OUT shards.

        Every permutation is equally likely, and the seed alone decides which one it is: not the number of workers, not
        the plan, not an interruption. Local files are copied from straight; what is compressed or remote goes through
        memory or scratch files.

        IN: as for htmapper; OUT: 'out-@0100.tar' for just 100 shards, 'out-@.tar' for as many as the cut gives.
        """
        run_command(lambda: _run(values), values["log_format"])

    return command


def _run(values: dict[str, Any]) -> None:
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # numpy starts threads for linear algebra, of which there is none
    from tarmill.jobs.reorder import run

    options = ReorderOptions(**split_values(ReorderOptions, values))
    spec = ShuffleSpec(**split_values(ShuffleSpec, values))
    finish_job(lambda console: run(spec, options, console), options, "htshuffle")


def main() -> None:
    """Entry point of the script `htshuffle`."""
    run_main(_main)


def _main() -> None:
    if (values := plain_values(sys.argv[1:], ShuffleSpec, ReorderOptions)) is None:
        make_command()(prog_name="htshuffle")
    else:
        run_command(lambda: _run(values), values["log_format"])
