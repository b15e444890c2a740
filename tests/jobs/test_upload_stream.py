"""htupload of a tar on standard input: any tar becomes samples, in one pass."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tars
from support.maps import command, counts_balance, read_json
from support.uploads import keys_of, many_files, members_of, put_files, run_upload, shards_of, tar_of

from tarmill.errors import JobFailed, SpecError, TarmillError, UsageError
from tarmill.jobs.report import Report
from tarmill.jobs.verify import run as run_verify


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class _Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def pack(monkeypatch: pytest.MonkeyPatch, data: bytes, output: Any = "out-@.tar", **fields: Any) -> Report:
    monkeypatch.setattr(sys, "stdin", _Stdin(data))
    return run_upload("-", output, **fields)


def test_gnu_tar_of_a_folder_gives_what_the_folder_itself_gives(here: Path) -> None:
    put_files(here / "in", many_files(20, 3))
    put_files(here / "in", {"README": "r", "a.txt": "a"})
    run_upload("in", "direct-@.tar")
    packed = subprocess.run(["tar", "-C", "in", "-cf", "-", "."], capture_output=True, check=True).stdout
    done = command(["-", "out-@.tar", "--report", "report.json"], here, packed, tool="htupload")
    assert done.returncode == 0, done.stderr
    assert sorted(members_of(shards_of(here))) == sorted(members_of(shards_of(here, "direct")))
    report = read_json("report.json")
    assert report["samples"]["skipped_members"] == {"directory": 4, "no-extension": 1}
    assert report["digest"] == read_json("direct.manifest.json")["digest"]
    assert counts_balance(report)
    assert run_verify("out-@.tar").ok


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(seed=st.integers(), each=st.integers(1, 5), keys=st.integers(1, 8))
def test_members_in_any_order_come_together(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    each: int,
    keys: int,
) -> None:
    files = [(f"k{key}.{field}", f"{key}{field}".encode()) for key in range(keys) for field in "abc"]
    random.Random(seed).shuffle(files)
    out = tmp_path_factory.mktemp("out")
    report = pack(monkeypatch, tar_of(files), f"{out}/out-@.tar", samples_per_shard=each)
    shards = shards_of(out)
    assert dict(members_of(shards)) == dict(files)
    assert keys_of(shards) == list(dict.fromkeys(name.partition(".")[0] for name, _ in files))
    assert len(shards) == -(-keys // each)
    assert report.counts.written == keys
    assert run_verify(f"{out}/out-@.tar").ok


def test_neighbours_are_samples_with_no_memory_at_all(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(many_files(10, 1).items())
    pack(monkeypatch, tar_of(files), regroup=0)
    assert members_of(shards_of(here)) == files
    torn = [files[0], files[2], files[1], files[3]]
    with pytest.raises(JobFailed, match="raise --regroup"):
        pack(monkeypatch, tar_of(torn), "torn-@.tar", regroup=0)


@pytest.mark.parametrize("form", ["gz", "gnu", "two archives"])
def test_any_tar_is_read(here: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    files = sorted(many_files(4).items())
    data = tar_of(files)
    if form == "gz":
        data = gzip.compress(data)
    elif form == "gnu":
        data = tars.ustar([("d/" + "n" * 90 + ".txt", b"x")]) + data
        files = [("d/" + "n" * 90 + ".txt", b"x"), *files]
    else:
        data = tar_of(files[:4]) + tar_of(files[4:])
    pack(monkeypatch, data)
    assert members_of(shards_of(here)) == files


def test_shards_are_cut_by_size_as_they_come(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [(f"{number:03d}.txt", b"x" * 1500) for number in range(30)]
    pack(monkeypatch, tar_of(files), shard_size=10_000)
    assert members_of(shards_of(here)) == files
    assert len(shards_of(here)) == 8
    assert all(path.stat().st_size <= 10_000 for path in shards_of(here))


def test_one_output_takes_everything_and_standard_output_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(many_files(6).items())
    pack(monkeypatch, tar_of(files), "one.tar")
    done = command(["-", "-"], here, tar_of(files), tool="htupload")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (here / "one.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        assert tar.getnames() == [name for name, _ in files]


def test_keys_that_come_twice_are_refused_or_renamed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [("a.txt", b"1"), ("a.cls", b"2"), ("b.txt", b"3"), ("a.txt", b"4"), ("a.cls", b"5")]
    with pytest.raises(JobFailed, match="two samples with the key 'a'"):
        pack(monkeypatch, tar_of(files), on_error="skip")
    report = pack(monkeypatch, tar_of(files), same_key="rename")
    expected = {"a.txt": b"1", "a.cls": b"2", "b.txt": b"3", "a-1.txt": b"4", "a-1.cls": b"5"}
    assert dict(members_of(shards_of(here))) == expected
    assert report.counts.renamed == 1


def test_what_cannot_be_used_is_left_out_whole_and_counted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [("a.txt", b"1"), ("big.bin", b"x" * 5000), ("big.txt", b"2"), ("c.__x", b"3"), ("c.txt", b"4")]
    fields: dict[str, Any] = {"on_error": "skip", "max_member": 4000, "rejected": "r.jsonl"}
    report = pack(monkeypatch, tar_of(files), **fields)
    assert members_of(shards_of(here)) == [("a.txt", b"1")]
    assert dict(report.counts.dropped) == {"too-large": 1, "reserved-field": 1}
    assert (report.counts.read, counts_balance(report.to_dict())) == (3, True)
    assert len((here / "r.jsonl").read_text().splitlines()) == 2
    with pytest.raises(JobFailed, match="more than the limit"):
        pack(monkeypatch, tar_of(files), "fail-@.tar", max_member=4000)


def test_a_cut_stream_fails_or_gives_what_was_whole(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [(f"{number}.{field}", os.urandom(700)) for number in range(5) for field in ("a", "b")]
    data = tar_of(files)
    cut = data[: data.index(files[7][1]) + 100]  # in the middle of 3.b
    with pytest.raises(JobFailed, match="cut short"):
        pack(monkeypatch, cut)
    assert shards_of(here) == []
    report = pack(monkeypatch, cut, on_error="skip")
    assert members_of(shards_of(here)) == files[:6]
    assert dict(report.counts.unread) == dict(report.counts.dropped) == {"truncated": 1}


def test_filters_and_prefix_apply(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [("./a.txt", b"1"), ("a.png", b"2"), ("t/b.txt", b"3"), (".h/c.txt", b"4")]
    report = pack(monkeypatch, tar_of(files), include=("*.txt",), exclude=("t/",), key_prefix="p/")
    assert members_of(shards_of(here)) == [("p/a.txt", b"1")]
    assert dict(report.counts.skipped_members) == {"not-included": 1, "excluded": 1, "hidden": 1}


@pytest.mark.parametrize(
    "fields",
    [{"shuffle": True}, {"num_shards": 2}, {"append": True}, {"class_from_dir": True}, {"output": "out-@4.tar"}],
)
def test_what_needs_to_know_everything_before_is_refused(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    with pytest.raises(SpecError, match="standard input"):
        pack(monkeypatch, tar_of([("a.txt", b"1")]), **fields)


def test_outputs_that_are_there_and_empty_streams_are_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JobFailed, match="no sample"):
        pack(monkeypatch, tar_of([]))
    pack(monkeypatch, tar_of([("a.txt", b"1"), ("b.txt", b"2")]), samples_per_shard=1)
    with pytest.raises(TarmillError, match="exists overwrite"):
        pack(monkeypatch, tar_of([("a.txt", b"1")]))
    pack(monkeypatch, tar_of([("c.txt", b"1")]), exists="overwrite")
    assert members_of(shards_of(here)) == [("c.txt", b"1")]


def test_a_stream_cannot_be_read_by_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="belongs to this process"):
        pack(monkeypatch, b"", options={"scheduler": "127.0.0.1:1"})
