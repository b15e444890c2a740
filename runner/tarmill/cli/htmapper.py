"""htmapper, `tarmill map`: every sample through a Python function."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tarmill.cli.arguments import split_values
from tarmill.cli.job_command import JobCommand
from tarmill.cli.output import finish_job
from tarmill.errors import UsageError
from tarmill.jobs.listener import Listener
from tarmill.spec import MapSpec, RunOptions

HELP = """\
Send every sample of the IN shards through a script and write the OUT shards, one for one.

IN: shards such as 'train-@0100.tar' (100 of them), 'train-{000..099}.tar', a glob, a folder, @list.txt, URLs,
or -. OUT: as many, or 'out-@.tar' for just as many; .tar, .tar.gz, .tar.zst, .tar.xz or .tar.bz2.
"""

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


def _read(values: dict[str, Any]) -> tuple[MapSpec, RunOptions]:
    options = RunOptions(**split_values(RunOptions, values))
    name = values.pop("script")
    spec = MapSpec(**split_values(MapSpec, values), script=read_script(name), script_name=os.path.basename(name))
    return spec, options


def run_map(spec: MapSpec, options: RunOptions, title: str, listeners: Sequence[Listener] = ()) -> None:
    """Run a map job as a command does."""
    from tarmill.jobs.map import run

    finish_job(lambda listener: run(spec, options, listener), options, title, listeners)


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


COMMAND = JobCommand("htmapper", "map", (MapSpec, RunOptions), _read, run_map, HELP, EPILOG)
make_command = COMMAND.make
main = COMMAND.main
