"""Write the generated parts of the pages again: option tables from the commands themselves, the kinds of
the operator and its reasons from its schemas.

usage: generate.py [--check]      (--check writes nothing and fails when a page is out of date)

A page holds a table between `<!-- options: COMMAND -->` and `<!-- end of options -->`.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from pathlib import Path

import click

from tarmill.spec import KINDS
from tarmill.spec_base import option_of
from tarmill.values import fields
from tarmill_operator.conditions import MEANINGS
from tarmill_operator.reasons import CHAPTERS, REASONS

DOCS = Path(__file__).parent
COMMANDS = {
    "htmapper": "tarmill.cli.htmapper",
    "htextract": "tarmill.cli.htextract",
    "htshuffle": "tarmill.cli.htshuffle",
    "htsort": "tarmill.cli.htsort",
    "htupload": "tarmill.cli.htupload",
    "tarmill cat": "tarmill.cli.cat",
    "tarmill index": "tarmill.cli.index",
    "tarmill try": "tarmill.cli.try_script",
    "tarmill run": "tarmill.cli.run",
    "tarmill verify": "tarmill.cli.verify",
    "tarmill clean": "tarmill.cli.clean",
}
ARGUMENTS = {
    "inputs": "Input shards, in shard notation.",
    "shards": "OUT, or IN and OUT: shards in shard notation, a folder, or the manifest of a data set.",
    "job": "A job's folder or id; with `--all` a shard pattern or a folder.",
}
"""What arguments are that no spec describes; click shows no help for arguments."""
MARKS = re.compile(r"(<!-- options: ([\w ]+?) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def command_of(name: str) -> click.Command:
    """Find the click command behind a script's name."""
    module = importlib.import_module(COMMANDS[name])
    found: click.Command = module.make_command() if hasattr(module, "make_command") else module.command
    return found


def argument_help(command: str, name: str) -> str:
    """Find what the command's spec says of an argument."""
    for kind in KINDS:
        for field in fields(kind.spec):
            if kind.command == command and field.name == name:
                return option_of(field).help
    return ARGUMENTS[name]


def table(name: str) -> str:
    """Format a command's arguments and options, in the order of its help, as a Markdown table."""
    command = command_of(name)
    context = click.Context(command, **command.context_settings)
    lines = ["| option | what it does |", "| --- | --- |"]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Argument):
            record = (parameter.make_metavar(context), argument_help(name, parameter.name or ""))
        if record is not None:
            flags, told = (re.sub(r"\s+", " ", text).replace("|", "\\|") for text in record)
            lines.append(f"| `{flags}` | {told} |")
    return "\n".join(lines)


def generated(text: str) -> str:
    """Give a page's text with its tables as they should be."""
    return MARKS.sub(lambda found: f"{found[1]}\n{table(found[2])}\n\n{found[3]}", text)


def reasons_page() -> str:
    """Make the page that explains each condition and each reason in a resource's status."""
    lines = [
        "# Conditions and reasons",
        "",
        "This page is made from `conditions.py` and `reasons.py` by `make docs`.",
        "",
        "## Conditions",
        "",
        "All are there from the first look at a resource, each `True` or `False`, as kstatus would have them.",
        "",
        "| condition | what it says when it is True |",
        "| --- | --- |",
        *(f"| `{name}` | {means} |" for name, means in MEANINGS.items()),
        "",
        "`status.reason`, `status.lastFailure.reason` and the `reason` of conditions and Events of a resource is one",
        "of the words below; `status.message` says what was found.",
    ]
    for name, reason in REASONS.items():
        if name in CHAPTERS:
            lines += ["", f"## {CHAPTERS[name]}", "", "| reason | what it means | what to do |", "| --- | --- | --- |"]
        lines.append(f"| `{name}` | {reason.means} | {reason.cure} |")
    return "\n".join(lines) + "\n"


def main(check: bool) -> int:
    """Write all pages, or compare them; the exit code is 1 when one differs."""
    import kinds  # lies beside this file: in reach of the script alone

    stale = 0
    pages = {page: generated(page.read_text()) for page in sorted(DOCS.glob("*.md"))}
    pages[DOCS / "kubernetes" / "reasons.md"] = reasons_page()
    pages |= {DOCS / "kubernetes" / name: text for name, text in kinds.pages().items()}
    for page, after in pages.items():
        before = page.read_text() if page.exists() else ""
        if after != before and check:
            stale = 1
            difference = difflib.unified_diff(
                before.splitlines(), after.splitlines(), page.name, "generated", "", "", 1
            )
            print("\n".join([*difference, f"{page.name} is out of date; write it again: make docs"]))
        elif after != before:
            page.parent.mkdir(exist_ok=True)
            page.write_text(after)
            print(f"wrote {page.name}")
    return stale


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
