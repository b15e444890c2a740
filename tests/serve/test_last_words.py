"""The last words of a job: always JSON, never more than 4,096 bytes, the reason and the cure in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill.errors import (
    AccessError,
    Interrupted,
    JobFailed,
    NoWorkersError,
    OutputExistsError,
    ScriptError,
    SpecError,
    TarmillError,
)
from tarmill.jobs.report import Failure, Report
from tarmill.planning.counts import Counts
from tarmill.serve.last_words import LIMIT_BYTES, fit, last_words, shorten, write_last_words
from tarmill.serve.status import Status


def status_of(*failures: Failure, **facts: Any) -> Status:
    status = Status()
    report = Report("ShardMap", "0123456789abcdef", 5, manifest="s3://b/out.manifest.json", **facts)
    report.failures.extend(failures)
    status.plan(report, 100, ())
    return status


def words_of(error: BaseException | None, status: Status | None = None) -> dict[str, Any]:
    written = last_words(status or status_of(), error)
    assert len(written) <= LIMIT_BYTES
    found: dict[str, Any] = json.loads(written)
    return found


TEXTS = st.one_of(st.text(max_size=30), st.text(min_size=1, max_size=8).map(lambda text: text * 700))


@given(
    message=TEXTS,
    reason=TEXTS,
    dropped=st.dictionaries(TEXTS, st.integers(1, 1 << 60), max_size=50),
    urls=st.tuples(TEXTS, TEXTS),
    failures=st.lists(st.fixed_dictionaries({"shard": TEXTS, "reason": TEXTS, "message": TEXTS}), max_size=6),
)
def test_whatever_is_said_fits(
    message: str, reason: str, dropped: dict[str, int], urls: tuple[str, str], failures: list[dict[str, str]]
) -> None:
    numbers = {name: {"read": 1 << 60, "written": 1 << 60, "total": 1 << 60} for name in ("shards", "samples", "bytes")}
    given = {
        "message": message,
        "reason": reason,
        "dropped": dropped,
        "output": "",
        "manifest": urls[0],
        "report": urls[1],
    }
    written = fit({"format": 1, "job": "0" * 16, **numbers, **given, "failures": failures})
    assert len(written) <= LIMIT_BYTES
    found = json.loads(written)
    assert found["message"][:20] == shorten(message, 10**9)[: len(found["message"])][:20]
    assert sum(found["dropped"].values()) == sum(dropped.values())
    if sum(len(text.encode("utf-8", "replace")) for text in (message, reason, *urls)) < 500 and not failures:
        assert len(found["dropped"]) in (len(dropped), 31, 16, 11, 6, 4, 1)


def test_what_was_written_is_named_with_its_count_so_that_another_job_can_read_it() -> None:
    done = status_of(output="s3://b/out-@.tar", shards_done=5)
    assert words_of(None, done)["output"] == "s3://b/out-@000005.tar"
    assert words_of(ScriptError("no"), status_of(output="s3://b/out-@.tar"))["output"] == "s3://b/out-@.tar"
    added = status_of(output="out-@.tar", shards_done=5, shards_before=7)
    assert words_of(None, added)["output"] == "out-@000012.tar"
    for as_it_is in ("out-@0005.tar", "rows.csv", "-", "s3://b/" + "x" * 600 + "-@0005.tar"):
        told = words_of(None, status_of(output=as_it_is, shards_done=5))["output"]
        assert told == (as_it_is if len(as_it_is) <= 500 else "")


@given(text=TEXTS, characters=st.integers(20, 2000))
def test_a_shortened_text_keeps_its_beginning_and_its_end(text: str, characters: int) -> None:
    whole, found = shorten(text, 10**9), shorten(text, characters)
    assert len(found) <= characters
    if len(whole) > characters:
        before, _, after = found.partition(" … ")
        assert whole.startswith(before)
        assert found.endswith(whole[-characters // 4 :])
        assert after
    else:
        assert found == whole


def test_errors_of_5000_characters_are_shortened_and_the_reason_is_there() -> None:
    long = [Failure(index, f"in-{index}.tar", f"boom {index} " + "é" * 5000, "", "ScriptError") for index in range(9)]
    found = words_of(JobFailed("9 of 9 shards failed; the first: " + "é" * 5000 + " mend it"), status_of(*long))
    assert (found["reason"], found["exitCode"], found["outcome"]) == ("ScriptError", 1, "failed")
    assert found["message"].startswith("9 of 9 shards failed")
    assert found["message"].endswith("mend it")
    assert found["failures"][0]["message"].startswith("boom 0")


@pytest.mark.parametrize(
    ("error", "outcome", "code", "reason", "word"),
    [
        (None, "succeeded", 0, "Completed", ""),
        (SpecError("--seed is 'x'; expected a number", field="seed", value="x"), "usage", 2, "SpecError", "--seed"),
        (OutputExistsError("out-0.tar is there", url="x"), "usage", 2, "OutputExistsError", "out-0.tar"),
        (click.BadParameter("no K=V pair"), "usage", 2, "UsageError", "K=V"),
        (AccessError("http://me:secret@h/x: 403", url="x"), "failed", 1, "AccessError", "http://me:***@h/x"),
        (NoWorkersError("no worker for 1 s"), "failed", 1, "NoWorkersError", "no worker"),
        (Interrupted(15), "interrupted", 143, "Interrupted", "SIGTERM"),
        (KeyboardInterrupt(), "interrupted", 130, "Interrupted", ""),
        (KeyError("http://me:secret@h/x"), "failed", 1, "UnexpectedError", "unexpected KeyError: 'http://me:***@h"),
        (MemoryError(), "failed", 1, "MemoryError", "unexpected MemoryError"),
        (TarmillError("unexpected OSError: x", kind="OSError"), "failed", 1, "UnexpectedError", "OSError: x"),
        (ScriptError("up.py, line 3: no", script="up.py", line=3), "failed", 1, "ScriptError", "line 3"),
    ],
)
def test_each_end_has_its_outcome_code_and_reason(
    error: BaseException | None, outcome: str, code: int, reason: str, word: str
) -> None:
    found = words_of(error)
    assert (found["outcome"], found["exitCode"], found["reason"]) == (outcome, code, reason)
    assert word in found["message"]
    assert "secret" not in json.dumps(found)


def test_the_reason_is_that_of_the_first_shard_and_drops_are_counted() -> None:
    counts = Counts(read=9, written=7)
    counts.dropped.update({"truncated": 2})
    failed = Failure.of(3, "in-3.tar", AccessError("in-3.tar: 403", url="x"))
    found = words_of(JobFailed("1 of 5 shards failed"), status_of(failed, counts=counts))
    assert found["reason"] == "AccessError"
    assert found["dropped"] == {"truncated": 2}
    assert found["manifest"] == "", "there is none yet"


def test_the_usual_file_is_not_made_and_another_is(tmp_path: Path) -> None:
    write_last_words("/dev/termination-log", b"{}")
    assert not Path("/dev/termination-log").exists()
    (tmp_path / "words").write_text("something longer")
    write_last_words(str(tmp_path / "words"), b"{}")
    assert (tmp_path / "words").read_bytes() == b"{}"
