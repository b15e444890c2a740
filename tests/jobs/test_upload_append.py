"""`htupload --append`: new shards behind old ones, one manifest for all, no key twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.maps import read_json, run_map
from support.uploads import keys_of, many_files, members_of, put_files, run_upload, shards_of

from tarmill import storage
from tarmill.errors import SampleError, TarmillError, UsageError
from tarmill.jobs import upload
from tarmill.jobs.verify import run as run_verify


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    put_files(tmp_path, {f"one/{name}": body for name, body in many_files(5, 1).items()})
    put_files(tmp_path, {f"two/{name.replace('s', 't')}": body for name, body in many_files(5, 1).items()})
    return tmp_path


def append(source: str, **fields: Any) -> Any:
    return run_upload(source, "out-@.tar", samples_per_shard=2, append=True, **fields)


def names(here: Path) -> list[str]:
    return [path.name for path in shards_of(here)]


def test_numbers_go_on_and_the_manifest_holds_all(here: Path) -> None:
    run_upload("one", "out-@.tar", samples_per_shard=2)
    old = {path.name: path.read_bytes() for path in shards_of(here)}
    report = append("two")
    assert names(here) == [f"out-{number:06d}.tar" for number in range(6)]
    assert {name: (here / name).read_bytes() for name in old} == old
    manifest = read_json("out.manifest.json")
    assert (manifest["samples"], manifest["members"], len(manifest["shards"])) == (10, 20, 6)
    assert manifest["counts"]["written"] == 10
    assert manifest["appended"][0]["first"] == 3
    assert report.counts.written == 5
    assert run_verify("out-@.tar").ok
    assert sorted(members_of(shards_of(here))) == sorted(
        (f"{path.parent.name}/{path.name}", path.read_bytes())
        for folder in ("one", "two")
        for path in (here / folder).rglob("*.*")
        if path.is_file()
    )


def test_the_same_command_twice_appends_once(here: Path) -> None:
    run_upload("one", "out-@.tar", samples_per_shard=2)
    append("two")
    before = (here / "out.manifest.json").read_bytes()
    report = append("two")
    assert (report.shards_resumed, report.counts.written) == (3, 5)
    assert (here / "out.manifest.json").read_bytes() == before
    assert len(names(here)) == 6


def test_appending_to_nothing_begins_a_data_set(here: Path) -> None:
    append("one")
    append("two")
    assert run_verify("out-@.tar").ok
    assert len(names(here)) == 6


@pytest.mark.parametrize("what", ["out-@0004.tar", "htmapper"])
def test_data_sets_of_other_widths_and_tools_are_continued(here: Path, what: str) -> None:
    if what == "htmapper":
        run_upload("one", "in-@4.tar")
        run_map("in-@4.tar", "out-@0004.tar")
    else:
        run_upload("one", what)
    append("two")
    assert names(here) == [f"out-{number:04d}.tar" for number in range(7)]
    assert run_verify("out-@0007.tar").ok


def test_keys_that_are_there_are_refused_or_renamed(here: Path) -> None:
    run_upload("one", "out-@.tar", samples_per_shard=2)
    before = (here / "out.manifest.json").read_bytes()
    put_files(here, {"three/d0/s001.txt": "new", "three/d0/x.txt": "new", "three/d0/s001-1.txt": "own"})
    with pytest.raises(SampleError, match=r"1 of 3 samples have keys.*'d0/s001'"):
        append("three")
    assert (here / "out.manifest.json").read_bytes() == before
    report = append("three", same_key="rename")
    assert keys_of(shards_of(here)[3:]) == ["d0/s001-2", "d0/s001-1", "d0/x"]
    assert report.counts.renamed == 1
    assert run_verify("out-@.tar").ok


def test_an_append_that_broke_off_leaves_the_data_set_and_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_upload("one", "out-@.tar", samples_per_shard=2)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(upload, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            append("two")
    assert run_verify("out.manifest.json").ok
    assert read_json("out.manifest.json")["samples"] == 5
    report = append("two")
    assert report.shards_resumed == 3
    assert run_verify("out-@.tar").ok


def test_classes_keep_their_numbers(here: Path) -> None:
    put_files(here, {"a/dog/1.jpg": "", "b/cat/1.jpg": "", "b/dog/2.jpg": ""})
    run_upload("a", "out-@.tar", class_from_dir=True)
    append("b", class_from_dir=True)
    assert read_json("classes.json") == {"dog": 0, "cat": 1}
    assert dict(members_of(shards_of(here)))["cat/1.cls"] == b"1"


@pytest.mark.parametrize("fault", ["gone", "changed"])
def test_a_data_set_that_is_not_what_its_manifest_says_is_not_added_to(here: Path, fault: str) -> None:
    run_upload("one", "out-@.tar", samples_per_shard=2)
    if fault == "gone":
        (here / "out-000001.tar").unlink()
    else:
        (here / "out-000001.tar").write_bytes(b"x" * 100)
    with pytest.raises(UsageError, match=r"out-000001.*not as out\.manifest\.json says"):
        append("two")


def test_what_cannot_be_appended_to_is_told(here: Path) -> None:
    with pytest.raises(UsageError, match="leave it open"):
        run_upload("two", "out-@4.tar", append=True)
    run_upload("one", "out-@10.tar", empty_shards=True)
    put_files(here, {f"many/{number:03d}.txt": "x" for number in range(95)})
    with pytest.raises(UsageError, match="numbers of 2 digits"):
        run_upload("many", "out-@.tar", append=True, samples_per_shard=1)


def test_in_memory_stores_too(here: Path, place: str) -> None:
    run_upload("one", f"{place}out-@.tar", samples_per_shard=2)
    run_upload("two", f"{place}out-@.tar", samples_per_shard=2, append=True)
    assert len(keys_of(f"{place}out-{number:06d}.tar" for number in range(6))) == 10
    with pytest.raises(TarmillError):
        storage.stat(f"{place}out-000006.tar")
