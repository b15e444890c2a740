"""Files that vanish, change or cannot be read, full disks, kills: nothing is lost in silence or half written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.maps import bytes_of, command, counts_balance, finished_shards, leftovers, read_json
from support.reorders import doomed
from support.uploads import after_the_plan, keys_of, many_files, members_of, put_files, run_upload, shards_of

from tarmill.errors import JobFailed
from tarmill.jobs import upload_shard
from tarmill.jobs.verify import run as run_verify


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def swap(path: Path) -> None:
    """Another file of the same size and time."""
    found = path.stat()
    path.rename(path.with_name("before"))
    path.write_bytes(b"y" * found.st_size)
    os.utime(path, ns=(found.st_mtime_ns, found.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "vanishes": (Path.unlink, "vanished"),
    "grows": (lambda path: path.write_bytes(path.read_bytes() + b"more"), "changed"),
    "shrinks": (lambda path: path.write_bytes(b""), "changed"),
    "is touched": (touch, "changed"),
    "is another file": (swap, "changed"),
    "is a FIFO": (replace_by_fifo, "changed"),
    "is a link": (replace_by_link, "changed"),
    "is a folder": (lambda path: (path.unlink(), path.mkdir()), "changed"),
}


@pytest.mark.parametrize("large", [False, True], ids=["held", "streamed"])
@pytest.mark.parametrize("kind", CHANGES)
def test_a_file_that_changes_after_it_was_listed_is_noticed(
    here: Path, monkeypatch: pytest.MonkeyPatch, kind: str, large: bool
) -> None:
    change, reason = CHANGES[kind]
    files = {f"{key}.{field}": f"{key} {field}" * 100 for key in "abc" for field in ("one", "two")}
    put_files(here / "in", files)
    if large:
        monkeypatch.setattr(upload_shard, "LARGE_BYTES", 100)
    with monkeypatch.context() as patch:
        after_the_plan(patch, lambda: change(here / "in" / "b.two"))
        with pytest.raises(JobFailed, match=r"b\.two.*sample 'b'"):
            run_upload("in", "fail/out-@.tar")
    assert shards_of(here / "fail") == []
    assert leftovers(here) == []
    for path in [*(here / "in").iterdir()]:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    put_files(here / "in", files)
    after_the_plan(monkeypatch, lambda: change(here / "in" / "b.two"))
    report = run_upload("in", "skip/out-@.tar", on_error="skip", rejected="rejected.jsonl")
    assert keys_of(shards_of(here / "skip")) == ["a", "c"]
    assert dict(members_of(shards_of(here / "skip"))) == {
        name: body.encode() for name, body in files.items() if name[0] != "b"
    }
    assert dict(report.counts.dropped) == {reason: 1}
    assert counts_balance(report.to_dict())
    (line,) = [json.loads(text) for text in (here / "rejected.jsonl").read_text().splitlines()]
    assert (line["key"], line["reason"]) == ("b", reason)
    assert run_verify("skip/out-@.tar").ok


def test_a_file_that_grows_while_it_is_read_tears_no_shard(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_files(here / "in", {"a.txt": "a", "b.bin": b"x" * 3_000_000, "c.txt": "c"})
    monkeypatch.setattr(upload_shard, "LARGE_BYTES", 1_000_000)
    readv = os.readv
    grown: list[bool] = []

    def growing(fd: int, buffers: Any) -> int:
        if not grown:
            with (here / "in" / "b.bin").open("ab") as file:
                file.write(b"more")
            grown.append(True)
        return readv(fd, buffers)

    monkeypatch.setattr(os, "readv", growing)
    report = run_upload("in", "out-@.tar", on_error="skip")
    assert members_of(shards_of(here)) == [("a.txt", b"a"), ("c.txt", b"c")]
    assert dict(report.counts.dropped) == {"changed": 1}
    assert report.counts.read == 3


def test_a_file_system_that_gives_few_bytes_at_once_is_read_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_files(here / "in", {"a.txt": "a" * 1000, "b.txt": "b"})
    read = os.read
    monkeypatch.setattr(os, "read", lambda fd, size: read(fd, min(size, 300)))
    run_upload("in", "out-@.tar")
    assert members_of(shards_of(here)) == [("a.txt", b"a" * 1000), ("b.txt", b"b")]


def test_what_is_wrong_with_this_process_is_no_fault_of_a_sample(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_files(here / "in", {"a.txt": "a"})

    def full(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    after_the_plan(monkeypatch, lambda: monkeypatch.setattr(os, "read", full))
    with pytest.raises(JobFailed, match="Too many open files"):
        run_upload("in", "out-@.tar", on_error="skip")


def test_files_and_folders_that_may_not_be_read(here: Path) -> None:
    """As another user: nothing is forbidden to root."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody else")
    from tarmill.errors import TarmillError

    os.chmod(here, 0o777)
    for parent in here.parents:
        if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
            os.chmod(parent, 0o755)
    put_files(here / "in", {"a.txt": "a", "b.txt": "b", "d/c.txt": "c"})
    os.chmod(here / "in" / "b.txt", 0)
    os.chmod(here / "in" / "d", 0)
    os.seteuid(65534)
    try:
        with pytest.raises((JobFailed, TarmillError), match="not allowed"):
            run_upload("in", "fail-@.tar")
        report = run_upload("in", "out-@.tar", on_error="skip", rejected="rejected.jsonl")
    finally:
        os.seteuid(0)
    assert keys_of(shards_of(here)) == ["a"]
    assert dict(report.counts.dropped) == {"unreadable": 1}
    assert dict(report.counts.unread) == {"unreadable": 1}
    assert len((here / "rejected.jsonl").read_text().splitlines()) == 2


def test_too_many_errors_fail_the_job(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_files(here / "in", {f"{number}.txt": "x" for number in range(6)})
    after_the_plan(monkeypatch, lambda: [(here / "in" / f"{number}.txt").unlink() for number in (1, 2, 3)])
    with pytest.raises(JobFailed, match="3 samples were left out"):
        run_upload("in", "out-@.tar", on_error="skip", max_errors="2")
    assert not (here / "out.manifest.json").exists()


# Interruptions


def test_what_is_missing_is_done_by_the_same_command_and_nothing_else(here: Path) -> None:
    put_files(here / "in", many_files(12))
    run_upload("in", "out-@.tar", samples_per_shard=3)
    expected = bytes_of(here)
    before = {path.name: path.stat().st_ino for path in shards_of(here)}
    (here / "out-000001.tar").unlink()
    report = run_upload("in", "out-@.tar", samples_per_shard=3)
    assert (report.shards_resumed, report.counts.read) == (3, 12)
    assert bytes_of(here) == expected
    after = {path.name: path.stat().st_ino for path in shards_of(here)}
    assert {name for name in before if before[name] == after[name]} >= set(before) - {"out-000001.tar"}


TERM = "'told' in os.environ or (os.environ.update(told='yes'), os.kill(driver, 15))"
"""Tell the driver to stop; once, since a second signal ends it at once."""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_job_that_is_killed_goes_on_where_it_was(here: Path, number: int, workers: str) -> None:
    put_files(here / "in", many_files(40, size=400_000))
    arguments = ["in", "out-@.tar.bz2", "--samples-per-shard", "2", "-j", workers, "--report", "report.json"]
    killed = doomed("htupload", arguments, here, "shard-0000004.json", "kill" if number == signal.SIGKILL else TERM)
    assert killed.returncode == (-9 if number == signal.SIGKILL else 143), killed.stderr.decode()
    assert 2 <= len(finished_shards(here)) < 20
    assert not (here / "out.manifest.json").exists()
    again = command(arguments, here, tool="htupload")
    assert again.returncode == 0, again.stderr.decode()
    assert read_json(here / "report.json")["shards"]["resumed"] >= 2
    assert leftovers(here) == []
    run_upload("in", "whole/out-@.tar.bz2", samples_per_shard=2)
    assert bytes_of(here) == bytes_of(here / "whole")


def test_a_full_disk_is_told_and_a_rerun_completes(here: Path, small_disk: Path) -> None:
    put_files(here / "in", many_files(20, size=40_000))
    arguments = ["in", "small/out-@.tar", "--num-shards", "4", "-j", "1"]
    done = command(arguments, here, tool="htupload")
    assert done.returncode == 1
    assert b"no space left while writing" in done.stderr
    assert leftovers(small_disk) == []
    assert not (small_disk / "out.manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=16M", str(small_disk)], check=True)
    done = command(arguments, here, tool="htupload")
    assert done.returncode == 0, done.stderr
    run_upload("in", "big/out-@.tar", num_shards=4)
    assert bytes_of(small_disk) == bytes_of(here / "big")
