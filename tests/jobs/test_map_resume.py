"""A job goes on where it stopped, does only what is missing, and never mixes with another job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.maps import (
    IDENTITY,
    UPPER,
    bytes_of,
    finished_shards,
    leftovers,
    put_records,
    put_shards,
    records_in,
    run_map,
)

from tarmill import storage
from tarmill.errors import JobFailed, OutputExistsError, SpecError, TarmillError
from tarmill.jobs.map import plan
from tarmill.spec import MapSpec

GATED = """
import os
def process_sample(record):
    with open({log!r}, "a") as log:
        log.write(record["key"] + "\\n")
    if record["key"].startswith("s1") and not os.path.exists({gate!r}):
        raise RuntimeError("not yet")
    record["txt"] = record["txt"].upper()
    return record
"""


def gated(folder: Path) -> str:
    """A script that fails on shard 1 as long as `folder/gate` is not there, and notes every sample in `folder/log`."""
    return GATED.format(log=str(folder / "log"), gate=str(folder / "gate"))


def log_of(folder: Path) -> list[str]:
    path = folder / "log"
    found = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def job_of(source: str, output: str, script: str = IDENTITY, **fields: Any) -> str:
    return plan(MapSpec(input=source, output=output, script=script, **fields)).job


# Resuming


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rerun_does_only_what_is_missing_and_gives_the_same_bytes(tmp_path: Path, workers: int) -> None:
    source, script = put_shards(tmp_path, 3), gated(tmp_path)
    options = {"options": {"workers": workers}}
    with pytest.raises(JobFailed):
        run_map(source, tmp_path / "out-@.tar.gz", script, **options)
    assert sorted(bytes_of(tmp_path)) == ["out-000000.tar.gz", "out-000002.tar.gz"]
    assert len(finished_shards(tmp_path)) == 2
    log_of(tmp_path)
    (tmp_path / "gate").touch()
    report = run_map(source, tmp_path / "out-@.tar.gz", script, **options)
    assert {key[:2] for key in log_of(tmp_path)} == {"s1"}
    assert (report.shards_resumed, report.shards_done) == (2, 3)
    assert (report.counts.read, report.counts.written, report.counts.missing) == (15, 15, 0)

    run_map(source, tmp_path / "other" / "out-@.tar.gz", script)
    assert bytes_of(tmp_path) == bytes_of(tmp_path / "other")
    manifests = [json.loads((folder / "out.manifest.json").read_text()) for folder in (tmp_path, tmp_path / "other")]
    assert manifests[0]["digest"] == manifests[1]["digest"] == report.digest
    assert leftovers(tmp_path) == []


def test_a_finished_job_does_nothing_again(tmp_path: Path) -> None:
    source = put_shards(tmp_path, 2)
    (tmp_path / "gate").touch()
    run_map(source, tmp_path / "out-@.tar", gated(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out-*")}
    log_of(tmp_path)
    report = run_map(source, tmp_path / "out-@.tar", gated(tmp_path))
    assert log_of(tmp_path) == []
    assert report.shards_resumed == 2
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("out-*")}


@pytest.mark.parametrize("damage", ["gone", "changed", "no manifest", "broken manifest"])
def test_a_shard_that_is_not_what_was_finished_is_made_again(tmp_path: Path, damage: str) -> None:
    source = put_shards(tmp_path, 3)
    run_map(source, tmp_path / "out-@.tar", UPPER)
    wanted = bytes_of(tmp_path)
    victim = tmp_path / "out-000001.tar"
    if damage == "gone":
        victim.unlink()
    elif damage == "changed":
        victim.write_bytes(bytes(victim.stat().st_size))
    else:
        manifest = finished_shards(tmp_path)[1]
        manifest.unlink() if damage == "no manifest" else manifest.write_bytes(b'{"index":')
    report = run_map(source, tmp_path / "out-@.tar", UPPER)
    assert report.shards_resumed == 2
    assert bytes_of(tmp_path) == wanted


def test_rejected_samples_of_all_runs_are_told_also_when_only_the_last_one_asks(tmp_path: Path) -> None:
    source = put_shards(tmp_path, 3)
    script = (
        "import os\n"
        "def process_sample(record):\n"
        f"    if record['key'].startswith('s1') and not os.path.exists({str(tmp_path / 'gate')!r}):\n"
        "        raise SystemExit\n"
        "    return record if record['key'][-1] != '2' else 1 / 0\n"
    )
    fields = {"on_error": "skip", "max_errors": "5"}
    with pytest.raises(JobFailed):
        run_map(source, tmp_path / "out-@.tar", script, **fields)
    finished_shards(tmp_path)[1].unlink()
    (tmp_path / "gate").touch()
    rejected = tmp_path / "rejected.jsonl"
    report = run_map(source, tmp_path / "out-@.tar", script, **fields, rejected=str(rejected))
    assert report.shards_resumed >= 1
    lines = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert [line["key"] for line in lines] == ["s0-002", "s1-002", "s2-002"]
    assert all("ZeroDivisionError" in line["traceback"] for line in lines)
    assert report.counts.dropped == {"script-error": 3}


def test_what_killed_processes_left_is_swept_also_when_all_shards_are_done(tmp_path: Path) -> None:
    source = put_shards(tmp_path, 1)
    run_map(source, tmp_path / "out-@.tar")
    job = job_of(source, f"{tmp_path}/out-@.tar")
    ours = [
        tmp_path / f".out-000000.tar.{job}.0123456789abcdef.tmp",
        tmp_path / f".out.manifest.json.{job}.0123456789abcdef.tmp",
        tmp_path / "_tarmill" / job / f".job.json.{job}.0123456789abcdef.tmp",
    ]
    other = tmp_path / ".out-000000.tar.0000000000000000.0123456789abcdef.tmp"
    for path in (*ours, other):
        path.write_bytes(b"half")
    run_map(source, tmp_path / "out-@.tar")
    assert leftovers(tmp_path) == [other.name]


# Another job


def test_the_job_id_depends_on_what_changes_the_bytes(place: str) -> None:
    source, output = put_shards(place, 2), f"{place}out-@.tar"
    jobs = [
        job_of(source, output),
        job_of(source, output, UPPER),
        job_of(source, output, IDENTITY + "\n"),
        job_of(source, output, params={"a": "1"}),
        job_of(source, output, params={"a": "2"}),
        job_of(source, output, salt="model-2"),
        job_of(source, output, fields=("txt",)),
        job_of(source, output, fields=("txt",), keep_rest=True),
        job_of(source, output, key_function="last_dir"),
        job_of(source, output, on_error="skip"),
        job_of(source, output, limit=3),
        job_of(source, f"{output}.gz"),
        job_of(f"{place}in-0.tar", output),
    ]
    assert len(set(jobs)) == len(jobs)


def test_the_job_id_does_not_depend_on_what_leaves_the_bytes_alone(place: str) -> None:
    source, output = put_shards(place, 2), f"{place}out-@.tar"
    same = [
        job_of(source, output),
        job_of(source, output, script_name="elsewhere.py"),
        job_of(source, output, exists="overwrite"),
        job_of(source, output, rejected=f"{place}r.jsonl"),
        job_of(source, output, max_errors="5"),
        job_of(source, output, params={}),
        job_of(source, f"{place}out-@000002.tar"),
    ]
    assert len(set(same)) == 1
    one = job_of(source, output, params={"a": "1", "b": "2"})
    assert one == job_of(source, output, params={"b": "2", "a": "1"})


def test_a_changed_input_makes_another_job_which_is_refused(place: str) -> None:
    source, output = put_shards(place, 2), f"{place}out-@.tar"
    run_map(source, output)
    put_shards(place, 1, samples=7)
    with pytest.raises(OutputExistsError) as caught:
        run_map(source, output)
    assert "--exists overwrite" in caught.value.message
    assert len(records_in(f"{place}out-000000.tar")) == 5


def test_an_input_of_the_same_size_that_was_written_again_is_another_job(place: str) -> None:
    source, output = put_shards(place, 1), f"{place}out.tar"
    before = job_of(source, output)
    put_shards(place, 1)
    assert job_of(source, output) != before


def test_a_changed_script_is_refused_and_overwrites_when_allowed(place: str) -> None:
    source, output = put_shards(place, 2), f"{place}out-@.tar"
    run_map(source, output)
    with pytest.raises(OutputExistsError):
        run_map(source, output, UPPER)
    report = run_map(source, output, UPPER, exists="overwrite")
    assert report.shards_resumed == 0
    assert records_in(f"{place}out-000001.tar")[0]["txt"].startswith(b"TXT")


def test_exists_fail_refuses_the_jobs_own_outputs_too(place: str) -> None:
    source, output = put_shards(place, 1), f"{place}out.tar"
    run_map(source, output, exists="fail")
    with pytest.raises(OutputExistsError):
        run_map(source, output, exists="fail")


def test_exists_overwrite_does_everything_again(tmp_path: Path) -> None:
    source = put_shards(tmp_path, 2)
    (tmp_path / "gate").touch()
    run_map(source, tmp_path / "out-@.tar", gated(tmp_path))
    log_of(tmp_path)
    report = run_map(source, tmp_path / "out-@.tar", gated(tmp_path), exists="overwrite")
    assert report.shards_resumed == 0
    assert len(set(log_of(tmp_path))) == 10


def test_an_earlier_job_does_not_take_back_outputs_that_a_later_one_overwrote(place: str) -> None:
    source, output = put_shards(place, 2), f"{place}out-@.tar"
    run_map(source, output)
    run_map(source, output, UPPER, exists="overwrite")
    with pytest.raises(OutputExistsError):
        run_map(source, output)
    assert records_in(f"{place}out-000000.tar")[0]["txt"].startswith(b"TXT")


def test_outputs_that_were_deleted_may_be_made_by_another_job(place: str) -> None:
    source, output = put_shards(place, 2), f"{place}out-@.tar"
    run_map(source, output)
    for shard in range(2):
        storage.delete(f"{place}out-00000{shard}.tar")
    run_map(source, output, UPPER)
    assert records_in(f"{place}out-000000.tar")[0]["txt"].startswith(b"TXT")


def test_an_overwritten_data_set_has_no_manifest_while_it_is_half_done(tmp_path: Path) -> None:
    source = put_shards(tmp_path, 3)
    run_map(source, tmp_path / "out-@.tar")
    with pytest.raises(JobFailed):
        run_map(source, tmp_path / "out-@.tar", gated(tmp_path), exists="overwrite")
    assert not (tmp_path / "out.manifest.json").exists()


def test_standard_input_is_never_taken_for_the_one_of_the_last_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        put_records(tmp_path / f"{name}.tar", [{"__key__": name, "txt": name.encode()}])
    for name in "ab":
        with open(tmp_path / f"{name}.tar", "rb") as stream:
            monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": stream}))
            if name == "a":
                run_map("-", tmp_path / "out.tar")
            else:
                with pytest.raises(OutputExistsError):
                    run_map("-", tmp_path / "out.tar")
                run_map("-", tmp_path / "out.tar", exists="overwrite")
    assert [record["__key__"] for record in records_in(tmp_path / "out.tar")] == ["b"]


@pytest.mark.parametrize("fields", [{"keep_rest": True}, {"level": 99}])
def test_a_refused_job_leaves_no_trace(tmp_path: Path, fields: dict[str, Any]) -> None:
    source = put_shards(tmp_path / "in", 1)
    with pytest.raises(SpecError):
        run_map(source, tmp_path / "out" / "out.tar.gz", **fields)
    assert not (tmp_path / "out").exists()


def test_a_script_that_fails_on_the_first_sample_leaves_no_trace(tmp_path: Path) -> None:
    source = put_shards(tmp_path / "in", 2)
    with pytest.raises(TarmillError):
        run_map(source, tmp_path / "out" / "out-@.tar", "def process_sample(record):\n    return 5\n")
    assert not (tmp_path / "out").exists()
