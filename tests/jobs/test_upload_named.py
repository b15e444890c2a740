"""Where shards are cut by numbers of samples nobody looks at files before they are packed: what then is a change."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.maps import bytes_of, counts_balance, leftovers, read_json
from support.uploads import after_the_plan, keys_of, many_files, members_of, put_files, run_upload, shards_of

from tarmill.errors import JobFailed, OutputExistsError, TarmillError
from tarmill.jobs import upload_plan, upload_shard, upload_sources
from tarmill.jobs.listener import Listener
from tarmill.jobs.verify import run as run_verify
from tarmill.storage.file_facts import version_of

FILES = {f"{key}.{field}": f"{key} {field} ".encode() * 100 for key in "abc" for field in ("one", "two")}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["held", "streamed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How samples are written: whole, or as they are read."""
    if request.param == "streamed":
        monkeypatch.setattr(upload_shard, "LARGE_BYTES", 100)
    return str(request.param)


@pytest.fixture(params=["quick", "careful"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How files are read: quickly those which have not changed of late, here since the job began."""
    if request.param == "quick":
        monkeypatch.setattr(upload_shard, "CALM_NS", 0)
    return str(request.param)


def overwrite(path: Path, body: bytes) -> None:
    """Write over a file, until the kernel's clock for files, which stands still for some ms, has seen it."""
    begun_ns = time.time_ns()
    while not path.exists() or path.stat().st_ctime_ns < begun_ns:
        path.write_bytes(body)


@pytest.mark.parametrize(
    "fields",
    [{}, {"class_from_dir": True}, {"key_prefix": "x/"}, {"follow_symlinks": True}, {"shuffle": True, "seed": "3"}],
    ids=lambda fields: next(iter(fields), "plain"),
)
def test_the_shards_are_those_of_files_that_were_looked_at(
    here: Path, way: str, reading: str, fields: dict[str, Any]
) -> None:
    files = {f"d{number % 3}/{number:02d}.{field}": f"{field} {number}" for number in range(12) for field in ("a", "b")}
    put_files(here / "in", {**files, "d0/empty.txt": b"", "d1/big.bin": b"y" * 200_000, "d2/é.a.b": b"odd"})
    (here / "in" / "d0" / "link.txt").symlink_to("00.a")
    run_upload("in", "looked/out-@.tar", shard_size=1 << 30, **fields)
    report = run_upload("in", "named/out-@.tar", num_shards=1, **fields)
    assert members_of(shards_of(here / "named")) == members_of(shards_of(here / "looked"))
    assert counts_balance(report.to_dict())
    looked, named = (read_json(here / name / "out.manifest.json") for name in ("looked", "named"))
    assert (named["digest"], named["counts"]) == (looked["digest"], looked["counts"])


def test_a_file_counts_as_it_is_when_it_is_packed(here: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_files(here / "in", FILES)
    after_the_plan(monkeypatch, lambda: put_files(here / "in", {"b.two": "longer than it was " * 100}))
    run_upload("in", "out-@.tar", num_shards=1)
    assert dict(members_of(shards_of(here)))["b.two"] == b"longer than it was " * 100
    assert run_verify("out-@.tar").ok


GONE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "vanished": (lambda path: None, "vanished"),
    "is a FIFO": (os.mkfifo, "changed"),
    "is a link": (lambda path: path.symlink_to("a.two"), "changed"),
    "is a folder": (Path.mkdir, "changed"),
}


@pytest.mark.parametrize("kind", GONE)
def test_what_is_no_file_any_more_is_noticed(here: Path, way: str, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    change, reason = GONE[kind]
    path = here / "in" / "b.two"

    def begin(patch: pytest.MonkeyPatch) -> None:
        put_files(here / "in", FILES)
        after_the_plan(patch, lambda: (path.unlink(), change(path)))

    with monkeypatch.context() as patch:
        begin(patch)
        with pytest.raises(JobFailed, match=r"b\.two.*sample 'b'"):
            run_upload("in", "fail/out-@.tar", num_shards=1)
    assert (shards_of(here / "fail"), leftovers(here)) == ([], [])
    if kind != "vanished":
        path.rmdir() if kind == "is a folder" else path.unlink()
    begin(monkeypatch)
    report = run_upload("in", "skip/out-@.tar", num_shards=1, on_error="skip", rejected="rejected.jsonl")
    assert dict(members_of(shards_of(here / "skip"))) == {name: FILES[name] for name in FILES if name[0] != "b"}
    assert (dict(report.counts.dropped), counts_balance(report.to_dict())) == ({reason: 1}, True)
    (line,) = [json.loads(text) for text in (here / "rejected.jsonl").read_text().splitlines()]
    assert (line["key"], line["reason"]) == ("b", reason)


CONTENTS = {"longer": b"longer than it was" * 99, "empty": b"", "as long": b"X" * len(FILES["b.two"])}


def during_reads(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[], Any], times: int) -> list[bool]:
    """Do something after each of the first reads of a file, before anybody has had a look at what was read."""
    done, reads = list[bool](), {call: getattr(os, call) for call in ("read", "readv")}

    def reading(call: str, fd: int, what: Any) -> Any:
        result = reads[call](fd, what)
        if len(done) < times and os.readlink(f"/proc/self/fd/{fd}").endswith(f"/{name}"):
            done.append(True)
            change()
        return result

    for call in reads:
        monkeypatch.setattr(os, call, partial(reading, call))
    return done


@pytest.mark.parametrize("change", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("set_back", [False, True], ids=["", "time set back"])
def test_a_file_that_changes_while_it_is_read_is_noticed(
    here: Path, way: str, reading: str, monkeypatch: pytest.MonkeyPatch, change: bytes, set_back: bool
) -> None:
    put_files(here / "in", FILES)
    path = here / "in" / "b.two"
    before_ns = path.stat().st_mtime_ns

    def write() -> None:
        overwrite(path, change)
        if set_back:
            os.utime(path, ns=(before_ns, before_ns))

    # the quick read of a file that turns out to have changed is begun again
    done = during_reads(monkeypatch, "b.two", write, 2)
    report = run_upload("in", "out-@.tar", num_shards=1, on_error="skip")
    assert len(done) == 2
    assert keys_of(shards_of(here)) == ["a", "c"]
    assert dict(report.counts.dropped) == {"changed": 1}


def test_a_file_whose_time_is_set_back_is_not_torn_by_its_quick_read(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_shard, "CALM_NS", 0)
    put_files(here / "in", FILES)
    path = here / "in" / "b.two"
    before_ns = path.stat().st_mtime_ns

    def change() -> None:
        overwrite(path, b"X" * len(FILES["b.two"]))
        os.utime(path, ns=(before_ns, before_ns))

    done = during_reads(monkeypatch, "b.two", change, 1)
    run_upload("in", "out-@.tar", num_shards=1)
    assert done
    assert dict(members_of(shards_of(here)))["b.two"] == b"X" * len(FILES["b.two"])


@pytest.mark.parametrize("kind", ["goes on", "is gone"])
def test_of_files_that_are_being_written_to_none_is_packed(
    here: Path, way: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whoever writes them may be between two writes while they are read."""
    path = here / "in" / "b.two"

    def begin(patch: pytest.MonkeyPatch) -> None:
        put_files(here / "in", FILES)
        later = {"goes on": lambda: overwrite(path, path.read_bytes() + b"more"), "is gone": path.unlink}[kind]
        check, done = upload_shard.ShardUpload._have_changed, list[bool]()

        def checking(shard: upload_shard.ShardUpload) -> bool:
            if not done:
                later()
                done.append(True)
            return check(shard)

        patch.setattr(upload_shard.ShardUpload, "_have_changed", checking)

    with monkeypatch.context() as patch:
        begin(patch)
        with pytest.raises(JobFailed, match=r"b\.two.*sample 'b'"):
            run_upload("in", "fail/out-@.tar", num_shards=1)
    assert (shards_of(here / "fail"), leftovers(here)) == ([], [])
    begin(monkeypatch)
    report = run_upload("in", "skip/out-@.tar", num_shards=1, on_error="skip")
    assert keys_of(shards_of(here / "skip")) == ["a", "c"]
    assert dict(report.counts.dropped) == {"changed" if kind == "goes on" else "vanished": 1}
    assert run_verify("skip/out-@.tar").ok
    if kind == "goes on":
        assert run_upload("in", "skip/out-@.tar", num_shards=1, on_error="skip").shards_resumed == 1


# Taken up later


def test_the_same_command_again_has_nothing_to_do(
    here: Path, way: str, reading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_shard, "MANY_NUMBERS", 7)
    monkeypatch.setattr("tarmill.jobs.upload_named.MANY_NUMBERS", 7)
    odd = {f"d0/s000.{field}": "x" * 200 for field in ("é", os.fsdecode(b"\x80"))}  # in another order as bytes
    put_files(here / "in", many_files(12) | {name: text.encode() for name, text in odd.items()})
    run_upload("in", "out-@.tar", samples_per_shard=5)
    before = {path: path.stat().st_ino for path in shards_of(here)}
    report = run_upload("in", "out-@.tar", samples_per_shard=5)
    assert (report.shards_resumed, report.counts.read) == (3, 12)
    assert {path: path.stat().st_ino for path in shards_of(here)} == before


def write_as_long(path: Path) -> None:
    path.write_bytes(b"X" * path.stat().st_size)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "is written to": write_as_long,
    "grows": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "is touched": lambda path: os.utime(path, ns=(1, 1)),
    "is another of that time": lambda path: (
        (now := path.stat()),
        path.rename(path.with_name("before")),
        path.write_bytes(b"X" * now.st_size),
        os.utime(path, ns=(now.st_mtime_ns, now.st_mtime_ns)),
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("finished", [False, True], ids=["interrupted", "finished"])
def test_a_job_is_not_taken_up_behind_shards_whose_files_have_changed(here: Path, kind: str, finished: bool) -> None:
    put_files(here / "in", many_files(12))
    run_upload("in", "out-@.tar", samples_per_shard=4)
    before = bytes_of(here)
    if not finished:
        (here / "out.manifest.json").unlink()
        (here / "out-000000.tar").unlink()
    CHANGES[kind](here / "in" / "d1" / "s005.txt")
    with pytest.raises(OutputExistsError, match=r"out-00000\d\.tar was packed from files that have changed since"):
        run_upload("in", "out-@.tar", samples_per_shard=4)
    report = run_upload("in", "out-@.tar", samples_per_shard=4, exists="overwrite")
    assert (report.shards_resumed, report.counts.read) == (0, 12)
    assert run_verify("out-@.tar").ok
    assert (bytes_of(here) == before) == (kind == "is touched")


def test_files_of_shards_that_are_to_be_done_may_change(here: Path) -> None:
    put_files(here / "in", many_files(12))
    run_upload("in", "out-@.tar", samples_per_shard=6)
    (here / "out-000000.tar").unlink()
    put_files(here / "in", {"d0/s000.txt": "new"})
    report = run_upload("in", "out-@.tar", samples_per_shard=6)
    assert report.shards_resumed == 1
    assert dict(members_of(shards_of(here)))["d0/s000.txt"] == b"new"
    assert run_verify("out-@.tar").ok


@pytest.mark.parametrize("few", [0, 1 << 20], ids=["through a file", "with the tasks"])
def test_small_shards_do_not_each_bring_a_whole_piece_of_the_listing(
    here: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(upload_plan, "_FEW_BYTES", few)
    put_files(here / "in", many_files(50, 1))
    sizes: list[int] = []

    def note() -> None:
        sizes.extend(path.stat().st_size for path in here.glob("_tarmill/*/listing"))

    after_the_plan(monkeypatch, note)
    run_upload("in", "out-@.tar", samples_per_shard=2)
    assert members_of(shards_of(here)) == sorted((name, body) for name, body in many_files(50, 1).items())
    assert len(sizes) == (1 if not few else 0)
    assert all(size < 2000 for size in sizes)


def test_what_was_left_out_is_not_looked_at_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_files(here / "in", FILES)
    with monkeypatch.context() as patch:
        after_the_plan(patch, lambda: ((here / "in" / "b.one").unlink(), (here / "in" / "b.one").mkdir()))
        run_upload("in", "out-@.tar", num_shards=1, on_error="skip")
    (here / "in" / "b.one").rmdir()
    put_files(here / "in", {"b.one": "it is there again"})
    report = run_upload("in", "out-@.tar", num_shards=1, on_error="skip")
    assert (report.shards_resumed, dict(report.counts.dropped)) == (1, {"changed": 1})


def test_more_files_are_another_job(here: Path) -> None:
    put_files(here / "in", FILES)
    run_upload("in", "out-@.tar", num_shards=1)
    put_files(here / "in", {"d.one": "d"})
    with pytest.raises(OutputExistsError, match="not of this job"):
        run_upload("in", "out-@.tar", num_shards=1)


def test_a_dry_run_tells_sizes_and_the_job_that_is_to_come(here: Path) -> None:
    class Told(Listener):
        lines: list[str]

        def plan(self, report: Any, size_bytes: int | None, lines: Any) -> None:
            self.lines = list(lines)

    put_files(here / "in", {"a.bin": b"x" * 1_500_000, "b.bin": b""})
    planned = run_upload("in", "out-@.tar", num_shards=1, options={"dry_run": True}, listener=(told := Told()))
    assert "2 samples of 2 fields, 1.5 MB, into 1 shard" in told.lines[0]
    assert "empty files, packed: 1" in told.lines
    assert planned.job == run_upload("in", "out-@.tar", num_shards=1).job


def test_fields_that_cannot_be_are_told_by_name(here: Path) -> None:
    put_files(here / "in", {"d/a.__x": "1", "d/a.txt": "2", "d/b.txt": "3", "d/c.cls": "4"})
    with pytest.raises(TarmillError, match=r"in/d/a\.__x: .*reserved"):
        run_upload("in", "out-@.tar", num_shards=1)
    report = run_upload("in", "plain/out-@.tar", num_shards=1, on_error="skip")
    assert keys_of(shards_of(here / "plain")) == ["d/b", "d/c"]
    assert dict(report.counts.dropped) == {"reserved-field": 1}
    report = run_upload("in", "classes/out-@.tar", num_shards=1, on_error="skip", class_from_dir=True)
    assert keys_of(shards_of(here / "classes")) == ["d/b"]
    assert dict(report.counts.dropped) == {"reserved-field": 1, "duplicate-field": 1}


@pytest.mark.parametrize("cut", [{"num_shards": 1}, {"shard_size": 1 << 30}], ids=["by name", "looked at"])
def test_of_a_sample_of_many_files_no_more_is_held_than_of_a_large_one(
    here: Path, monkeypatch: pytest.MonkeyPatch, cut: dict[str, int]
) -> None:
    files = {f"a.{number:02d}": bytes([number]) * 300 for number in range(30)}
    put_files(here / "in", files)
    monkeypatch.setattr(upload_shard, "LARGE_BYTES", 1000)
    monkeypatch.setattr(upload_shard, "_BIG_BYTES", 1 << 30)
    held, read = list[int](), os.read

    def reading(fd: int, size: int) -> bytes:
        body = read(fd, size)
        held.append(len(body) if len(body) == 300 else 0)
        return body

    monkeypatch.setattr(os, "read", reading)
    run_upload("in", "out-@.tar", **cut)
    assert dict(members_of(shards_of(here))) == files
    assert sum(held) <= 4 * 2 * 300  # new files are read twice


def test_workers_are_asked_for_a_file_that_is_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_files(here / "in", FILES)
    find, asked = upload_plan.first_local, list[Any]()

    def finding(collector: Any) -> Any:
        for field in ("one", "two"):
            (here / "in" / f"a.{field}").unlink()
        asked.append(find(collector))
        return asked[0]

    monkeypatch.setattr(upload_plan, "first_local", finding)
    run_upload("in", "out-@.tar", num_shards=1, on_error="skip")
    (path, version) = asked[0]
    assert path == "in/b.one"
    assert version == version_of((here / "in" / "b.one").stat())
    assert keys_of(shards_of(here)) == ["b", "c"]


def test_a_class_folder_that_comes_late_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_files(here / "in", {"cat/1.jpg": "1"})
    names = upload_sources._class_names

    def counting(*given: Any) -> Any:
        found = names(*given)
        put_files(here / "in", {"dog/2.jpg": "2"})
        return found

    monkeypatch.setattr(upload_sources, "_class_names", counting)
    with pytest.raises(TarmillError, match=r"in/dog/ came when classes were counted already; run it again"):
        run_upload("in", "out-@.tar", num_shards=1, class_from_dir=True)
