"""htsort, `tarmill sort`: all samples in the order of keys, perhaps reduced key by key, into new shards."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from tarmill.cli.arguments import plain_values, split_values
from tarmill.cli.htmapper import read_script
from tarmill.cli.output import finish_job, run_command, run_main
from tarmill.spec import ReorderOptions, SortSpec

if TYPE_CHECKING:
    import click

EPILOG = """\b
Examples: by name; best score first; how many samples each class has; the best of each; captions joined to images.
  $ htsort 'train-@0040.tar' 'sorted-@.tar'
  $ htsort 'train-@0040.tar' 'best-@.tar' -k meta.json:score:float:desc
  $ htsort 'train-@0040.tar' 'classes-@1.tar' -k cls:int --reduce count
  $ htsort 'train-@0040.tar' 'tops-@1.tar' --group-by cls -k meta.json:score:desc --reduce first
  $ htsort 'images-@100.tar::captions-@20.tar' 'pairs-@100.tar' --reduce merge --join inner
"""


def make_command() -> click.Command:
    """Build the command as click knows it: for help, for mistakes, and as a part of `tarmill`."""
    import click

    from tarmill.cli.options import spec_options

    @click.command(
        "sort", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
    )
    @spec_options(SortSpec)
    @spec_options(ReorderOptions)
    def command(**values: Any) -> None:
        """Write all samples of the IN shards, sorted over all of them, into the OUT shards; reduce those of equal key.

        Samples of equal key stay in the order of the input. IN: as for htmapper; OUT: 'out-@0100.tar' for just 100
        shards, 'out-@.tar' for as many as the cut gives.
        """
        run_command(lambda: _run(values), values["log_format"])

    return command


def _run(values: dict[str, Any]) -> None:
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # numpy starts threads for linear algebra, of which there is none
    from tarmill.jobs.reorder import run

    options = ReorderOptions(**split_values(ReorderOptions, values))
    chosen: dict[str, Any] = {name: tuple(values.pop(name)) for name in ("keys", "group_by")}  # commas are theirs
    for name in ("script", "reduce_script"):
        if path := values.pop(name):
            chosen |= {name: read_script(path), f"{name}_name": os.path.basename(path)}
    spec = SortSpec(**split_values(SortSpec, values), **chosen)
    finish_job(lambda console: run(spec, options, console), options, "htsort")


def main() -> None:
    """Entry point of the script `htsort`."""
    run_main(_main)


def _main() -> None:
    if (values := plain_values(sys.argv[1:], SortSpec, ReorderOptions)) is None:
        make_command()(prog_name="htsort")
    else:
        run_command(lambda: _run(values), values["log_format"])
