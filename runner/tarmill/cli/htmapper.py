"""htmapper, `tarmill map`: every sample through a Python function."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from tarmill.cli.arguments import plain_values, split_values
from tarmill.cli.output import finish_job, run_command, run_main
from tarmill.errors import UsageError
from tarmill.spec import MapSpec, RunOptions

if TYPE_CHECKING:
    import click

EPILOG = """\b
Example: keep the samples whose class is 3, and shorten their text.
  $ cat keep3.py
  def process_sample(record):
      if record["cls"] != b"3":
          return None
      record["txt"] = record["txt"][:100]
      return record
  $ htmapper -p keep3.py 'train-@0100.tar' 'small-@.tar.gz'
"""


def make_command() -> click.Command:
    """Build the command as click knows it: for help, for mistakes, and as a part of `tarmill`."""
    import click

    from tarmill.cli.options import spec_options

    @click.command(
        "map", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
    )
    @spec_options(MapSpec)
    @spec_options(RunOptions)
    def command(**values: Any) -> None:
        """Send every sample of the IN shards through a script and write the OUT shards, one for one.

        IN: shards such as 'train-@0100.tar' (100 of them), 'train-{000..099}.tar', a glob, a folder, @list.txt, URLs,
        or -. OUT: as many, or 'out-@.tar' for just as many; .tar, .tar.gz, .tar.zst, .tar.xz or .tar.bz2.
        """
        run_command(lambda: _run(values), values["log_format"])

    return command


def _run(values: dict[str, Any]) -> None:
    from tarmill.jobs.map import run

    options = RunOptions(**split_values(RunOptions, values))
    name = values.pop("script")
    spec = MapSpec(**split_values(MapSpec, values), script=read_script(name), script_name=os.path.basename(name))
    finish_job(lambda console: run(spec, options, console), options, "htmapper")


def read_script(path: str) -> str:
    """Read the text of a user's script.

    Raises:
        UsageError: there is no such file, or it is no text.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise UsageError(
            f"script {path!r}: {error.strerror}; expected a Python file that defines process_sample"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(
            f"script {path!r} is no UTF-8 text; expected a Python file that defines process_sample"
        ) from None


def main() -> None:
    """Entry point of the script `htmapper`."""
    run_main(_main)


def _main() -> None:
    if (values := plain_values(sys.argv[1:], MapSpec, RunOptions)) is None:
        make_command()(prog_name="htmapper")
    else:
        run_command(lambda: _run(values), values["log_format"])
