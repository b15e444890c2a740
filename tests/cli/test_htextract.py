"""The command htextract: rows on standard output, words on standard error, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tarmill import ShardWriter

BIN = Path(sys.executable).parent


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for shard in range(2):
        with ShardWriter(str(tmp_path / f"in-{shard}.tar")) as writer:
            for n in range(3):
                writer.write({"__key__": f"{shard}{n}", "cls": f"{n}", "a,b": "comma"} | ({"x": "1"} if n else {}))
    return tmp_path


def htextract(folder: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [BIN / "htextract", *arguments], cwd=folder, input=stdin, capture_output=True, check=False, timeout=60
    )


def test_as_a_filter_it_prints_rows_and_nothing_else(here: Path) -> None:
    done = htextract(here, "in-@2.tar", "-j", "1", "-f", "__key__", "-f", "cls:int,`a,b`")
    assert done.returncode == 0
    assert done.stdout == b"".join(b"%d%d\t%d\tcomma\n" % (s, n, n) for s in range(2) for n in range(3))
    assert done.stderr == b""


def test_what_was_left_out_is_told_on_standard_error(here: Path) -> None:
    done = htextract(here, "in-@2.tar", "-j", "1", "-f", "x", "--missing", "skip")
    assert (done.returncode, done.stdout) == (0, b"1\n" * 4)
    assert b"- missing             -2 samples" in done.stderr
    assert b"= written              4 samples" in done.stderr
    assert htextract(here, "in-@2.tar", "-j", "1", "-f", "x", "--missing", "skip", "-q").stderr == b""


def test_it_reads_standard_input(here: Path) -> None:
    done = htextract(here, "-", "--count", stdin=(here / "in-0.tar").read_bytes())
    assert (done.returncode, done.stdout) == (0, b"3\n")


def test_a_file_gets_a_report_which_can_be_json(here: Path) -> None:
    done = htextract(here, "in-@2.tar", "-j", "1", "-f", "cls", "-o", "rows.txt", "--report", "report.json")
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"2 of 2 done" in done.stderr
    report = json.loads((here / "report.json").read_text())
    assert (report["kind"], report["balanced"], report["samples"]["written"]) == ("ShardExtract", True, 6)


def test_a_mistake_is_pointed_at_with_exit_code_2(here: Path) -> None:
    done = htextract(here, "in-@2.tar", "--where", "cls == 3")
    assert (done.returncode, done.stdout) == (2, b"")
    message = done.stderr.decode()
    assert "cls:int" in message
    assert "\n  cls == 3\n         ^\n" in message


def test_a_bad_shard_is_exit_code_1_and_names_it(here: Path) -> None:
    (here / "in-1.tar").write_bytes((here / "in-1.tar").read_bytes()[:1500])
    done = htextract(here, "in-@2.tar", "-j", "1")
    assert (done.returncode, done.stdout) == (1, b"00\n01\n02\n")
    assert b"error: 1 of 2 shards failed; the first: in-1.tar" in done.stderr


@pytest.mark.parametrize("way", ["good", "bad shard", "refused"])
def test_json_progress_is_json_to_the_last_line(here: Path, way: str) -> None:
    if way == "bad shard":
        (here / "in-1.tar").write_bytes(b"no tar")
    source = "nothing-@2.tar" if way == "refused" else "in-@2.tar"
    done = htextract(here, source, "-f", "__key__", "--log-format", "json")
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert events[-1] == ("report" if way == "good" else "error")


def test_a_reader_that_goes_away_ends_it_quietly(here: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [BIN / "htextract", "in-@2.tar", "-j", "1"], cwd=here, stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_spec_file_runs_the_same_job(here: Path) -> None:
    spec = {"kind": "ShardExtract", "spec": {"input": "in-@2.tar", "columns": ["cls:int"], "top": 1, "format": "jsonl"}}
    (here / "job.json").write_text(json.dumps(spec))
    done = subprocess.run(
        [BIN / "tarmill", "run", "--spec", "job.json", "-j", "1"],
        cwd=here,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, b'{"count":2,"cls:int":0}\n')
