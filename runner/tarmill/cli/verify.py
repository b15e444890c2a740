"""`tarmill verify`: is a data set what its manifest says, and does it hold just the samples that it was made of?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from tarmill.cli.options import spec_options, split_values
from tarmill.cli.output import Console, run_command
from tarmill.errors import JobFailed, UsageError
from tarmill.spec import RunOptions

if TYPE_CHECKING:
    from tarmill.jobs.verify import VerifyReport

EPILOG = """\b
Example: is a copy whole; did a shuffle lose nothing.
  $ tarmill verify 'copy/train-@0100.tar'
  $ tarmill verify 'train-@0100.tar' 'shuffled-@.tar'
"""

MAX_FAULTS = 20


@click.command(
    "verify", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.argument("shards", nargs=-1, metavar="[IN] OUT")
@click.option(
    "--key-function",
    default="base_plus_ext",
    show_default=True,
    metavar="NAME|REGEX",
    help="How names split into key and field; as for the job that wrote OUT.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result to standard output as JSON.")
@spec_options(
    RunOptions, leave_out=("scratch_dir", "verify_uploads", "dry_run", "print_manifest", "fail_fast", "report")
)
def command(shards: tuple[str, ...], key_function: str, as_json: bool, **values: Any) -> None:
    """Read OUT again and check it against its manifest; with IN, prove that it holds just the samples of IN."""
    run_command(lambda: _run(shards, key_function, as_json, values), values["log_format"])


def _run(shards: tuple[str, ...], key_function: str, as_json: bool, values: dict[str, Any]) -> None:
    from tarmill.jobs.verify import run

    if len(shards) not in (1, 2):
        raise UsageError(f"{len(shards)} data sets are named; expected OUT, or IN and OUT, each in quotes")
    options = RunOptions(**split_values(RunOptions, values))
    console = Console(options, "verify")
    try:
        report = run(
            shards[-1],
            shards[0] if len(shards) > 1 else "",
            key_function=key_function,
            options=options,
            listener=console,
        )
    finally:
        console.close()
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1))
    for note in report.notes:
        console.tell("note", note, "note: ")
    if not report.ok:
        for line in fault_lines(report):
            console.tell("fault", line)
        raise JobFailed(verdict(report))
    if not as_json:
        click.echo(summary(report))


def fault_lines(report: VerifyReport) -> Iterator[str]:
    """Tell what is wrong: the first faults, then some samples that differ."""
    for fault in report.faults[:MAX_FAULTS]:
        yield fault.message
    if len(report.faults) > MAX_FAULTS:
        yield f"... and {len(report.faults) - MAX_FAULTS:,} more faults"
    for difference in report.differences:
        yield str(difference)
    if sum(report.counts.values()) > len(report.differences) > 0:
        yield f"... and {sum(report.counts.values()) - len(report.differences):,} more samples"


def verdict(report: VerifyReport) -> str:
    """Say in one line that something is wrong."""
    from tarmill.jobs.verify import told_by_manifest

    parts = []
    if report.faults:
        shards = len({fault.shard for fault in report.faults if fault.shard})
        what = f"{report.output.text} is not as it should be"
        parts.append(f"{what}: {_count(len(report.faults), 'fault')} in {_count(shards, 'shard')}")
    if report.source is not None and report.is_permutation is False:
        ours, theirs = report.source.totals(), report.output.totals()
        assert ours is not None
        assert theirs is not None
        found = ", ".join(f"{count:,} {kind}" for kind, count in sorted(report.counts.items()))
        parts.append(
            f"{report.output.text} does not hold just the samples of {report.source.text}: {ours.samples:,} samples "
            f"in IN, {theirs.samples:,} in OUT" + (f" ({found})" if found else "")
        )
    if report.source is not None and not report.is_permutation and (told := told_by_manifest(report.output)):
        parts.append(told)
    return "; ".join(parts)


def summary(report: VerifyReport) -> str:
    """Say in one line that all is well."""
    totals = report.output.totals()
    assert totals is not None
    if report.source is None:
        return (
            f"{report.output.text} is as {report.output.manifest_url} says: {_count(totals.shards, 'shard')}, "
            f"{_count(totals.samples, 'sample')}, {totals.size_bytes:,} bytes, digest {totals.digest}"
        )
    ours = report.source.totals()
    assert ours is not None
    manifest = f", and is as {report.output.manifest_url} says" if report.output.manifest else ""
    return (
        f"{report.output.text} holds just the samples of {report.source.text}{manifest}: "
        f"{_count(totals.samples, 'sample')} in {ours.shards:,} and {_count(totals.shards, 'shard')}, "
        f"digest {totals.digest}"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
