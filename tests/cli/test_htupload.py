"""htupload (`tarmill upload`, `tarmill run`) as a person or a program uses it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.maps import BIN, command, environment, read_json
from support.uploads import keys_of, many_files, members_of, put_files, shards_of
from support.webserver import WebServer

import tarmill
from tarmill.cli import main, output
from tarmill.errors import SpecError
from tarmill.spec import UploadSpec, spec_from_manifest, to_manifest


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of each test, with six samples in `in`."""
    monkeypatch.chdir(tmp_path)
    put_files(tmp_path / "in", many_files(6))
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main.command, ["upload", *arguments, "-j", "1"])


def good(*arguments: str) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("cut", [["--num-shards", "3"], ["--shard-size", "6KB"]], ids=["sizes unknown", "known"])
def test_progress_tells_how_long_it_takes_also_where_sizes_are_not_known(
    monkeypatch: pytest.MonkeyPatch, cut: list[str]
) -> None:
    monkeypatch.setattr(output, "PLAIN_PERIOD_S", 0)
    lines = good("in", "out-@.tar", *cut).stderr.splitlines()
    assert [line for line in lines if line.startswith("2/3 shards") and line.endswith(" s left")]
    assert [line for line in lines if line.startswith("3/3 shards") and not line.endswith(" s left")]


@pytest.mark.parametrize("tool", [["htupload"], ["tarmill", "upload"]])
def test_the_command_packs_files_and_keeps_standard_output_for_data(folder: Path, tool: list[str]) -> None:
    done = command([*tool[1:], "in", "out-@.tar", "--num-shards", "2"], folder, tool=tool[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    assert dict(members_of(shards_of(folder))) == many_files(6)
    report = done.stderr.decode()
    for words in ("6 samples of 12 fields", "into 2 shards", "2 of 2 done", "out.manifest.json"):
        assert words in report


def test_a_pipe_of_commands(folder: Path) -> None:
    line = f"tar -C in -cf - . | {BIN}/htupload - - -q | {BIN}/htextract - -f __key__"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, timeout=100, env=environment())
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(done.stdout.decode().split()) == sorted({name.partition(".")[0] for name in many_files(6)})


def test_a_dry_run_tells_counts_bytes_shards_and_ends_and_writes_nothing(folder: Path) -> None:
    put_files(folder / "in", {".hidden": "", "README": "", "e.txt": ""})
    before = sorted(folder.rglob("*"))
    result = good("in", "out-@.tar.gz", "--samples-per-shard", "4", "--shuffle", "--seed", "5", "--dry-run")
    assert sorted(folder.rglob("*")) == before
    for words in (
        "7 samples of 13 fields, 0.0 MB, into 2 shards, 0 finished before, 2 to do",
        "first: ",
        "-> out-000000.tar.gz",
        "last:  ",
        "-> out-000001.tar.gz",
        "seed:  5",
        "left out: 1 hidden",
        "left out: 1 no-extension",
        "empty files, packed: 1",
        "manifest: out.manifest.json",
    ):
        assert words in result.stderr, result.stderr
    assert result.stdout == ""


def test_many_sources_and_columns_come_as_they_are_written(folder: Path) -> None:
    put_files(folder, {"x,y/a.txt": "1", "z/b.txt": "2"})
    good("x,y", "z", "out-@.tar", "--include", "*.txt,*.cls", "--include", "*.png")
    assert keys_of(shards_of(folder)) == ["a", "b"]
    (folder / "l.csv").write_text("p,c\nz/b.txt,hello\n")
    good("l.csv", "list-@.tar", "--column", "txt=@p", "--column", "cap=c")
    assert members_of(shards_of(folder, "list")) == [("000000000.cap", b"hello"), ("000000000.txt", b"2")]
    result = call("l.csv", "no-@.tar", "--column", "txt=@p", "--column", "txt=c")
    assert result.exit_code == 2
    assert "'txt' twice" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["in"], "Missing argument"),
        (["gone", "out-@.tar"], "does not exist"),
        (["in", "out-@.tar", "--column", "nonsense"], "is no K=V pair"),
        (["in", "out-@.tar", "--on-error", "stop"], "'stop' is not one of"),
        (["in", "out-@.tar", "--samples-per-shard", "-1"], "expected a number above 0"),
        (["in", "out-@.tar", "--fetches", "0"], "expected a number above 0"),
        (["in", "out-@.tar", "--append", "--exists", "overwrite"], "--append is given"),
        (["in", "out-@.tar", "--missing", "skip"], "it needs --column"),
        (["in", "out-@.tar", "--include", "a[b"], "without its ']'"),
    ],
)
def test_mistakes_are_told_with_exit_code_2_and_no_traceback(arguments: list[str], words: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert "Traceback" not in result.output


def test_failures_have_exit_code_1_and_json_all_the_way(folder: Path) -> None:
    with WebServer({}) as server:
        (folder / "l.csv").write_text(f"u\n{server.base}/none.jpg\n")
        arguments = ["l.csv", "out-@.tar", "--column", "jpg=@u", "--log-format", "json"]
        done = command(arguments, folder, tool="htupload")
    assert done.returncode == 1
    events = [json.loads(line) for line in done.stderr.decode().splitlines()]
    assert [event["event"] for event in events if event["event"] != "progress"] == ["plan", "failed", "report", "error"]
    assert "404" in events[-1]["message"]


def test_passwords_of_lists_are_told_to_nobody(folder: Path) -> None:
    (folder / "l.csv").write_text("u\nhttp://me:geheim@127.0.0.1:9/none.jpg?token=geheim\n")
    arguments = ["l.csv", "out-@.tar", "--column", "jpg=@u", "--fetch-timeout", "0s", "--on-error", "skip"]
    done = command([*arguments, "--rejected", "r.jsonl", "--report", "report.json"], folder, tool="htupload")
    assert done.returncode == 0, done.stderr
    texts = [done.stderr, *(path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "l.csv")]
    assert [text for text in texts if b"geheim" in text] == []
    assert read_json(folder / "report.json")["samples"]["dropped"] == {"unreadable": 1}


def test_a_spec_file_runs_an_upload(folder: Path) -> None:
    (folder / "job.yaml").write_text(
        "apiVersion: tarmill.dev/v1alpha1\n"
        "kind: ShardUpload\n"
        "spec:\n"
        "  sources: [in]\n"
        "  output: out-@.tar\n"
        "  numShards: 3\n"
        "  include: ['*.txt']\n"
    )
    result = CliRunner().invoke(main.command, ["run", "--spec", "job.yaml", "-j", "1"])
    assert result.exit_code == 0, result.output
    assert len(shards_of(folder)) == 3
    spec = UploadSpec(sources=("a", "b"), output="out-@.tar", columns={"jpg": "@p"}, shuffle=True)
    assert spec_from_manifest(json.loads(json.dumps(to_manifest(spec)))) == spec
    with pytest.raises(SpecError, match="at least one"):
        UploadSpec(sources=(), output="out-@.tar")


def test_python_runs_it_by_its_spec(folder: Path) -> None:
    report = tarmill.run(tarmill.UploadSpec(sources=("in",), output="out-@.tar"), tarmill.RunOptions(workers=1))
    assert report.counts.written == 6


def test_the_command_starts_without_click_numpy_or_a_network_library(folder: Path) -> None:
    code = (
        "import sys; sys.argv = ['htupload', '-q', '-j1', 'in', 'out-@.tar']\n"
        "from tarmill.cli.htupload import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "heavy = {'click', 'numpy', 'urllib3', 'concurrent.futures', 'tempfile', 'dataclasses'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([str(BIN / "python"), "-c", code], cwd=folder, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.path.exists(folder / "out.manifest.json")
