"""`tarmill run --spec FILE`: the same jobs from a spec file, as a Kubernetes resource holds it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tarmill.cli.options import spec_options, split_values
from tarmill.cli.output import run_command
from tarmill.cli.serve_options import ServeOptions
from tarmill.spec import ReorderOptions, RunOptions, kind_of

if TYPE_CHECKING:
    from tarmill.cli.job_command import JobCommand
    from tarmill.jobs.listener import Listener

EPILOG = """\b
Example: the job that `htmapper -p double.py 'a-@4.tar' 'b-@.tar'` runs.
  $ cat job.yaml
  apiVersion: tarmill.dev/v1alpha1
  kind: ShardMap
  spec:
    input: a-@4.tar
    output: b-@.tar
    script: |
      def process_sample(record):
          record["txt"] = record["txt"] * 2
          return record
  $ tarmill run --spec job.yaml
"""


class _Command(click.Command):
    """Leaves last words for a command line that cannot be read, too."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        given = list(args)
        try:
            return super().make_context(info_name, args, *rest, **extra)
        except click.UsageError as error:
            if "--serve" in given:
                from tarmill.cli.serve import say_refused

                say_refused(_termination_log(given), error)
            raise


def _termination_log(arguments: Sequence[str]) -> str:
    """Find where the last words go in a command line that cannot be read."""
    flag, path = "--termination-log", ServeOptions().termination_log
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == flag and following:
            path = following
        elif word.startswith(f"{flag}="):
            path = word.partition("=")[2]
    return path


@click.command(
    "run",
    cls=_Command,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--spec", "spec_file", required=True, metavar="FILE", help="Spec as YAML or JSON: a file, a URL or `-`.")
@spec_options(ReorderOptions)
@spec_options(ServeOptions)
@click.pass_context
def command(context: click.Context, /, spec_file: str, **values: Any) -> None:
    """Run the job that a spec file describes."""
    given = {name: value for name, value in values.items() if _is_given(context, name)}

    def work() -> None:
        if values["serve"]:
            from tarmill.cli.serve import serve_job

            serve_job(values, lambda: _read(spec_file, given), _start)
        else:
            ServeOptions(**split_values(ServeOptions, values))
            _start(*_read(spec_file, given))

    run_command(work, values["log_format"])


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP, None)


def _read(spec_file: str, given: dict[str, Any]) -> tuple[Any, RunOptions]:
    """Read a job; what the command line says of how to run it counts more than the file."""
    from tarmill.cli.htmapper import read_script
    from tarmill.cli.manifest import read_manifest_text
    from tarmill.spec_file import read_spec_file

    spec, options = read_spec_file(read_manifest_text(spec_file), read_script)
    chosen = vars(options) | split_values(ReorderOptions, given)
    chosen["store_options"] = options.store_options | chosen["store_options"]
    return spec, ReorderOptions(**chosen)


def _start(spec: Any, options: RunOptions, *listeners: Listener) -> None:
    kind = kind_of(spec)
    job: JobCommand = importlib.import_module(f"tarmill.cli.{kind.command}").COMMAND
    job.start(spec, options, kind.name, listeners)
