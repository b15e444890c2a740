"""The documentation is true: its examples run and print what it says, its option tables are those of the commands.

In README.md and docs/*.md, in order and in one folder for each page:

- a ```sh block is a script: it must succeed;
- a ```console block is a session: lines after `$ ` (continued by `> `) are run, the lines below are what it prints
  (standard output and standard error); `...` stands for anything, also for whole lines; no lines: not compared;
- a ```python block after `<!-- file: NAME -->` is written to that file.

`<!-- exit: N -->` before a block says how its last command ends; `<!-- needs: nginx -->` leaves it out where there is
no such program; `<!-- server: s3 -->` runs it beside a real S3 server with a bucket `data`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import s3_places

from tarmill.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"((?:^<!-- [a-z]+: [^\n]* -->\n)*)^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REMARK = re.compile(r"<!-- ([a-z]+): (.*) -->")


@dataclass(frozen=True)
class Step:
    """One command of a page, with what must come of it."""

    command: str
    expected: str = ""
    status: int = 0


def steps_of(block: str, status: int) -> list[Step]:
    """Split a session into its commands; the exit status belongs to the last."""
    steps: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        elif (line.startswith("> ") or line == ">") and not steps[-1][1]:
            steps[-1] = (steps[-1][0] + "\n" + line[2:], [])
        else:
            steps[-1][1].append(line)
    last = len(steps) - 1
    return [
        Step(command, "\n".join(lines), status if index == last else 0) for index, (command, lines) in enumerate(steps)
    ]


def matches(expected: str, printed: str) -> bool:
    """Compare line by line, any blanks alike; `...` stands for anything, alone on a line for any lines."""
    pieces = []
    for line in expected.splitlines():
        if line.strip() == "...":
            pieces.append(r"(?:.*\n)*?")
        else:
            words = re.escape(re.sub(r"\s+", " ", line.rstrip()))
            pieces.append(words.replace(r"\ ", "[ \t]+").replace(r"\.\.\.", ".*") + "[ \t]*\n")
    return re.fullmatch("".join(pieces), printed.rstrip("\n") + "\n") is not None


def run(step: Step, folder: Path, place: list[str], server: dict[str, str]) -> None:
    """Run one command where the one before it left off."""
    shell = f"cd {place[0]!r}\n{step.command}\nstatus=$?\npwd > {str(folder / '.place')!r}\nexit $status"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", shell],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": path, "COLUMNS": "120", "TERM": "dumb", **server},
        text=True,
        check=False,
    )
    assert done.returncode == step.status, f"$ {step.command}\n{done.stdout}"
    if step.expected:
        assert matches(step.expected, done.stdout), (
            f"$ {step.command}\n--- printed\n{done.stdout}\n--- expected\n{step.expected}"
        )
    place[0] = (folder / ".place").read_text().rstrip("\n")


def marks_of(page: Path) -> list[pytest.MarkDecorator]:
    return s3_places.MARKS if "<!-- server: s3 -->" in page.read_text() else []


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name, marks=marks_of(page)) for page in PAGES])
@pytest.mark.timeout(300)
def test_the_examples_of_a_page_run_and_print_what_it_says(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = [str(tmp_path)]
    nothing = {"AWS_CONFIG_FILE": os.devnull + "/none", "AWS_SHARED_CREDENTIALS_FILE": os.devnull + "/none"}
    for remarks, language, text in BLOCK.findall(page.read_text()):
        told = dict(REMARK.findall(remarks))
        if "needs" in told and shutil.which(told["needs"], path=os.environ["PATH"] + ":/usr/sbin") is None:
            continue
        server = request.getfixturevalue("seaweed").environment() | nothing if told.get("server") == "s3" else {}
        if language == "python" and "file" in told:
            Path(place[0], told["file"]).write_text(text)
        elif language == "sh":
            run(Step("set -e\n" + text, status=int(told.get("exit", 0))), tmp_path, place, server)
        elif language == "console":
            for step in steps_of(text, int(told.get("exit", 0))):
                run(step, tmp_path, place, server)


def test_the_generated_parts_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_has_its_option_table_on_one_page() -> None:
    named = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert named is not None
    assert named.loader is not None
    generate = importlib.util.module_from_spec(named)
    named.loader.exec_module(generate)
    tables = re.findall(r"<!-- options: (.+?) -->", "".join(page.read_text() for page in PAGES))
    assert sorted(tables) == sorted(generate.COMMANDS)
    assert {module for module, _ in main._COMMANDS.values()} == set(generate.COMMANDS.values())


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "docs" / "kubernetes").glob("*.md"))], ids=lambda page: page.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("a\nb", "a\nb\n", True),
        ("a\n...\nd", "a\nb\nc\nd\n", True),
        ("took ... s", "took 0.5 s\n", True),
        ("a", "a\nb\n", False),
        ("a ... c", "a\nc\n", False),
        ("a b", "a   b\n", True),
        ("a b", "ab\n", False),
    ],
    ids=["equal", "lines left out", "part of a line", "more lines", "dots on one line", "more blanks", "no blank"],
)
def test_what_is_printed_is_compared_with_the_page(expected: str, printed: str, same: bool) -> None:
    assert matches(expected, printed) is same
