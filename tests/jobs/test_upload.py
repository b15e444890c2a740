"""htupload of folders, globs and stores: what is in the shards, in which order, and what is left out and told."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tars
from support.maps import bytes_of, counts_balance, leftovers, read_json, records_in
from support.uploads import keys_of, many_files, members_of, put_files, run_upload, shards_of

from tarmill import storage
from tarmill.engine.processes import ProcessEngine
from tarmill.errors import SampleError, SpecError, TarmillError, UsageError
from tarmill.formats.keys import base_plus_ext
from tarmill.jobs import upload_files, upload_look, upload_scan, upload_shard
from tarmill.jobs.extract import run as run_extract
from tarmill.jobs.verify import run as run_verify
from tarmill.spec import ExtractSpec, RunOptions


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What comes out


def test_a_folder_comes_out_as_samples_in_the_order_of_keys(here: Path) -> None:
    files = {
        "b.txt": "2",
        "b.cls": "c",
        "a.x/c.txt": "0",
        "a-b.txt": "1",
        "a/z.txt": "3",
        "a.seg.png": "4",
        "a.txt": "",
    }
    report = run_upload(put_files(here / "in", files), "out-@.tar")
    members = members_of(shards_of(here))
    assert [name for name, _ in members] == [
        "a.seg.png",
        "a.txt",
        "a-b.txt",
        "a.x/c.txt",
        "a/z.txt",
        "b.cls",
        "b.txt",
    ]
    assert dict(members) == {name: body.encode() for name, body in files.items()}
    assert counts_balance(report.to_dict())
    assert (report.counts.read, report.counts.read_bytes) == (5, 6)
    assert run_verify("out-@.tar").ok
    assert leftovers(here) == []


NAMES = st.lists(st.text("ab.-\né", min_size=1, max_size=5), min_size=1, max_size=3).map("/".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(names=st.sets(NAMES, max_size=12), shuffle=st.booleans(), each=st.integers(1, 4))
def test_every_file_that_has_a_key_is_in_the_shards_once_and_the_others_are_counted(
    here: Path, tmp_path_factory: pytest.TempPathFactory, names: set[str], shuffle: bool, each: int
) -> None:
    folder = tmp_path_factory.mktemp("in")
    kept: dict[str, bytes] = {}
    for name in sorted(names):
        parts = name.split("/")
        if {".", ".."} & set(parts):
            continue
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
        except (NotADirectoryError, IsADirectoryError, FileExistsError):
            continue
        if base_plus_ext(name) and not any(part.startswith(".") for part in parts):
            kept[name] = name.encode()
    put = sum(len(files) for _, _, files in os.walk(folder))
    if not kept:
        with pytest.raises(UsageError, match="no sample to pack"):
            run_upload(folder, folder / "none-@.tar")
        return
    out = tmp_path_factory.mktemp("out")
    report = run_upload(folder, out / "out-@.tar", shuffle=shuffle, samples_per_shard=each)
    members = members_of(shards_of(out))
    assert dict(members) == kept
    assert len(members) == len(kept)
    keys = keys_of(shards_of(out))
    assert len(keys) == len({base_plus_ext(name)[0] for name in kept}) == report.counts.written  # type: ignore[index]
    assert shuffle or keys == sorted(keys)
    skipped = report.counts.skipped_members
    assert put == len(kept) + skipped["hidden"] + skipped["no-extension"] or skipped["hidden-folder"]
    assert run_verify(f"{out}/out-@.tar").ok


CUTS = {
    "samples": ({"samples_per_shard": 4}, 8),
    "size": ({"shard_size": 9000}, 10),
    "number": ({"num_shards": 3}, 3),
    "shuffled": ({"shuffle": True, "num_shards": 2}, 2),
}


@pytest.mark.parametrize(("cut", "shards"), CUTS.values(), ids=CUTS)
def test_the_bytes_are_the_same_for_any_number_of_workers(
    here: Path, cut: dict[str, Any], shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_scan, "MANY_FILES", 10)  # workers look at the files too
    monkeypatch.setattr(upload_scan, "_TASK_FILES", 7)
    ready = iter([False, False])  # and this process, until they are there
    monkeypatch.setattr(ProcessEngine, "is_ready", lambda self: next(ready, True))
    put_files(here / "in", many_files(30, 3))
    for workers in (1, 2):
        seed = {"seed": "3"} if "shuffle" in cut else {}
        run_upload("in", f"w{workers}/out-@.tar.gz", options={"workers": workers}, **cut, **seed)
    assert bytes_of(here / "w1") == bytes_of(here / "w2")
    assert len(bytes_of(here / "w1")) == shards
    one, two = (read_json(here / f"w{workers}" / "out.manifest.json") for workers in (1, 2))
    assert (one["digest"], one["samples"]) == (two["digest"], 30)


def open_below(folder: Path) -> list[str]:
    """What this process holds open below a folder; a count would follow the connections of other tests too."""
    held = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since, as the one of the listing itself
            held.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [path for path in held if path.startswith(os.fspath(folder))]


@pytest.mark.parametrize("cut", [{"num_shards": 2}, {"shard_size": 40_000}], ids=["by name", "looked at"])
@pytest.mark.parametrize("order", [{}, {"shuffle": True, "seed": "3"}], ids=["sorted", "shuffled"])
def test_folders_that_cannot_be_opened_are_read_by_whole_paths_and_none_stays_open(
    here: Path, order: dict[str, Any], cut: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_files(here / "in", many_files(30, 3))
    run_upload("in", "first/out-@.tar", **cut, **order)
    run_upload("in", "open/out-@.tar", **cut, **order)
    assert open_below(here) == []
    for module in (upload_look, upload_files):
        monkeypatch.setattr(module, "open_folder", lambda folder: None)
    run_upload("in", "paths/out-@.tar", **cut, **order)
    assert bytes_of(here / "open") == bytes_of(here / "paths")
    assert len(bytes_of(here / "open")) == 2


def test_webdataset_reads_what_was_in_the_folder(here: Path) -> None:
    files = many_files(9, 3)
    run_upload(put_files(here / "in", files), "out-@.tar", num_shards=2)
    found = {}
    for shard in shards_of(here):
        for sample in tars.webdataset_listing(shard.read_bytes()):
            found.update({f"{sample['__key__']}.{field}": sample[field] for field in ("txt", "cls")})
    assert found == files


def test_htextract_gives_the_source_back(here: Path) -> None:
    files = {f"d/{number:03d}.txt": f"line {number}" for number in range(12)}
    run_upload(put_files(here / "in", files), "out-@2.tar")
    run_extract(
        ExtractSpec(input="out-@2.tar", columns=("__key__", "txt"), format="jsonl", output="rows.jsonl"),
        RunOptions(workers=1),
    )
    rows = [json.loads(line) for line in (here / "rows.jsonl").read_text().splitlines()]
    assert {f"{row['__key__']}.txt": row["txt"] for row in rows} == files


def test_a_shuffle_is_by_seed_and_the_seed_is_recorded(here: Path) -> None:
    put_files(here / "in", many_files(40))
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2"), ("d", ""), ("e", "")):
        run_upload("in", f"{name}/out-@.tar", shuffle=True, seed=seed)
    keys = {name: keys_of(shards_of(here / name)) for name in "abcd"}
    assert keys["a"] == keys["b"] != keys["c"]
    assert all(sorted(found) == sorted(keys["a"]) != found for found in keys.values())
    assert read_json(here / "a" / "out.manifest.json")["seed"] == 1
    assert isinstance(read_json(here / "d" / "out.manifest.json")["seed"], int)


def test_large_samples_are_written_as_they_are_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    files = {"a.bin": os.urandom(70_000), "a.txt": b"t", "b.bin": os.urandom(2_500_000), "c.txt": b"c"}
    put_files(here / "in", files)
    run_upload("in", "whole-@.tar")
    monkeypatch.setattr(upload_shard, "LARGE_BYTES", 50_000)
    report = run_upload("in", "out-@.tar")
    assert dict(members_of(shards_of(here))) == files
    assert report.counts.read_bytes == sum(map(len, files.values()))
    assert shards_of(here)[0].read_bytes() == shards_of(here, "whole")[0].read_bytes()


@pytest.mark.parametrize("cut", [{"samples_per_shard": 7}, {"shard_size": 20_000}], ids=["by name", "looked at"])
@pytest.mark.parametrize("order", [{}, {"shuffle": True, "seed": "1"}], ids=["sorted", "shuffled"])
def test_a_listing_of_very_many_files_goes_through_the_job_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, cut: dict[str, Any], order: dict[str, Any]
) -> None:
    from tarmill.jobs import upload_plan

    put_files(here / "in", many_files(25))
    run_upload("in", "plain/out-@.tar", **cut, **order)
    monkeypatch.setattr(upload_plan, "_FEW_BYTES", 0)
    run_upload("in", "file/out-@.tar", **cut, **order)
    assert bytes_of(here / "file") == bytes_of(here / "plain")
    assert list((here / "file").glob("_tarmill/*/listing")) == []


# What is taken


def test_what_is_no_sample_is_counted_by_kind_and_nothing_blocks(here: Path) -> None:
    put_files(here / "in", {"a.txt": "a", ".hidden.txt": "h", ".git/x.txt": "g", "README": "r", "__meta__/a.txt": "m"})
    put_files(here / "in", {"__x__.txt": "kept", "empty.txt": ""})
    os.symlink("a.txt", here / "in" / "link.txt")
    os.symlink("..", here / "in" / "up")
    os.mkfifo(here / "in" / "fifo.txt")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("in/socket.txt")
    report = run_upload("in", "out-@.tar")
    assert dict(report.counts.skipped_members) == {
        "hidden": 1,
        "hidden-folder": 1,
        "no-extension": 1,
        "metadata-folder": 1,
        "symlink": 2,
        "fifo": 1,
        "socket": 1,
    }
    assert keys_of(shards_of(here)) == ["__x__", "a", "empty"]


def test_links_are_followed_when_asked_and_not_in_circles(here: Path) -> None:
    put_files(here, {"in/d/a.txt": "a", "far/b.txt": "b"})
    os.symlink("..", here / "in" / "d" / "up")
    os.symlink("../far", here / "in" / "far")
    os.symlink("d/a.txt", here / "in" / "c.txt")
    os.symlink("nowhere", here / "in" / "gone.txt")
    os.symlink("loop.txt", here / "in" / "loop.txt")
    report = run_upload("in", "out-@.tar", follow_symlinks=True)
    assert dict(members_of(shards_of(here))) == {"c.txt": b"a", "d/a.txt": b"a", "far/b.txt": b"b"}
    assert dict(report.counts.skipped_members) == {"symlink-circle": 1, "dangling-symlink": 2}


def test_include_exclude_hidden_and_key_prefix(here: Path) -> None:
    put_files(here / "in", {"a.jpg": "", "a.txt": "", "t/a.jpg": "", "x/a.jpg": "", "x/b.jpg": "", ".h/a.jpg": ""})
    report = run_upload("in", "one-@.tar", include=("*.jpg",), exclude=("t/", "b*"), key_prefix="p-")
    assert [name for name, _ in members_of(shards_of(here, "one"))] == ["p-a.jpg", "p-x/a.jpg"]
    assert dict(report.counts.skipped_members) == {"not-included": 2, "excluded-folder": 1, "hidden-folder": 1}
    run_upload("in", "two-@.tar", hidden=True, include=("/.h/**",))
    assert [name for name, _ in members_of(shards_of(here, "two"))] == [".h/a.jpg"]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("dir_plus_file", ["d/e.a.x", "d/e.b", "f.a.x"]),
        ("last_dir", ["e.a.x", "e.b", "f.a.x"]),
        (r"^(.*)/(\w)\.x$", ["d/e.a", "f.a"]),
    ],
)
def test_key_functions_divide_paths(here: Path, function: str, expected: list[str]) -> None:
    put_files(here / "in", {"f/a.x": "1", "d/e/a.x": "2", "d/e/b": "3", "top.x": "4"})
    report = run_upload("in", "out-@.tar", key_function=function)
    assert [name for name, _ in members_of(shards_of(here))] == expected
    assert report.counts.skipped_members["no-key"] == (2 if "(" in function else 1)


def test_globs_files_and_several_folders(here: Path) -> None:
    put_files(here, {"i/a.jpg": "1", "i/b.jpg": "2", "i/d/c.jpg": "3", "t/a.txt": "4", "l/z.txt": "5", "i/a.png": "6"})
    run_upload(["i/*.jpg", "t", "l/z.txt"], "out-@.tar")
    assert members_of(shards_of(here)) == [("a.jpg", b"1"), ("a.txt", b"4"), ("b.jpg", b"2"), ("z.txt", b"5")]
    run_upload("i/**/*.jpg", "deep-@.tar")
    assert keys_of(shards_of(here, "deep")) == ["a", "b", "d/c"]
    with pytest.raises(UsageError, match="no sample to pack"):
        run_upload("i/*.gif", "none-@.tar")


def test_one_key_twice_is_an_error_that_names_both_or_gets_another_name(here: Path) -> None:
    put_files(here, {"x/a.txt": "1", "y/a.txt": "2", "y/a-1.txt": "3", "z/a.txt": "4"})
    with pytest.raises(SampleError, match=r"'a'.*y/a\.txt and x/a\.txt"):
        run_upload(["x", "y"], "out-@.tar")
    report = run_upload(["x", "y", "z"], "out-@.tar", same_key="rename")
    assert dict(members_of(shards_of(here))) == {"a.txt": b"1", "a-1.txt": b"2", "a-2.txt": b"4", "a-1-1.txt": b"3"}
    assert (report.counts.renamed, report.counts.written) == (3, 4)


def test_class_folders_get_numbers_that_stay(here: Path) -> None:
    put_files(here / "in", {"dog/1.jpg": "d", "cat/2.jpg": "c", "cat/sub/3.jpg": "e", "a-b/4.jpg": "f"})
    run_upload("in", "out/train-@.tar", class_from_dir=True)
    assert read_json(here / "out" / "classes.json") == {"a-b": 0, "cat": 1, "dog": 2}
    labels = {record["__key__"]: record["cls"] for record in records_in(shards_of(here / "out", "train")[0])}
    assert labels == {"a-b/4": b"0", "cat/2": b"1", "cat/sub/3": b"1", "dog/1": b"2"}
    put_files(here / "val", {"dog/1.jpg": "d", "bird/1.jpg": "b"})
    run_upload("val", "out/val-@.tar", class_from_dir=True)
    assert read_json(here / "out" / "classes.json") == {"a-b": 0, "cat": 1, "dog": 2, "bird": 3}
    labels = {record["__key__"]: record["cls"] for record in records_in(shards_of(here / "out", "val")[0])}
    assert labels == {"bird/1": b"3", "dog/1": b"2"}
    put_files(here / "in", {"5.jpg": "g"})
    with pytest.raises(TarmillError, match="in no folder"):
        run_upload("in", "new/train-@.tar", class_from_dir=True)
    report = run_upload("in", "new/train-@.tar", class_from_dir=True, on_error="skip")
    assert dict(report.counts.dropped) == {"no-class": 1}


def test_what_the_job_writes_beside_its_source_it_does_not_read(here: Path) -> None:
    put_files(here, many_files(4))
    first = run_upload(".", "out-@.tar", samples_per_shard=1)
    again = run_upload(".", "out-@.tar", samples_per_shard=1)
    assert again.job == first.job
    assert again.shards_resumed == 4
    assert again.counts.skipped_members["own-output"] == 5


def test_stores_are_listed_and_read_as_folders_are(here: Path, place: str) -> None:
    files = many_files(7, 2)
    for name, body in files.items():
        storage.write_bytes(f"{place}in/{name}", body)
    storage.write_bytes(f"{place}in/README", b"")
    put_files(here / "in", files)
    report = run_upload(f"{place}in/", f"{place}out-@.tar", num_shards=2, fetches=3)
    run_upload("in", "out-@.tar", num_shards=2)
    for number in range(2):
        name = f"out-{number:06d}.tar"
        assert storage.read_bytes(place + name) == (here / name).read_bytes()
    assert report.counts.skipped_members == {"no-extension": 1}
    one = run_upload(f"{place}in/d0/s000.txt", f"{place}one-@.tar")
    assert one.counts.written == 1
    run_upload(f"{place}in/*/s00[0-2].txt", f"{place}glob-@.tar")
    assert keys_of([f"{place}glob-000000.tar"]) == ["d0/s000", "d0/s002", "d1/s001"]


# Names from hell


def test_names_that_are_odd_but_possible_come_back(here: Path) -> None:
    long = "/".join(["d" * 100] * 3) + "/" + "n" * 200
    names = ["new\nline.txt", "tab\t.txt", "sp ace.txt", f"{long}.txt", "é/ü.txt", "-dash.txt", "a,b.txt", "q'\".txt"]
    for name in names:
        put_files(here / "in", {name: name})
    bad = os.fsencode(here / "in") + b"/bad-\xff\xfe.txt"
    with open(bad, "wb") as file:
        file.write(b"bad")
    run_upload("in", "out-@.tar")
    expected = {name: name.encode() for name in names} | {"bad-\udcff\udcfe.txt": b"bad"}
    assert dict(members_of(shards_of(here))) == expected
    assert run_verify("out-@.tar").ok


def test_fields_that_readers_would_drop_are_refused_or_left_out(here: Path) -> None:
    put_files(here / "in", {"a.txt": "a", "b.__secret": "s", "b.txt": "b"})
    with pytest.raises(TarmillError, match="reserved"):
        run_upload("in", "out-@.tar")
    report = run_upload("in", "out-@.tar", on_error="skip", rejected="rejected.jsonl")
    assert keys_of(shards_of(here)) == ["a"]
    assert dict(report.counts.dropped) == {"reserved-field": 1}
    assert [json.loads(line)["key"] for line in (here / "rejected.jsonl").read_text().splitlines()] == ["b"]
    assert counts_balance(report.to_dict())


def test_keys_that_would_not_read_back_are_refused_or_left_out(here: Path) -> None:
    put_files(here / "in", {"v1.0/a": "1", "v2/a": "2"})
    with pytest.raises(TarmillError, match=r"'v1\.0' cannot be stored"):
        run_upload("in", "out-@.tar", key_function="dir_plus_file")
    report = run_upload("in", "out-@.tar", key_function="dir_plus_file", on_error="skip")
    assert (keys_of(shards_of(here)), dict(report.counts.dropped)) == (["v2"], {"bad-key": 1})


def test_a_thousand_folders_deep(here: Path) -> None:
    folder = here / "in"
    folder.mkdir()
    try:
        os.chdir(folder)
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        Path("a.txt").write_text("deep")
        os.chdir(here)
        run_upload("in", "out-@.tar")
        assert [body for _, body in members_of(shards_of(here))] == [b"deep"]
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)  # too deep for pytest to remove


# What is refused


@pytest.mark.parametrize(
    ("sources", "fields", "message"),
    [
        ("gone", {}, "does not exist"),
        ("in.csv", {}, "name its columns"),
        ("in.tar.gz", {}, "standard input"),
        (["-", "in"], {}, "only source"),
        ("in", {"num_shards": 9}, "do not fill 9 shards"),
        ("in", {"shard_size": 10, "num_shards": 2}, "decides about the cuts already"),
        ("in", {"output": "out-@5.tar", "samples_per_shard": 2}, "decides about their number too"),
        ("in", {"seed": "1"}, "it needs --shuffle"),
        ("in", {"output": "out-@.tar.rar"}, "no known format"),
        ("in", {"key_prefix": "a."}, "cannot be stored"),
        ("in", {"columns": {"jpg": "@x"}}, "is no list"),
        ("fifo", {}, "neither a folder nor a regular file"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_written(here: Path, sources: Any, fields: Any, message: str) -> None:
    put_files(here, {"in/a.txt": "a", "in.csv": "p\nx\n", "in.tar.gz": "x"})
    os.mkfifo("fifo")
    before = sorted(here.rglob("*"))
    with pytest.raises((UsageError, SpecError), match=message):
        run_upload(sources, fields.pop("output", "out-@.tar"), **fields)
    assert sorted(here.rglob("*")) == before


def test_outputs_of_others_are_not_written_over_unless_allowed(here: Path) -> None:
    put_files(here, {"in/a.txt": "a", "in/b.txt": "b", "in/c.txt": "c"})
    run_upload("in", "out-@.tar", samples_per_shard=1)
    (here / "in" / "c.txt").unlink()
    with pytest.raises(TarmillError, match="--exists overwrite"):
        run_upload("in", "out-@.tar", samples_per_shard=1)
    run_upload("in", "out-@.tar", samples_per_shard=1, exists="overwrite")
    assert keys_of(shards_of(here)) == ["a", "b"]
    assert run_verify("out-@.tar").ok
