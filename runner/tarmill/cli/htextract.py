"""htextract, `tarmill extract`: fields, keys or values inside JSON as rows; counts and statistics."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tarmill.cli.arguments import split_values
from tarmill.cli.job_command import JobCommand
from tarmill.cli.output import finish_job, show_report
from tarmill.jobs.listener import Listener
from tarmill.spec import ExtractSpec, RunOptions
from tarmill.values import replace

HELP = """\
Write columns of every sample of the IN shards as rows, in order, or count them.
"""

EPILOG = """\b
Examples: captions in English as JSON lines; the ten most frequent classes; what is in a data set.
  $ htextract 'train-@0100.tar' -f __key__,json:caption --where 'json:lang == "en"' -F jsonl
  $ htextract 'train-@0100.tar' -f cls:int --top 10
  $ htextract 'train-@0100.tar' --keys
"""


def _read(values: dict[str, Any]) -> tuple[ExtractSpec, RunOptions]:
    options = RunOptions(**split_values(RunOptions, values))
    columns = tuple(values.pop("columns"))  # their own parser knows which commas separate
    return ExtractSpec(**split_values(ExtractSpec, values), columns=columns), options


def run_extract(spec: ExtractSpec, options: RunOptions, title: str, listeners: Sequence[Listener] = ()) -> None:
    """Run an extraction as a command does.

    As a filter (rows to standard output, nobody watching) it is quiet, unless something was left out.
    """
    from tarmill.jobs.extract import run
    from tarmill.jobs.report import Report

    filtering = spec.output == "-" and options.log_format == "text" and not sys.stderr.isatty()
    shown = replace(options, quiet=True) if filtering else options
    reports: list[Report] = []

    def start(listener: Listener) -> Report:
        reports.append(run(spec, shown, listener))
        return reports[0]

    finish_job(start, shown, title, listeners)
    if filtering and not options.quiet and any(_remarkable(report) for report in reports):
        show_report(reports[0], replace(options, report=""))


def _remarkable(report: Any) -> bool:
    counts = report.counts
    return bool(counts.errors or counts.dropped["missing"] or counts.kept_damaged or counts.duplicate_keys)


COMMAND = JobCommand("htextract", "extract", (ExtractSpec, RunOptions), _read, run_extract, HELP, EPILOG)
make_command = COMMAND.make
main = COMMAND.main
