"""What the command says and how it exits when it cannot do what was asked; and that it then has done nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.maps import IDENTITY, UPPER, command, put_shards

from tarmill import storage
from tarmill.cli import main
from tarmill.engine import process_handle
from tarmill.jobs import map as map_job

PASSWORD = "s3cr3t-pa55"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    put_shards(tmp_path, 3)
    (tmp_path / "up.py").write_text(UPPER)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main.command, ["map", *arguments])


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any start of a worker process fails the test."""

    def refuse(*_: object) -> None:
        pytest.fail("a worker was started")

    monkeypatch.setattr(process_handle.WorkerProcess, "__init__", refuse)


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("def process_sample(record):\n    return record[\n", ("s.py, line 2", "never closed")),
        ("x = 1\n", ("s.py", "def process_sample(record)", "expected exactly one of")),
        ("import nothing_of_that_name\n" + IDENTITY, ("s.py, line 1", "ModuleNotFoundError")),
        ("def process_sample(record):\n    return 5\n", ("s.py", "returned int 5", "expected a dict")),
        ("def process_sample(record):\n    return {'n': 5}\n", ("'n' is int", "bytes or str")),
        ("def process_sample(record):\n    x = record['nope']\n", ("s.py, line 2", "KeyError: 'nope'", "in-0.tar")),
        ("def process_sample():\n    pass\n", ("s.py", "TypeError")),
        ("def process_sample(record):\n    import sys\n    sys.exit()\n", ("s.py, line 3", "SystemExit")),
    ],
)
def test_a_script_that_cannot_work_is_told_before_any_worker_starts(
    folder: Path, script: str, words: tuple[str, ...]
) -> None:
    (folder / "s.py").write_text(script)
    before = sorted(folder.rglob("*"))
    result = call("-p", "s.py", "in-@3.tar", "out-@.tar", "-j", "2")
    assert result.exit_code == 1
    for word in words:
        assert word in result.stderr
    assert "Traceback (most recent call last)" not in result.stderr
    assert sorted(folder.rglob("*")) == before


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "none.py", "in-@3.tar", "out-@.tar"], ("none.py", "No such file")),
        (["-p", ".", "in-@3.tar", "out-@.tar"], ("directory",)),
        (["-p", "latin.py", "in-@3.tar", "out-@.tar"], ("latin.py", "UTF-8")),
        (["in-@3.tar", "out-@.tar"], ("--script",)),
        (["-p", "up.py", "in-@3.tar"], ("OUT",)),
        (["-p", "up.py", "in-@3.tar", "out-@2.tar"], ("htshuffle", "htsort")),
        (["-p", "up.py", "in-@3.tar", "in-@3.tar"], ("both input and output",)),
        (["-p", "up.py", "", "out-@.tar"], ("empty",)),
        (["-p", "up.py", "no-*.tar", "out-@.tar"], ("no-*.tar", "matches no shard")),
        (["-p", "up.py", "in-@.tar", "out-@.tar"], ("count",)),
        (["-p", "up.py", "in-@3.tar", "out-@.tar.rar"], (".tar.zst",)),
        (["-p", "up.py", "in-@3.tar", "out-@.tar", "--on-error", "hope"], ("--on-error",)),
        (["-p", "up.py", "in-@3.tar", "out-@.tar", "--max-errors", "x"], ("--max-errors", "0.5%")),
        (["-p", "up.py", "in-@3.tar", "out-@.tar", "-k", "last_dri"], ("did you mean 'last_dir'",)),
        (["-p", "up.py", "in-@3.tar", "out-@.tar", "-k", "(.*)"], ("two",)),
        (["-p", "up.py", "in-@3.tar", "out-@.tar", "--keep-rest"], ("--keep-rest", "-f")),
        (["-p", "up.py", "in-@3.tar", "out-@.tar", "--param", "novalue"], ("novalue", "K=V")),
        (["-p", "up.py", "in-@3.tar", "out-@.tar", "-j", "-2"], ("workers",)),
        (["-p", "up.py", "in-@3.tar", "out-@.tar", "--task-timeout", "soon"], ("soon", "5m")),
        (["-p", "up.py", "in-@3.tar", "out-@.tar", "--max-member", "big"], ("big", "500MB")),
        (["-p", "up.py", "in-@3.tar", "out-@.tar", "--limit", "-1"], ("--limit",)),
        (["-p", "up.py", "in-@3.tar", "out-@.tar.gz", "--level", "77"], ("level",)),
        (["-p", "up.py", "in-0.tar", "-", "-c", "127.0.0.1:1"], ("belongs to this process",)),
        (["-p", "up.py", "in-0.tar", "-", "--task-timeout", "5m"], ("--task-timeout",)),
        (["-p", "up.py", "pipe:cat x", "out.tar"], ("pipe:",)),
        (["-p", "up.py", "gopher://x/in.tar", "out.tar"], ("gopher",)),
    ],
)
def test_what_cannot_be_carried_out_exits_with_2_and_does_nothing(
    folder: Path, arguments: list[str], words: tuple[str, ...]
) -> None:
    (folder / "latin.py").write_bytes(b"# \xe9\n")
    before = sorted(folder.rglob("*"))
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in result.stderr
    assert sorted(folder.rglob("*")) == before


@pytest.mark.usefixtures("no_worker")
def test_a_missing_shard_exits_with_1_and_is_named(folder: Path) -> None:
    (folder / "in-1.tar").unlink()
    result = call("-p", "up.py", "in-@3.tar", "out-@.tar")
    assert result.exit_code == 1
    assert "in-1.tar (number 2 of 3) is not there" in result.stderr


def test_outputs_of_another_job_exit_with_2_and_stay(folder: Path) -> None:
    assert call("-p", "up.py", "in-@3.tar", "out-@.tar").exit_code == 0
    (folder / "up.py").write_text(IDENTITY)
    before = (folder / "out-000000.tar").read_bytes()
    result = call("-p", "up.py", "in-@3.tar", "out-@.tar")
    assert result.exit_code == 2
    assert "--exists overwrite" in result.stderr
    assert (folder / "out-000000.tar").read_bytes() == before


def test_the_traceback_of_a_script_is_trimmed_to_the_script(folder: Path) -> None:
    (folder / "s.py").write_text("def deep(x):\n    return 1 / x\n\ndef process_sample(record):\n    return deep(0)\n")
    result = call("-p", "s.py", "in-@3.tar", "out-@.tar")
    assert 'File "s.py", line 2, in deep' in result.stderr
    assert "return 1 / x" in result.stderr
    assert "tarmill/jobs" not in result.stderr


def test_an_unwritable_output_is_told_and_leaves_nothing(folder: Path) -> None:
    (folder / "file").write_text("no folder")
    before = sorted(folder.rglob("*"))
    result = call("-p", "up.py", "in-@3.tar", "file/out-@.tar", "-j", "2")
    assert result.exit_code == 1
    assert "file/" in result.stderr
    assert sorted(folder.rglob("*")) == before


def test_a_report_that_cannot_be_written_is_told_after_the_work(folder: Path) -> None:
    (folder / "file").write_text("no folder")
    result = call("-p", "up.py", "in-@3.tar", "out-@.tar", "--report", "file/report.json")
    assert result.exit_code == 1
    assert "file/report.json" in result.stderr
    assert (folder / "out.manifest.json").exists()


@pytest.mark.parametrize("way", ["input", "output", "rejected", "report"])
def test_a_password_in_a_url_is_never_shown(folder: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = storage.StorageSettings(retry_budget_s=0, backoff_first_s=0, backoff_most_s=0)
    monkeypatch.setattr(map_job, "settings_of", lambda options: storage.configure(quick) or quick)
    url = f"http://me:{PASSWORD}@127.0.0.1:1/x-@3.tar"  # nothing listens there
    arguments = {
        "input": [url, "out-@.tar"],
        "output": ["in-@3.tar", url],
        "rejected": ["in-@3.tar", "out-@.tar", "--on-error", "skip", "--rejected", url],
        "report": ["in-@3.tar", "out-@.tar", "--report", url],
    }[way]
    result = call("-p", "up.py", *arguments, "-j", "1", *(["--report", "report.json"] if way != "report" else []))
    assert result.exit_code in (1, 2)
    assert "127.0.0.1:1" in result.output
    assert PASSWORD not in result.output
    for path in folder.rglob("*"):
        assert path.is_dir() or PASSWORD.encode() not in path.read_bytes()


def test_errors_end_without_a_python_traceback(folder: Path) -> None:
    done = command(["-p", "up.py", "in-@4.tar", "out-@.tar"], folder)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert done.stderr.startswith(b"error: ")
