"""htshuffle, `tarmill shuffle`: a global random permutation of all samples, into new shards."""

from __future__ import annotations

from typing import Any

import click

from tarmill.cli.options import spec_options, split_values
from tarmill.cli.output import finish_job, run_command
from tarmill.spec import ReorderOptions, ShuffleSpec

EPILOG = """\b
Examples: a hundred shards, the same for everybody; shards of 1,000 samples; what would be done; nothing was lost.
  $ htshuffle 'train-@0040.tar' 'shuffled-@0100.tar' --seed 7
  $ htshuffle 'train-@0040.tar' 'shuffled-@.tar' --samples-per-shard 1000
  $ htshuffle 'train-@0040.tar' 'shuffled-@.tar' --dry-run
  $ tarmill verify 'train-@0040.tar' 'shuffled-@.tar'
"""


@click.command(
    "shuffle", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@spec_options(ShuffleSpec)
@spec_options(ReorderOptions)
def command(**values: Any) -> None:
    """Write all samples of the IN shards, in random order over all of them, into the OUT shards.

    Every permutation is equally likely, and the seed alone decides which one it is: not the number of workers, not the
    plan, not an interruption. Local files are copied from straight; what is compressed or remote goes through memory or
    scratch files.

    IN: as for htmapper; OUT: 'out-@0100.tar' for just 100 shards, 'out-@.tar' for as many as the cut gives.
    """
    run_command(lambda: _run(values), values["log_format"])


def _run(values: dict[str, Any]) -> None:
    from tarmill.jobs.reorder import run

    options = ReorderOptions(**split_values(ReorderOptions, values))
    spec = ShuffleSpec(**split_values(ShuffleSpec, values))
    finish_job(lambda console: run(spec, options, console), options, "htshuffle")


def main() -> None:
    """Entry point of the script `htshuffle`."""
    command(prog_name="htshuffle")
