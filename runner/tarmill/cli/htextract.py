"""htextract, `tarmill extract`: fields, keys or values inside JSON as rows; counts and statistics."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tarmill.cli.arguments import plain_values, split_values
from tarmill.cli.output import finish_job, run_command, run_main, show_report
from tarmill.spec import ExtractSpec, RunOptions
from tarmill.values import replace

if TYPE_CHECKING:
    import click

EPILOG = """\b
Examples: captions in English as JSON lines; the ten most frequent classes; what is in a data set.
  $ htextract 'train-@0100.tar' -f __key__,json:caption --where 'json:lang == "en"' -F jsonl
  $ htextract 'train-@0100.tar' -f cls:int --top 10
  $ htextract 'train-@0100.tar' --keys
"""


def make_command() -> click.Command:
    """Build the command as click knows it: for help, for mistakes, and as a part of `tarmill`."""
    import click

    from tarmill.cli.options import spec_options

    @click.command(
        "extract", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
    )
    @spec_options(ExtractSpec)
    @spec_options(RunOptions)
    def command(**values: Any) -> None:
        """Write columns of every sample of the IN shards as rows, in order, or count them."""
        run_command(lambda: _run(values))

    return command


def _run(values: dict[str, Any]) -> None:
    options = RunOptions(**split_values(RunOptions, values))
    columns = tuple(values.pop("columns"))  # their own parser knows which commas separate
    run_extract(ExtractSpec(**split_values(ExtractSpec, values), columns=columns), options)


def run_extract(spec: ExtractSpec, options: RunOptions) -> None:
    """Run an extraction as a command does.

    As a filter (rows to standard output, nobody watching) it is quiet, unless something was left out.
    """
    from tarmill.jobs.extract import run
    from tarmill.jobs.report import Report

    filtering = spec.output == "-" and options.log_format == "text" and not sys.stderr.isatty()
    shown = replace(options, quiet=True) if filtering else options
    reports: list[Report] = []

    def start(console: Any) -> Report:
        reports.append(run(spec, shown, console))
        return reports[0]

    finish_job(start, shown, "htextract")
    if filtering and not options.quiet and any(_remarkable(report) for report in reports):
        show_report(reports[0], replace(options, report=""))


def _remarkable(report: Any) -> bool:
    counts = report.counts
    return bool(counts.errors or counts.dropped["missing"] or counts.kept_damaged or counts.duplicate_keys)


def main() -> None:
    """Entry point of the script `htextract`."""
    run_main(_main)


def _main() -> None:
    if (values := plain_values(sys.argv[1:], ExtractSpec, RunOptions)) is None:
        make_command()(prog_name="htextract")
    else:
        run_command(lambda: _run(values))
