"""Clean jobs: what a job left goes, all of it, and nothing else goes, whatever a job's own files say."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from support.maps import finished_shards, put_shards, run_map
from support.webserver import Reply, WebServer

from tarmill import storage
from tarmill.errors import StorageError, UsageError
from tarmill.jobs.clean import find, jobs_in, outputs_folder, remove, why_not
from tarmill.jobs.clean_files import JobLeftovers

JOB = "0123456789abcdef"
OTHER = "fedcba9876543210"


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of scratch folders."""
    base = tmp_path / "tmp"
    base.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(base))
    return base


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of outputs of a job that is not complete, and of another one."""
    folder = tmp_path / "out"
    for job in (JOB, OTHER):
        for name in ("shard-0000000.json", "part-3.json", "scan-1", "run-7/0", "spill/a/b"):
            put(folder / "_tarmill" / job / name, 10)
        put_facts(folder, job, format=1, kind="ShardSort", output="out/train-@.tar", shards=2)
    put(folder / "train-000000.tar", 512)
    return folder


def put(path: Path, size: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def put_facts(folder: Path, job: str = JOB, **facts: Any) -> None:
    put(folder / "_tarmill" / job / "job.json").write_text(json.dumps(facts))


def temp_name(job: str) -> str:
    return f".train-000001.tar.{job}.{'a' * 16}.tmp"


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def clean(target: str | Path, **options: Any) -> list[JobLeftovers]:
    found = find(str(target), **options)
    for job in found:
        remove(job)
    return found


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_folder_of_a_job_goes_and_nothing_else(out, slash):
    before = tree(out)
    [found] = clean(f"{out}/_tarmill/{JOB}{slash}")
    assert tree(out) == {name for name in before if not name.startswith(f"_tarmill/{JOB}")}
    assert len(found.files) == 6
    assert found.files[-1].url.endswith("job.json")
    assert found.size_bytes == 50 + found.files[-1].size_bytes
    assert found.manifest == ""


def test_the_last_job_takes_the_folder_of_all_with_it(out):
    clean(out, every=True)
    assert tree(out) == {"train-000000.tar"}


def test_a_bare_id_is_looked_for_here_in_named_folders_and_in_scratch(out, scratch, monkeypatch):
    put(scratch / f"tarmill-{JOB}" / "run-0", 100)
    put(scratch / f"tarmill-{OTHER}" / "run-0")
    with pytest.raises(UsageError, match=r"left nothing in \./_tarmill/, nowhere/_tarmill/ or .*--in"):
        find("0" * 16, folders=["nowhere"])
    [found] = find(JOB, folders=[str(out)])
    assert found.has_folder
    monkeypatch.chdir(out)
    clean(JOB)
    assert not (out / "_tarmill" / JOB).exists()
    assert tree(scratch) == {f"tarmill-{OTHER}", f"tarmill-{OTHER}/run-0"}


def test_scratch_alone_is_found_by_the_id_and_another_base(tmp_path, scratch):
    put(scratch / f"tarmill-{JOB}" / "x")
    put(tmp_path / "big" / f"tarmill-{JOB}" / "x")
    [found] = clean(JOB, scratch_dir=str(tmp_path / "big"))
    assert not found.has_folder
    assert tree(tmp_path / "big") == set()
    assert (scratch / f"tarmill-{JOB}").exists()
    clean(JOB)
    assert tree(scratch) == set()


def test_temp_files_of_the_job_go_wherever_its_outputs_are(tmp_path):
    folder = tmp_path / "out"
    put_facts(folder, output="out/{a,b}/train-@1.tar", shards=2)
    ours = [put(folder / place / temp_name(JOB), 7) for place in (".", "a", "b", f"_tarmill/{JOB}/spill")]
    theirs = [put(folder / place / temp_name(OTHER)) for place in (".", "a", "c")]
    theirs.append(put(folder / "c" / temp_name(JOB)))  # no folder of this job
    [found] = clean(folder / "_tarmill" / JOB)
    assert [path for path in ours if path.exists()] == []
    assert [path for path in theirs if not path.exists()] == []
    assert found.size_bytes >= 28


def test_scratch_that_the_job_names_goes(out, tmp_path, monkeypatch):
    place = tmp_path / "far" / f"tarmill-{JOB}"
    inside = out / "_tarmill" / JOB / "spill"
    put(place / "run-0" / "x", 5)
    put_facts(out, scratch=[str(place), f"file://{place}/", f"{inside}/"], output="train-@.tar")
    monkeypatch.chdir(out)  # jobs name their folders in full, people do not
    [found] = clean(f"_tarmill/{JOB}")
    assert not place.exists()
    assert [file.size_bytes for file in found.files].count(5) == 1
    assert found.notes == []


def test_a_hostile_job_file_has_nothing_deleted_elsewhere(out, tmp_path, scratch):
    victim = put(tmp_path / "x" / "precious")
    other = put(scratch / f"tarmill-{OTHER}" / "x")
    disguised = put(tmp_path / f"tarmill-{JOB}.d" / "x")
    link = tmp_path / "linked" / f"tarmill-{JOB}"
    link.parent.mkdir()
    link.symlink_to(victim.parent)
    hostile = [
        "/",
        "/etc",
        "../../x",
        "",
        ".",
        "-",
        None,
        7,
        [str(victim)],
        str(victim.parent),
        str(other.parent),
        str(disguised.parent),
        f"{tmp_path}/tarmill-{JOB}/../x",
        f"{out}/_tarmill/{JOB}/../../../x",
        f"{out}/_tarmill/{OTHER}",
        f"file://{victim.parent}",
        f"file://elsewhere/tarmill-{JOB}",
        f"{victim.parent}?tarmill-{JOB}",
        f"{victim.parent}\0/tarmill-{JOB}",
        f"http://127.0.0.1:9/tarmill-{JOB}",
        f"nowhere://x/tarmill-{JOB}",
        str(link),
    ]
    put_facts(out, scratch=hostile, output="../../x/{..,../..}/train-@2.tar")
    before = tree(tmp_path)
    [found] = clean(out / "_tarmill" / JOB)
    assert tree(tmp_path) == {name for name in before if not name.startswith(f"out/_tarmill/{JOB}")}
    assert len(found.notes) == len(hostile)


@pytest.mark.parametrize("facts", ["[]", "{", '{"scratch": 7, "output": 8, "shards": "x"}', '{"scratch": {"/": 1}}'])
def test_a_damaged_job_file_is_no_obstacle(out, facts):
    (out / "_tarmill" / JOB / "job.json").write_text(facts)
    clean(out / "_tarmill" / JOB)
    assert jobs_in(f"{out}/") == [OTHER]


def test_symbolic_links_are_removed_and_not_followed(out, tmp_path):
    victim = put(tmp_path / "x" / "precious")
    (out / "_tarmill" / JOB / "spill" / "folder").symlink_to(victim.parent)
    (out / "_tarmill" / JOB / "file").symlink_to(victim)
    clean(out / "_tarmill" / JOB)
    assert victim.exists()
    assert jobs_in(f"{out}/") == [OTHER]


@pytest.mark.parametrize("linked", ["_tarmill", f"_tarmill/{JOB}"])
def test_a_job_folder_that_is_a_link_is_left_alone(out, tmp_path, linked):
    moved = tmp_path / "moved"
    (out / linked).rename(moved)
    (out / linked).symlink_to(moved)
    before = tree(moved)
    with pytest.raises(UsageError, match="not there"):
        clean(out / "_tarmill" / JOB)
    assert tree(moved) == before


def test_temp_files_behind_a_link_are_left_alone(out, tmp_path):
    victim = put(tmp_path / "x" / temp_name(JOB))
    (out / "sub").symlink_to(victim.parent)
    put_facts(out, output="out/{sub,other}/train-@1.tar", shards=2)
    clean(out / "_tarmill" / JOB)
    assert victim.exists()


def test_a_job_is_complete_when_the_manifest_of_its_data_set_names_it(tmp_path):
    run_map(put_shards(tmp_path), tmp_path / "out" / "new-@.tar")
    shards = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("new*")}
    [found] = clean(f"{tmp_path}/out/new-@.tar", every=True)
    assert found.manifest.endswith("out/new.manifest.json")
    assert len(finished_shards(tmp_path / "out")) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == shards


def test_a_job_that_another_one_replaced_is_not_complete(tmp_path):
    source = put_shards(tmp_path)
    run_map(source, tmp_path / "out" / "new-@.tar")
    run_map(source, tmp_path / "out" / "new-@.tar", salt="x", exists="overwrite")
    found = find(f"{tmp_path}/out", every=True)
    assert sorted(bool(job.manifest) for job in found) == [False, True]


def test_a_file_that_changed_lately_tells_of_a_running_job(out):
    now_s = time.time()
    for path in out.rglob("*"):
        os.utime(path, (now_s - 100, now_s - 100))
    [found] = find(f"{out}/_tarmill/{JOB}")
    assert not found.may_run(now_s)
    temp = put(out / temp_name(JOB))
    os.utime(temp, (now_s - 30, now_s - 30))
    [found] = find(f"{out}/_tarmill/{JOB}")
    assert found.may_run(now_s)
    assert 29 < (found.changed_s_ago(now_s) or 0) < 31
    os.utime(temp, (now_s + 500, now_s + 500))  # the store's clock is ahead
    assert find(f"{out}/_tarmill/{JOB}")[0].may_run(now_s)


def test_objects_of_another_store_go_too(place):
    source = put_shards(place)
    run_map(source, f"{place}out-@.tar")
    [job] = jobs_in(place)
    storage.write_bytes(f"{place}elsewhere/tarmill-{job}/run-0", b"x")
    storage.write_bytes(f"{place}elsewhere/tarmill-{OTHER}/run-0", b"x")
    facts = json.loads(storage.read_bytes(f"{place}_tarmill/{job}/job.json"))
    facts["scratch"] = [f"{place}elsewhere/tarmill-{job}", place]
    storage.write_bytes(f"{place}_tarmill/{job}/job.json", json.dumps(facts).encode())
    before = {stat.url for stat in storage.list_urls(place)}
    [found] = clean(f"{place}out-@.tar", every=True)
    gone = before - {stat.url for stat in storage.list_urls(place)}
    assert gone == {file.url for file in found.files}
    assert len(gone) == 5
    assert all(f"/{job}/" in url or f"/tarmill-{job}/" in url for url in gone)
    assert found.manifest == f"{place}out.manifest.json"
    assert len(found.notes) == 1


def test_a_web_server_that_cannot_list_is_told_with_the_cure():
    facts = json.dumps({"output": "x-@.tar", "shards": 1}).encode()
    with WebServer({f"/o/_tarmill/{JOB}/": Reply(403), f"/o/_tarmill/{JOB}/job.json": Reply(200, facts)}) as server:
        with pytest.raises(StorageError, match=r"cannot be listed.*autoindex on"):
            find(f"{server.base}/o/_tarmill/{JOB}")
        server.replies[f"/o/_tarmill/{JOB}/"] = Reply(404)
        with pytest.raises(StorageError, match=r"cannot be listed.*autoindex on"):
            find(f"{server.base}/o/_tarmill/{JOB}")
        assert {asked.method for asked in server.asked} <= {"GET", "HEAD"}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("out-@.tar", "is no job; name its folder"),
        ("_tarmill/0123", "is no job"),
        (f"nowhere/_tarmill/{JOB}", "is not there"),
    ],
)
def test_what_is_no_job_is_refused(tmp_path, monkeypatch, target, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        find(target)


def test_a_folder_without_jobs_has_nothing_to_go(tmp_path):
    assert find(str(tmp_path), every=True) == []
    assert find(f"{tmp_path}/nowhere/", every=True) == []


def test_the_folder_of_outputs_is_that_of_the_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    assert outputs_folder("d") == outputs_folder("d/") == outputs_folder("d/x-@.tar") == "d/"
    assert outputs_folder(".") == outputs_folder("x-@.tar") == ""
    assert outputs_folder("mem://h/d/x-@4.tar") == "mem://h/d/"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (f"http://h/s/tarmill-{JOB}", None),
        (f"http://h:81/s/tarmill-{JOB}", "which is on another host"),
        (f"http://h@evil/s/tarmill-{JOB}", "which is on another host"),
        (f"/scratch/tarmill-{JOB}/", None),
        (f"http://h/d/_tarmill/{JOB}/spill", ""),
        ("http://h/d/", "which is no folder of this job"),
    ],
)
def test_scratch_on_the_web_must_be_on_the_host_of_the_job(place, reason):
    assert why_not(place, f"http://h/d/_tarmill/{JOB}/", JOB) == reason
