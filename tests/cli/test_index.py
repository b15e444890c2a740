"""`tarmill index` as a person or a program uses it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support import tars
from support.maps import pairs_of, put_shards

from tarmill.cli import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of each test: three shards in-0.tar ..."""
    monkeypatch.chdir(tmp_path)
    put_shards(tmp_path, 3)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main.command, ["index", "-j1", *arguments])


def rows(result: Result) -> list[list[str]]:
    assert result.exit_code == 0, result.output
    return [line.split() for line in result.stdout.splitlines()]


def test_the_table_has_each_shard_and_their_sum():
    head, *shards, total = rows(call("in-@3.tar"))
    assert head == ["shard", "samples", "members", "bytes", "digest"]
    assert [row[:4] for row in shards] == [[f"in-{n}.tar", "5", "10", "11,264"] for n in range(3)]
    assert total[:4] == ["all", "15", "30", "33,792"]
    assert int(total[4], 16) == sum(int(row[4], 16) for row in shards) % 2**128


def test_the_digest_is_that_of_cat_check():
    checked = CliRunner().invoke(main.command, ["cat", "--check", "in-0.tar"])
    assert checked.stdout.split()[-1] == rows(call("in-0.tar"))[1][4]


def test_one_shard_has_no_line_for_the_sum():
    assert [row[0] for row in rows(call("in-1.tar"))] == ["shard", "in-1.tar"]


def test_columns_are_aligned(folder):
    (folder / "in-3.tar").write_bytes(tars.ustar(pairs_of(3, samples=1200)))
    lines = call("in-@4.tar").stdout.splitlines()
    assert len({line.rstrip().rfind(" ") for line in lines}) == 1
    assert "1,200" in lines[4]


def test_written_files_are_told_on_standard_error_and_sums_in_the_table(folder):
    result = call("in-@3.tar", "--write", "wids,energon", "--write", "sizes")
    found = rows(result)
    assert found[0][4] == "md5sum"
    assert found[1][4] == hashlib.md5((folder / "in-0.tar").read_bytes()).hexdigest()
    told = [line for line in result.stderr.splitlines() if line.startswith("wrote")]
    assert told == [
        "wrote in.wids.json",
        "wrote .nv-meta/.info.json",
        "wrote sizes.json",
        "wrote 3 files such as in-0.tar.idx",
    ]
    assert not (folder / "in-0.idx").exists()


def test_quiet_leaves_only_the_table():
    result = call("-q", "in-@3.tar", "--write", "sizes")
    assert result.stderr == ""
    assert rows(result)[0] == ["shard", "samples", "members", "bytes"]


def test_standard_input_can_be_counted(folder):
    result = CliRunner().invoke(main.command, ["index", "-"], input=(folder / "in-0.tar").read_bytes())
    assert rows(result)[1][:4] == ["-", "5", "10", "11,264"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["in-@3.tar", "--write", "parquet"], 2, "'parquet'; expected some of wids, energon"),
        (["in-@4.tar"], 1, "input shard in-3.tar (number 4 of 4) is not there"),
        (["cut.tar"], 1, "1 of 1 shards failed"),
    ],
    ids=["unknown reader", "missing shard", "cut shard"],
)
def test_errors_have_a_message_and_an_exit_code(folder, arguments, code, message):
    (folder / "cut.tar").write_bytes(tars.ustar(pairs_of(0))[:2000])
    result = call(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""


def test_it_stands_in_the_help_of_tarmill():
    assert "index" in CliRunner().invoke(main.command, ["--help"]).stdout


@pytest.mark.parametrize("way", ["good", "bad shard", "refused"])
def test_json_lines_are_json_to_the_last_line(folder, way):
    if way == "bad shard":
        (folder / "in-1.tar").write_bytes(b"no tar")
    pattern = "in-@4.tar" if way == "refused" else "in-@3.tar"
    result = call(pattern, "--write", "sizes", "--log-format", "json")
    events = [json.loads(line)["event"] for line in result.stderr.splitlines()]
    assert events[-1] == ("wrote" if way == "good" else "error")
