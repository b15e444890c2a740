"""`tarmill index`: what is in each shard, and the small files that other readers of shards begin with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from tarmill.cli.options import spec_options, split_values
from tarmill.cli.output import Console, run_command
from tarmill.spec import RunOptions

if TYPE_CHECKING:
    from tarmill.jobs.sidecars import IndexReport

EPILOG = """\b
Example: let wids, DALI and open_clip begin without a scan.
  $ tarmill index 'train-@0100.tar'
  $ tarmill index 'train-@0100.tar' --write wids,dali,sizes
"""


@click.command(
    "index", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.argument("inputs", metavar="IN")
@click.option(
    "--write",
    multiple=True,
    metavar="A,B",
    help="Write the files of these readers beside the shards: wids, energon, dali, sizes (open_clip), timm.",
)
@spec_options(
    RunOptions, leave_out=("scratch_dir", "verify_uploads", "dry_run", "print_manifest", "fail_fast", "report")
)
def command(inputs: str, write: tuple[str, ...], **values: Any) -> None:
    """Count samples, members and bytes of the IN shards; read everything and digest it, or write index files."""
    run_command(lambda: _run(inputs, write, values), values["log_format"])


def _run(inputs: str, write: tuple[str, ...], values: dict[str, Any]) -> None:
    from tarmill.jobs.sidecars import run

    options = RunOptions(**split_values(RunOptions, values))
    wanted = [name for item in write for name in item.split(",") if name]
    console = Console(options, "index")
    try:
        report = run(inputs, wanted, options, console)
    finally:
        console.close()
    for line in table(report):
        click.echo(line)
    if not options.quiet:
        for written in report.written:
            console.tell("wrote", written, "wrote ")


def table(report: IndexReport) -> Iterator[str]:
    """Write the report as aligned lines, a shard in each, and their sum."""
    proof = "digest" if report.shards[0].digest else "md5sum" if report.shards[0].md5 else ""
    rows = [
        (name, f"{shard.samples:,}", f"{shard.members:,}", f"{shard.size_bytes:,}", shard.digest or shard.md5)
        for name, shard in zip(report.names, report.shards, strict=True)
    ]
    rows.insert(0, ("shard", "samples", "members", "bytes", proof))
    if len(report.shards) > 1:
        sums = [sum(getattr(shard, name) for shard in report.shards) for name in ("samples", "members", "size_bytes")]
        rows.append(("all", f"{sums[0]:,}", f"{sums[1]:,}", f"{sums[2]:,}", _digest_of_all(report)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        yield _line(row, widths)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    numbers = "  ".join(text.rjust(width) for text, width in zip(row[1:4], widths[1:], strict=True))
    return f"{row[0].ljust(widths[0])}  {numbers}  {row[4]}".rstrip()


def _digest_of_all(report: IndexReport) -> str:
    from tarmill.formats.digest import to_hex

    if not report.shards[0].digest:
        return ""
    return to_hex(sum(int(shard.digest, 16) for shard in report.shards))
