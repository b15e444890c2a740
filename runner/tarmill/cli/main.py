"""tarmill: the umbrella over all commands."""

from __future__ import annotations

import importlib
from typing import Any

import click

from tarmill import __version__

_COMMANDS = {
    "map": ("tarmill.cli.htmapper", "Send every sample through a Python function (htmapper)."),
    "extract": ("tarmill.cli.htextract", "Fields or keys as rows, counts and statistics (htextract)."),
    "shuffle": ("tarmill.cli.htshuffle", "All samples in random order into new shards (htshuffle)."),
    "sort": ("tarmill.cli.htsort", "All samples in the order of keys into new shards; reduce equal ones (htsort)."),
    "upload": ("tarmill.cli.htupload", "Files, lists of files or a tar into shards (htupload)."),
    "cat": ("tarmill.cli.cat", "Join, convert or check shards, sample by sample."),
    "index": ("tarmill.cli.index", "Count and digest shards; write wids, energon, DALI and other index files."),
    "verify": ("tarmill.cli.verify", "Check a data set against its manifest, or against what it was made of."),
    "clean": ("tarmill.cli.clean", "Remove what a job left: its state, scratch and temp files."),
    "try": ("tarmill.cli.try_script", "Show what a script makes of the first samples."),
    "run": ("tarmill.cli.run", "Run a job from a spec file."),
}


class _Lazy(click.Group):
    """A group whose commands are imported when they are called, so that --help stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name][0])
        found: click.Command = module.make_command() if hasattr(module, "make_command") else module.command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tarmill")
def command(**_: Any) -> None:
    """Map-reduce for sharded tar files: no sample lost, near the speed of cp."""


def main() -> None:
    """Entry point of the script `tarmill`."""
    command(prog_name="tarmill")
