"""htupload, `tarmill upload`: files, lists of files, or a tar into shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tarmill.cli.arguments import split_values
from tarmill.cli.job_command import JobCommand
from tarmill.cli.output import finish_job
from tarmill.errors import UsageError
from tarmill.jobs.listener import Listener
from tarmill.spec import RunOptions, UploadSpec

HELP = """\
Pack files into the OUT shards: files that share a key are one sample, samples come in the order of their keys.

SOURCE: folders, files, globs in quotes, URLs that end in / (all below them); lists of files with --column; or -,
a tar on standard input. OUT: 'out-@.tar' for as many shards as the cut gives, 'out-@0100.tar' for just 100;
.tar, .tar.gz, .tar.zst, .tar.xz or .tar.bz2.
"""

EPILOG = """\b
Examples: a folder; folders that are classes, in random order; what would be done; a list of URLs; more files.
  $ htupload photos/ 'photos-@.tar'
  $ htupload --class-from-dir --shuffle --samples-per-shard 1000 imagenet/train/ 'train-@.tar'
  $ htupload --dry-run photos/ 'photos-@.tar'
  $ htupload --column jpg=@url --column txt=caption list.csv 'web-@.tar' --on-error skip --rejected rejected.jsonl
  $ htupload --append new-photos/ 'photos-@.tar'
"""


def _read(values: dict[str, Any]) -> tuple[UploadSpec, RunOptions]:
    fields = [pair.partition("=")[0] for pair in values["columns"]]
    if twice := [name for name in fields if fields.count(name) > 1]:
        raise UsageError(f"--column names the field {twice[0]!r} twice; give each field one column")
    options = RunOptions(**split_values(RunOptions, values))
    return UploadSpec(**split_values(UploadSpec, values)), options


def run_upload(spec: UploadSpec, options: RunOptions, title: str, listeners: Sequence[Listener] = ()) -> None:
    """Run an upload as a command does."""
    from tarmill.jobs.upload import run

    finish_job(lambda listener: run(spec, options, listener), options, title, listeners)


COMMAND = JobCommand("htupload", "upload", (UploadSpec, RunOptions), _read, run_upload, HELP, EPILOG)
make_command = COMMAND.make
main = COMMAND.main
