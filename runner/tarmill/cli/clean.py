"""`tarmill clean`: remove what jobs leave beside their outputs and in scratch folders."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from tarmill.cli.options import store_options, use_stores
from tarmill.cli.output import run_command, say
from tarmill.errors import UsageError

if TYPE_CHECKING:
    from tarmill.jobs.clean_files import JobLeftovers

EPILOG = """\b
Example: what would go; one job; all jobs that wrote beside these shards.
  $ tarmill clean --dry-run out/_tarmill/0123456789abcdef
  $ tarmill clean 0123456789abcdef --in out
  $ tarmill clean --all 'out/train-@.tar'
"""


@click.command(
    "clean", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.argument("job", metavar="JOB")
@click.option("--all", "every", is_flag=True, help="JOB is a shard pattern or a folder: all jobs that wrote there.")
@click.option(
    "--in", "folders", multiple=True, metavar="FOLDER", help="Where to look for a job id: the folder of its outputs."
)
@click.option("--scratch-dir", default="", metavar="DIR", help="Where scratch folders are; $TMPDIR by default.")
@click.option("--dry-run", is_flag=True, help="List what would go, and remove nothing.")
@click.option("--force", is_flag=True, help="Also a job that changed a file within the last minute.")
@store_options
def command(
    job: str, every: bool, folders: tuple[str, ...], scratch_dir: str, dry_run: bool, force: bool, **stores: Any
) -> None:
    """Remove state, scratch and temp files of JOB (its folder or id); outputs and manifests stay."""
    run_command(lambda: _run(job, every, folders, scratch_dir, dry_run, force, stores))


def _run(
    job: str,
    every: bool,
    folders: tuple[str, ...],
    scratch_dir: str,
    dry_run: bool,
    force: bool,
    stores: dict[str, Any],
) -> None:
    from tarmill.jobs.clean import find, remove
    from tarmill.jobs.clean_files import RECENT_S

    use_stores(stores)
    jobs = find(job, every=every, folders=folders, scratch_dir=scratch_dir)
    now_s = time.time()
    running = [found for found in jobs if not force and found.may_run(now_s)]
    going = [found for found in jobs if dry_run or found not in running]
    for found in going:
        for note in found.notes:
            say(f"note: {note}")
        if found.has_folder and not found.manifest:
            say(
                f"note: job {found.job} is not complete: without these files it cannot be resumed, a rerun starts over "
                "(with --exists overwrite where outputs are there)"
            )
        if dry_run:
            for line in file_lines(found):
                click.echo(line)
        else:
            remove(found)
    files, size_bytes = sum(len(found.files) for found in going), sum(found.size_bytes for found in going)
    told = f"{files:,} file{'' if files == 1 else 's'} of {len(going):,} job{'' if len(going) == 1 else 's'}"
    if going or not running:
        click.echo(f"{'would remove' if dry_run else 'removed'} {told}, {size_bytes:,} bytes")
    if running:
        first, more = running[0], len(running) - 1
        ago_s = max(0.0, first.changed_s_ago(now_s) or 0.0)
        told = f"job {first.job} changed a file {ago_s:.0f} s ago, and may be running"
        told += f", and so may {more:,} more" if more else ""
        if not dry_run:
            raise UsageError(f"{told}; stop it, and wait for {RECENT_S:.0f} s, or give --force")
        say(f"note: {told}: it would be left alone without --force")


def file_lines(found: JobLeftovers) -> Iterator[str]:
    """List the files of a job as aligned lines: size, URL."""
    from tarmill import storage

    width = max((len(f"{file.size_bytes:,}") for file in found.files), default=0)
    for file in found.files:
        yield f"{file.size_bytes:>{width},}  {storage.mask(file.url)}"
