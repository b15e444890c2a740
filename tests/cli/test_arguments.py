"""Command lines that are read without click: as click reads them, or left to it."""

from __future__ import annotations

from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill.cli.arguments import plain_values
from tarmill.cli.options import spec_options
from tarmill.spec import ExtractSpec, MapSpec, ReorderOptions, RunOptions, ShuffleSpec, SortSpec, UploadSpec

WORDS = [
    *(
        "in-@3.tar",
        "out-@.tar",
        "-",
        "-q",
        "--dry-run",
        "--keys",
        "--keep-rest",
        "-j",
        "-j2",
        "2",
        "-p",
        "x.py",
        "-px.py",
    ),
    *("-f", "-fjpg,cls", "--fields=a,b", "--columns=__key__", "--param", "a=1", "--param=b=c=d", "--on-error"),
    "skip",
    *("--on-error=stop", "--on-error=oops", "--max-member", "4GiB", "--max-member=12x", "--task-timeout=5m", "90s"),
    *(
        "--level",
        "-1",
        "--level=3",
        "--level=x",
        "--help",
        "-h",
        "--",
        "--unknown",
        "-qj1",
        "-F",
        "csv",
        "--salt=",
        "--seed",
        "7",
        "--shard-size=1GiB",
        "--group-by",
        "cls",
        "--reduce",
        "count",
        "--memory",
        "-k",
    ),
]


def by_click(kinds: tuple[Any, ...], arguments: list[str]) -> dict[str, Any] | None:
    found: dict[str, Any] = {}

    def function(**values: Any) -> None:
        # a choice with no default among the choices: `split_values` leaves it to the spec, whose default is ""
        found.update({name: "" if value is None else value for name, value in values.items()})

    for kind in reversed(kinds):
        function = spec_options(kind)(function)
    command = click.command()(function)
    try:
        command.main(arguments, standalone_mode=False)
    except click.ClickException:
        return None
    return found


KINDS = {
    "map": (MapSpec, RunOptions),
    "extract": (ExtractSpec, RunOptions),
    "shuffle": (ShuffleSpec, ReorderOptions),
    "sort": (SortSpec, ReorderOptions),
    "upload": (UploadSpec, RunOptions),
}


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
@given(arguments=st.lists(st.sampled_from(WORDS), max_size=8))
def test_what_is_read_without_click_is_what_click_reads(kinds: tuple[Any, ...], arguments: list[str]) -> None:
    values = plain_values(arguments, *kinds)
    if values is not None:
        assert values == by_click(kinds, arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-p", "x.py", "a.tar", "b.tar"], {"script": "x.py", "input": "a.tar", "output": "b.tar", "workers": 0}),
        (["-j2", "-px.py", "-", "-"], {"script": "x.py", "input": "-", "output": "-", "workers": 2}),
        (["a", "b", "--param", "k=1", "--param=l=2", "-p", "s", "-q"], {"params": ("k=1", "l=2"), "quiet": True}),
        (
            ["a", "b", "-p", "s", "--max-member=1MB", "--task-timeout", "5m"],
            {"max_member": 10**6, "task_timeout": 300.0},
        ),
    ],
)
def test_plain_command_lines_need_no_click(arguments: list[str], expected: dict[str, Any]) -> None:
    values = plain_values(arguments, MapSpec, RunOptions)
    assert values is not None
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize(
    "arguments", [["--help"], ["a"], ["a", "b"], ["a", "b", "-p"], ["a", "b", "-p", "s", "--nope"]]
)
def test_help_and_mistakes_are_left_to_click(arguments: list[str]) -> None:
    assert plain_values(arguments, MapSpec, RunOptions) is None


def test_shell_completion_is_left_to_click(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_HTMAPPER_COMPLETE", "bash_source")
    assert plain_values(["-p", "x.py", "a.tar", "b.tar"], MapSpec, RunOptions) is None
