"""`tarmill run --serve` as a pod runs it: a scheduler with TLS, real workers, signals, last words in every end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.daskcluster import DaskProcess, DaskWorker
from support.maps import UPPER, Held, Running, bytes_of, put_shards
from support.serving import QUIET, Served, free_port, last_words, listens

from tarmill.cli import main
from tarmill.jobs import map as map_job

served = pytest.mark.xdist_group("dask")


def job_of(spec: dict[str, Any], kind: str = "ShardMap") -> dict[str, Any]:
    return {"apiVersion": "tarmill.dev/v1alpha1", "kind": kind, "spec": spec}


def held_job(job: Held) -> dict[str, Any]:
    spec = {"input": f"data/in-@{job.shards}.tar", "output": "data/out-@.tar.gz", "scriptPath": "hold.py"}
    return job_of({**spec, "options": {"waitForWorkers": "2m"}})


# -- with workers ------------------------------------------------------------------------------------------------------


@served
@pytest.mark.real
def test_workers_that_come_late_or_die_change_nothing_and_all_leave_well(tmp_path: Path) -> None:
    job = Held(tmp_path, first=2)
    with Served(tmp_path, held_job(job), "--report", "auto") as running:
        running.wait_until(lambda: running.progress().get("job"), "the plan")
        assert running.progress()["workers"] == 0
        for _ in range(2):
            running.start_worker()
        running.wait_until(lambda: job.is_held(2), "two shards were held")
        running.wait_until(lambda: running.progress().get("shards", {}).get("running") == 2, "progress of both")
        found = running.progress()
        assert (found["phase"], found["shards"]["total"], found["shards"]["done"]) == ("running", 5, 2)
        assert found["workers"] == 2
        assert b"tarmill_workers 2.0" in running.get("/metrics")
        assert running.get("/healthz") == b"ok\n"
        os.kill(running.workers[0].pid, signal.SIGKILL)
        running.wait_until(lambda: running.progress().get("workers") == 1, "the loss was seen")
        job.release()
        assert running.wait() == 0, running.errors
        running.workers[1].process.wait(20)
        assert running.workers[1].process.returncode == 0
    job.assert_complete()
    words = running.words
    assert (words["outcome"], words["exitCode"], words["reason"]) == ("succeeded", 0, "Completed")
    assert words["shards"] == {"total": 5, "done": 5, "failed": 0, "resumed": 0, "running": 0}
    assert words["samples"] == {"read": 25, "written": 25}
    assert words["report"] == "data/out.report.json"
    assert json.loads((job.data / "out.report.json").read_text())["job"] == words["job"]
    assert not listens(running.dask_port)
    assert not listens(running.status_port)
    assert all(json.loads(line)["event"] for line in running.errors.splitlines()), "the log is JSON lines"


@pytest.mark.real
def test_what_libraries_warn_of_has_the_form_of_the_other_lines() -> None:
    program = """
import warnings
from tarmill.cli.serve import _set_up_logs
_set_up_logs("json")
warnings.warn("creating scratch directories is taking a surprisingly long time")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["event"], line["level"], line["logger"]) for line in lines] == [("log", "warning", "py.warnings")]
    assert "surprisingly long" in lines[0]["message"]


@served
@pytest.mark.real
def test_sigterm_leaves_what_is_finished_and_says_so(tmp_path: Path) -> None:
    job = Held(tmp_path, first=2)
    with Served(tmp_path, held_job(job)) as running:
        worker = running.start_worker()
        running.wait_until(job.is_held, "a shard was held")
        running.send(signal.SIGTERM)
        assert running.wait() == 143, running.errors
        worker.process.wait(20)
        assert worker.process.returncode == 0
    words = running.words
    assert (words["outcome"], words["exitCode"]) == ("interrupted", 143)
    assert words["shards"] == {"total": 5, "done": 2, "failed": 0, "resumed": 0, "running": 0}
    assert "SIGTERM" in words["message"]
    job.assert_unfinished_is_clean()
    assert job.assert_completes("-j", "1")["shards"]["resumed"] == 2


@served
@pytest.mark.real
def test_a_cluster_of_others_may_come_later_and_is_left_alone(tmp_path: Path) -> None:
    put_shards(tmp_path, 3)
    script = "def process_sample(record):\n    if record['key'] == 's1-002':\n        raise ValueError('no ' * 3000)\n"
    spec = {"input": "in-@3.tar", "output": "out-@.tar", "script": script, "scriptName": "bad.py"}
    (tmp_path / "job.json").write_text(json.dumps(job_of(spec)))
    port, words_file = free_port(), tmp_path / "words.json"
    arguments = ["run", "--spec", "job.json", "--serve", "-c", f"127.0.0.1:{port}", "--termination-log", words_file]
    with Running(arguments, tmp_path, tool="tarmill", **QUIET) as running, ExitStack() as others:
        scheduler = DaskProcess(
            tmp_path, "scheduler", ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
        )
        others.callback(scheduler.kill)
        worker = DaskWorker(tmp_path, "worker-0", f"tcp://127.0.0.1:{port}")
        others.callback(worker.kill)
        assert running.wait() == 1, running.errors
        assert scheduler.is_alive()
        assert worker.is_alive()
    words = last_words(words_file)
    assert (words["outcome"], words["reason"], words["shards"]["failed"]) == ("failed", "ScriptError", 1)
    assert words["message"].startswith("1 of 3 shards failed; the first: bad.py, line 3: ValueError: no no")
    assert words["failures"][0]["shard"].endswith("in-1.tar")
    assert words["manifest"] == ""


@served
@pytest.mark.real
def test_without_any_worker_the_last_words_say_so(tmp_path: Path) -> None:
    put_shards(tmp_path, 3)
    job = job_of({"input": "in-@3.tar", "output": "out-@.tar", "script": UPPER, "options": {"waitForWorkers": "500ms"}})
    with Served(tmp_path, job) as running:
        assert running.wait() == 1
    words = running.words
    assert words["reason"] == "NoWorkersError"
    assert "has had no worker that could take a task for 0.5 s, and 3 tasks wait" in words["message"]


# -- without: in the runner alone, in this process ---------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    put_shards(tmp_path, 3)
    (tmp_path / "up.py").write_text(UPPER)
    return tmp_path


def serve(spec: dict[str, Any] | str, *more: str) -> tuple[Result, dict[str, Any]]:
    """Run a job in this process; the result, and its last words."""
    text = spec if isinstance(spec, str) else json.dumps(job_of(spec))
    Path("job.json").write_text(text)
    words = Path("words.json")
    arguments = ["run", "--spec", "job.json", "--serve", "--termination-log", str(words), "-j", "1", *more]
    result = CliRunner().invoke(main.command, arguments)
    return result, last_words(words) if words.exists() else {}


BARE = {"input": "in-@3.tar", "output": "out-@.tar"}
MAP = {**BARE, "script": UPPER}


@pytest.mark.usefixtures("folder")
def test_a_small_job_needs_no_cluster() -> None:
    result, words = serve(MAP, "--status-port", str(free_port()), "--host", "127.0.0.1")
    assert result.exit_code == 0, result.output
    assert (words["outcome"], words["shards"]["done"], words["report"]) == ("succeeded", 3, "")


BAD = {"raise": "def process_sample(record):\n    raise ValueError('no')\n", "import": "import nothing_of_that_name\n"}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("spec", "more", "code", "reason", "word"),
    [
        ({**MAP, "script": BAD["import"]}, (), 1, "ScriptError", "nothing_of_that_name"),
        ({**MAP, "script": BAD["raise"]}, (), 1, "ScriptError", "line 2: ValueError: no"),
        ({**MAP, "input": "none-@3.tar"}, (), 1, "NotFoundError", "none-0.tar"),
        ({**MAP, "output": "in-@3.tar"}, (), 2, "SpecError", "both input and output"),
        ({**MAP, "outptu": "x"}, (), 2, "SpecError", "did you mean 'output'"),
        ({**MAP, "options": {"taskTimeot": 1}}, (), 2, "SpecError", "did you mean 'taskTimeout'"),
        ({**MAP, "options": {"workers": 1}}, (), 2, "SpecError", "--workers; leave it out"),
        ({**MAP, "options": {"taskTimeout": "soon"}}, (), 2, "SpecError", "5m"),
        ({**MAP, "scriptPath": "up.py"}, (), 2, "SpecError", "beside 'script'; give one of them"),
        (
            {"input": "in-@3.tar", "output": "out-@.tar", "scriptPath": "x.py"},
            (),
            2,
            "UsageError",
            "'x.py': No such file",
        ),
        ("kind: [", (), 2, "SpecError", "expected YAML or JSON"),
        (MAP, ("--dask-port", "1"), 2, "UsageError", "give --tls-ca, --tls-cert, --tls-key too, or --insecure"),
        (MAP, ("--dask-port", "1", "--insecure", "--tls-ca", "x"), 2, "UsageError", "give --tls-cert, --tls-key too"),
        (MAP, ("--dask-port", "1", "-c", "h:1"), 2, "UsageError", "-c names another"),
        (MAP, ("--dask-port", "70000"), 2, "SpecError", "below 65536"),
        (MAP, ("--task-timeot", "1s"), 2, "UsageError", "--task-timeot"),
        (MAP, ("--store-option", "novalue"), 2, "UsageError", "K=V"),
    ],
)
def test_whatever_cannot_be_done_is_in_the_last_words(
    spec: dict[str, Any] | str, more: tuple[str, ...], code: int, reason: str, word: str
) -> None:
    result, words = serve(spec, *more)
    assert result.exit_code == code, result.output
    assert (words["exitCode"], words["reason"]) == (code, reason)
    assert words["outcome"] == ("usage" if code == 2 else "failed")
    assert word in words["message"]
    assert word in result.stderr
    assert not list(Path().glob("out-*"))


@pytest.mark.usefixtures("folder")
def test_a_fault_of_our_own_is_in_the_last_words_and_its_traceback_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_job, "plan", lambda spec: {}["missing"])
    result, words = serve(MAP)
    assert isinstance(result.exception, KeyError), "which Python tells with its traceback"
    assert (words["outcome"], words["exitCode"], words["reason"]) == ("failed", 1, "UnexpectedError")
    assert words["message"] == "unexpected KeyError: 'missing'; the log has the traceback"


@pytest.mark.usefixtures("folder")
def test_options_for_a_cluster_need_serve() -> None:
    Path("job.json").write_text(json.dumps(job_of(MAP)))
    result = CliRunner().invoke(main.command, ["run", "--spec", "job.json", "--status-port", "8788"])
    assert result.exit_code == 2
    assert "--status-port is 8788; it needs --serve" in result.stderr


@pytest.mark.usefixtures("folder")
def test_last_words_that_cannot_be_written_are_told_and_fail_nothing() -> None:
    Path("job.json").write_text(json.dumps(job_of(MAP)))
    result = CliRunner().invoke(
        main.command, ["run", "--spec", "job.json", "--serve", "--termination-log", "none/words", "-j", "1"]
    )
    assert result.exit_code == 0
    assert "could not be written to none/words: No such file" in result.stderr


@pytest.mark.usefixtures("folder")
def test_a_report_that_cannot_be_written_does_not_hide_why_the_job_failed() -> None:
    script = UPPER.replace("    record", "    if record['key'] == 's1-000': 1 / 0\n    record", 1)
    result, words = serve({**MAP, "script": script}, "--report", "job.json/report")
    assert result.exit_code == 1
    assert (words["reason"], words["report"]) == ("ScriptError", "")
    assert "the report could not be written: " in result.stderr


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("flags", "done"), [((), 2), (("--fail-fast",), 0)])
def test_failing_fast_leaves_the_other_shards(flags: tuple[str, ...], done: int) -> None:
    script = UPPER.replace("    record", "    if record['key'] == 's0-003': 1 / 0\n    record", 1)
    result, words = serve({**MAP, "script": script}, *flags)
    assert result.exit_code == 1
    assert (words["shards"]["failed"], words["shards"]["done"]) == (1, done)
    assert len(bytes_of(Path())) == done
