"""All commands from S3 to S3, on a real server, also through a proxy that breaks things: the bytes of files."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import s3_places, tars
from support.faultproxy import (
    Answer,
    Cut,
    CutUpload,
    Fault,
    FaultProxy,
    Flip,
    LoseAnswer,
    Reset,
    Stall,
    StallUpload,
    random_faults,
)
from support.maps import UPPER, Running, bytes_of, command, counts_balance, put_shards, run_map
from support.reorder_runs import JOBS, cut_small, put_data, source_of
from support.reorders import AtStage
from support.seaweed import BUCKET, PUBLIC, READER, SeaweedFS

from tarmill import storage
from tarmill.errors import Interrupted
from tarmill.jobs import map as map_job
from tarmill.jobs import reorder, reorder_prepare
from tarmill.spec import ReorderOptions, ShuffleSpec, SortSpec
from tarmill.values import replace

pytestmark = s3_places.MARKS

QUICK = storage.StorageSettings(
    retry_budget_s=60, backoff_first_s=0.001, backoff_most_s=0.01, connect_timeout_s=10, read_timeout_s=1
)
SHARDS = 3
ALL_KINDS: list[Fault | None] = [
    CutUpload(10), Cut(700), LoseAnswer(), Answer(503, "0"), Reset(5000), None, Stall(3000), Answer(500), None,
]  # fmt: skip


class Folder:
    """A folder of the bucket, and one of this machine with the same inputs."""

    def __init__(self, server: SeaweedFS, local: Path) -> None:
        self.server = server
        self.local = local
        self.name = local.name
        self.url = f"s3://{BUCKET}/{self.name}"

    def upload(self) -> None:
        """Put all local files there."""
        for path in sorted(self.local.iterdir()):
            if path.is_file():
                self.server.put(f"{self.name}/{path.name}", path.read_bytes())

    def names(self) -> list[str]:
        """What is there of the jobs' doing, unfinished uploads too."""
        made = [key.removeprefix(f"{self.name}/") for key in self.server.keys(f"{self.name}/")]
        inputs = {path.name for path in self.local.iterdir()}
        return [name for name in made if name not in inputs] + self.server.uploads(f"{self.name}/")

    def outputs(self, pattern: str = "out[-.].*") -> dict[str, bytes]:
        """The data sets' files but for their manifests."""
        names = [name for name in self.names() if re.fullmatch(pattern, name) and "manifest" not in name]
        return {name: self.server.get(f"{self.name}/{name}") for name in names}


@pytest.fixture
def folder(seaweed: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    s3_places.isolate(monkeypatch, seaweed.environment())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    before = storage.current_settings()

    def quick(options: Any) -> storage.StorageSettings:
        settings = replace(QUICK, s3_endpoint=options.s3_endpoint or None)
        storage.configure(settings)
        return settings

    monkeypatch.setattr(map_job, "settings_of", quick)
    monkeypatch.setattr(reorder_prepare, "settings_of", quick)
    local = tmp_path / tmp_path.name
    local.mkdir()
    yield Folder(seaweed, local)
    storage.configure(before)


def mapped(folder: Folder, tmp_path: Path) -> dict[str, bytes]:
    """What the same map on files writes."""
    run_map(f"{folder.local}/in-@{SHARDS}.tar", tmp_path / "files" / "out-@.tar.gz", UPPER)
    return bytes_of(tmp_path / "files")


def reordered(name: str, source: str, output: str, listener: Any = None, **options: Any) -> None:
    tool, _, fields = JOBS[name]
    kind: type[Any] = ShuffleSpec if tool == "shuffle" else SortSpec
    report = reorder.run(
        kind(input=source, output=output, **fields), ReorderOptions(**{"workers": 1, **options}), listener
    )
    assert report.succeeded
    assert counts_balance(report.to_dict())


def test_map_from_s3_to_s3_gives_the_bytes_of_files(folder: Folder, tmp_path: Path) -> None:
    put_shards(folder.local, SHARDS, samples=20, size=5000)
    folder.upload()
    (tmp_path / "up.py").write_text(UPPER)
    arguments = ["-p", "up.py", f"{folder.url}/in-*.tar", f"{folder.url}/out-@.tar.gz", "-j", "2"]
    done = command(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert folder.outputs() == mapped(folder, tmp_path)
    again = command(arguments, tmp_path)
    assert again.returncode == 0
    assert b"3 finished before, 0 to do" in again.stderr
    verified = command(["verify", f"{folder.url}/out-@{SHARDS:06d}.tar.gz"], tmp_path, tool="tarmill")
    assert verified.returncode == 0, verified.stderr
    # a shard that somebody replaced is found, and made again
    folder.server.put(f"{folder.name}/out-000001.tar.gz", b"something else")
    broken = command(["verify", f"{folder.url}/out-@{SHARDS:06d}.tar.gz"], tmp_path, tool="tarmill")
    assert broken.returncode == 1
    assert b"out-000001.tar.gz" in broken.stdout + broken.stderr
    assert command(arguments, tmp_path).returncode == 0
    assert folder.outputs() == mapped(folder, tmp_path)
    assert folder.server.uploads(folder.name) == []


@pytest.mark.parametrize("seed", [7, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(10))])
def test_map_through_faults_both_ways_gives_the_bytes_of_files(folder: Folder, tmp_path: Path, seed: int) -> None:
    put_shards(folder.local, SHARDS, samples=20, size=5000)
    folder.upload()
    with FaultProxy(folder.server.port, [*ALL_KINDS, *random_faults(seed, 10, 150_000), *ALL_KINDS]) as proxy:
        report = run_map(
            f"{folder.url}/in-@{SHARDS}.tar",
            f"{folder.url}/out-@.tar.gz",
            UPPER,
            options={"workers": 2, "s3_endpoint": proxy.base},
        )
        assert proxy.hurt >= 8
    assert report.succeeded
    assert folder.outputs() == mapped(folder, tmp_path)


def test_large_shards_go_up_in_parts_through_faults(folder: Folder, tmp_path: Path) -> None:
    """A flipped bit, too: the server refuses the part, and the job makes the shard again."""
    put_shards(folder.local, 2, samples=100, size=200_000)
    folder.upload()
    script: list[Fault | None] = [None, CutUpload(3_000_000), LoseAnswer(), Answer(503), Flip(2_000_000), Reset(0)]
    with FaultProxy(folder.server.port, script, only=("PUT",)) as proxy:
        report = run_map(
            f"{folder.url}/in-@2.tar",
            f"{folder.url}/out-@.tar",
            UPPER,
            options={"workers": 1, "s3_endpoint": proxy.base},
        )
        assert proxy.hurt >= 4
    assert report.succeeded
    run_map(f"{folder.local}/in-@2.tar", tmp_path / "files" / "out-@.tar", UPPER)
    assert folder.outputs() == bytes_of(tmp_path / "files")
    assert folder.server.uploads(folder.name) == []


@pytest.mark.parametrize("faults", [
    pytest.param([], id="undisturbed", marks=pytest.mark.long), pytest.param(ALL_KINDS * 3, id="through faults"),
])  # fmt: skip
@pytest.mark.parametrize(("name", "plan"), [
    ("shuffle", "external"), ("merge", "memory"),
    *(pytest.param(*row, marks=pytest.mark.long) for row in (("shuffle", "memory"), ("merge", "external"))),
])  # fmt: skip
def test_shuffle_and_sort_from_s3_to_s3_give_the_bytes_of_files(
    folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    plan: str,
    faults: list[Fault | None],
) -> None:
    put_data(folder.local)
    folder.upload()
    reordered(name, source_of(name, folder.local), f"{tmp_path}/files/out-@.tar.gz", plan="local")
    cut_small(monkeypatch.setattr)
    with FaultProxy(folder.server.port, faults) as proxy:
        source, output = source_of(name, folder.url), f"{folder.url}/out-@.tar.gz"
        reordered(name, source, output, plan=plan, s3_endpoint=proxy.base)
        assert proxy.hurt >= (12 if faults else 0)
    assert folder.outputs() == bytes_of(tmp_path / "files")
    assert [found for found in folder.names() if "run" in found or "spill" in found] == []
    assert "out.manifest.json" in folder.names()


def test_a_sort_that_was_stopped_goes_on_from_what_the_bucket_has(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_data(folder.local)
    folder.upload()
    reordered("merge", source_of("merge", folder.local), f"{tmp_path}/files/out-@.tar.gz", plan="local")
    cut_small(monkeypatch.setattr)
    source, output = source_of("merge", folder.url), f"{folder.url}/out-@.tar.gz"

    def stop() -> None:
        raise Interrupted("stopped by the test")

    with pytest.raises(Interrupted):
        reordered("merge", source, output, AtStage(stop, 3), plan="external")
    assert folder.outputs() == {}
    reordered("merge", source, output, plan="external")
    assert folder.outputs() == bytes_of(tmp_path / "files")


def test_extract_from_s3_to_s3_gives_the_rows_of_files(folder: Folder, tmp_path: Path) -> None:
    put_shards(folder.local, SHARDS, samples=20, size=5000)
    folder.upload()
    fields = ["-f", "__key__,txt"]
    wanted = command([f"{folder.local}/in-@{SHARDS}.tar", *fields], tmp_path, tool="htextract")
    assert wanted.returncode == 0, wanted.stderr
    source = f"{folder.url}/in-@{SHARDS}.tar"
    left = [f"{folder.name}/{name}" for name in ("rows.tsv", "other.tsv")]  # by whoever was killed
    for key in left:
        folder.server.client().create_multipart_upload(Bucket=BUCKET, Key=key)
    no_waiting = [fault for fault in ALL_KINDS if not isinstance(fault, Stall)]
    with FaultProxy(folder.server.port, no_waiting) as proxy:
        through = ["--s3-endpoint", proxy.base, "-o", f"{folder.url}/rows.tsv"]
        done = command([source, *fields, *through], tmp_path, tool="htextract")
        assert done.returncode == 0, done.stderr
        assert proxy.hurt
    assert folder.server.get(f"{folder.name}/rows.tsv") == wanted.stdout
    assert folder.server.uploads(f"{folder.name}/") == left[1:]
    printed = command([source, *fields], tmp_path, tool="htextract")
    assert printed.stdout == wanted.stdout


@pytest.mark.parametrize("finish", ["resume", "clean"])
def test_what_a_killed_job_leaves_goes_with_its_resumption_or_by_clean(
    folder: Folder, tmp_path: Path, finish: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGKILL leaves the parts of the shard that was being written; another's unfinished upload is not touched."""
    put_shards(folder.local, 2, samples=150, size=200_000)
    folder.upload()
    (tmp_path / "held.py").write_text(HELD_IN_THE_MIDDLE)
    client = folder.server.client()
    foreign = client.create_multipart_upload(Bucket=BUCKET, Key=f"{folder.name}/other-000000.tar")["UploadId"]
    arguments = ["-p", "held.py", f"{folder.url}/in-@2.tar", f"{folder.url}/out-@.tar", "-j", "1"]
    hold = tmp_path / "hold"
    hold.touch()
    mine = f"{folder.name}/out-000001.tar"
    with Running(arguments, tmp_path, HOLD=str(hold)) as running:
        running.wait_until(lambda: mine in folder.server.uploads(folder.name), "the second shard to be uploaded")
        running.send(9)
        running.wait()
    hold.unlink()
    assert list(folder.outputs()) == ["out-000000.tar"]
    if finish == "resume":
        done = command(arguments, tmp_path, HOLD=str(hold))
        assert done.returncode == 0, done.stderr
        assert b"1 finished before, 1 to do" in done.stderr
        run_map(f"{folder.local}/in-@2.tar", tmp_path / "files" / "out-@.tar")
        assert folder.outputs() == bytes_of(tmp_path / "files")
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "not this one")
        arguments = ["clean", "--all", "--force", f"{folder.url}/", "--s3-endpoint", folder.server.endpoint]
        done = command(arguments, tmp_path, tool="tarmill")
        assert done.returncode == 0, done.stderr
        assert [name for name in folder.names() if "_tarmill" in name] == []
    assert folder.server.uploads(folder.name) == [f"{folder.name}/other-000000.tar"]
    client.abort_multipart_upload(Bucket=BUCKET, Key=f"{folder.name}/other-000000.tar", UploadId=foreign)


HELD_IN_THE_MIDDLE = """
import os, time

def process_sample(record):
    while record["__key__"].endswith("140") and "in-1" in record["__url__"] and os.path.exists(os.environ["HOLD"]):
        time.sleep(0.01)
    return record
"""


def test_clean_takes_what_a_killed_shuffle_has_in_the_bucket_and_in_scratch(folder: Folder, tmp_path: Path) -> None:
    put_data(folder.local)
    folder.upload()
    source, output = source_of("shuffle", folder.url), f"{folder.url}/out-@2.tar"
    arguments = [source, output, "--plan", "external", "-j", "1", "--s3-endpoint"]
    scratch = tmp_path / "scratch"
    with (
        FaultProxy(folder.server.port, [None] * 3 + [StallUpload(0)], only=("PUT",)) as proxy,
        Running([*arguments, proxy.base], tmp_path, tool="htshuffle") as running,
    ):
        assert proxy.stalled.wait(60)
        running.send(9)
        running.wait()
    assert [name for name in folder.names() if "_tarmill" in name]
    assert list(scratch.glob("tarmill-*"))
    done = command(["clean", "--all", "--force", f"{folder.url}/"], tmp_path, tool="tarmill")
    assert done.returncode == 0, done.stderr
    assert folder.names() == []
    assert list(scratch.glob("tarmill-*")) == []


def test_commands_beside_the_jobs_find_the_store_by_their_options(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_shards(folder.local, SHARDS)
    folder.upload()
    source, output = f"{folder.url}/in-@{SHARDS}.tar", f"{folder.url}/out-@{SHARDS:06d}.tar"
    run_map(source, output, UPPER, options={"s3_endpoint": folder.server.endpoint})
    folder.server.client().put_object(Bucket=PUBLIC, Key=f"{folder.name}.tar", Body=folder.outputs()["out-000000.tar"])
    (tmp_path / "up.py").write_text(UPPER)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "not this one")
    there = ["--s3-endpoint", folder.server.endpoint, "--store-option", "s3.region=eu-west-1"]
    for arguments in (
        ["cat", "--check", source],
        ["cat", source, "-o", f"{folder.url}/joined.tar"],
        ["try", source, "-p", "up.py"],
        ["index", output],
        ["verify", output],
    ):
        done = command([*arguments, *there], tmp_path, tool="tarmill")
        assert done.returncode == 0, done.stderr
        assert done.stdout or "joined.tar" in arguments[-1]
    assert "joined.tar" in folder.names()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    done = command(["cat", "--check", f"s3://{PUBLIC}/{folder.name}.tar", *there, "--anon"], tmp_path, tool="tarmill")
    assert done.returncode == 0, done.stderr


def test_a_bucket_that_may_only_be_read_is_refused_in_one_line_before_any_work(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_shards(folder.local, SHARDS)
    folder.upload()
    for name, value in folder.server.environment(READER).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "up.py").write_text(UPPER)
    done = command(["-p", "up.py", f"{folder.url}/in-@{SHARDS}.tar", f"{folder.url}/out-@.tar"], tmp_path)
    assert done.returncode == 1
    assert b"403 AccessDenied" in done.stderr
    assert b"may not write there" in done.stderr
    assert b"Traceback" not in done.stderr
    assert folder.names() == []


def test_wrong_keys_are_told_in_one_line_without_them(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_shards(folder.local, SHARDS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-that-is-wrong")
    done = command([f"{folder.url}/in-@{SHARDS}.tar", "-f", "__key__"], tmp_path, tool="htextract")
    assert done.returncode == 1
    assert b"SignatureDoesNotMatch" in done.stderr
    assert b"a-secret-that-is-wrong" not in done.stderr
    assert b"Traceback" not in done.stderr


def test_odd_names_of_shards_are_found_and_made(folder: Folder, tmp_path: Path) -> None:
    """Keys are written as they are: nothing is quoted, nothing is a query."""
    record = tars.ustar([("a.txt", b"text")])
    for name in ("a b+c%20d.tar", "é=1&x.tar"):
        folder.server.put(f"{folder.name}/{name}", record)
    (tmp_path / "up.py").write_text(UPPER)
    done = command(["-p", "up.py", f"{folder.url}/*.tar", f"{folder.url}/out +@.tar"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(folder.outputs(r"out \+.*")) == ["out +000000.tar", "out +000001.tar"]
