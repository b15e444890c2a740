"""Files: what goes beyond the contract of all stores."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.bodies import body_of

from tarmill import storage
from tarmill.errors import ChangedError, NoSpaceError, NotFoundError, SpecError, StorageError


def test_a_file_is_read_by_the_kernels_own_calls(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"0123456789")
    with storage.open_read(str(tmp_path / "x.tar")) as stream:
        assert isinstance(stream, io.FileIO)
        assert stream.seekable()
        assert stream.seek(4) == 4
        assert stream.read(3) == b"456"
        assert stream.tell() == 7
        assert os.pread(stream.fileno(), 2, 0) == b"01"


@pytest.mark.parametrize("change", ["append", "overwrite", "truncate"])
def test_a_file_changed_in_place_while_being_read_is_noticed(tmp_path: Path, change: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(body_of(3000))
    stream = storage.open_read(str(path))
    stream.readinto(bytearray(1000))
    if change == "append":
        with path.open("ab") as file:
            file.write(b"more")
    elif change == "overwrite":
        with path.open("r+b") as file:
            file.write(b"other")
    else:
        os.truncate(path, 500)
    with pytest.raises(ChangedError, match="changed while it was being read"):  # noqa: PT012 - the block is the case
        while stream.readinto(bytearray(1000)):
            pass
    with pytest.raises(ChangedError):
        stream.close()
    assert stream.closed


def test_a_writer_that_stops_early_is_noticed_by_closing(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"0123456789")
    with pytest.raises(ChangedError), storage.open_read(str(path)) as stream:  # noqa: PT012 - the block is the case
        stream.readinto(bytearray(2))
        path.write_bytes(b"x")


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "socket"])
@pytest.mark.parametrize("call", [storage.stat, storage.open_read, storage.open_write])
def test_what_is_no_regular_file_is_refused_by_its_kind(tmp_path: Path, kind: str, call: object) -> None:
    path = tmp_path / "it"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, 0o140644)
    else:
        path = Path("/dev/null")
    expected = {"folder": "directory", "fifo": "FIFO", "device": "character device", "socket": "socket|No such device"}
    with pytest.raises(StorageError, match=expected[kind]):
        call(str(path))  # type: ignore[operator]


def test_a_name_that_ends_in_a_slash_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="folder"):
        storage.open_write(str(tmp_path / "new") + "/")


def test_the_temp_file_lies_beside_its_target_and_names_its_owner(tmp_path: Path) -> None:
    out = storage.open_write(str(tmp_path / "deep" / "x.tar"), owner="job-7")
    names = os.listdir(tmp_path / "deep")
    assert len(names) == 1
    assert names[0].startswith(".x.tar.job-7.")
    assert names[0].endswith(".tmp")
    out.commit()
    assert os.listdir(tmp_path / "deep") == ["x.tar"]


def test_sweeping_takes_only_the_owners_temp_files(tmp_path: Path) -> None:
    mine = [storage.open_write(str(tmp_path / f"{n}.tar"), owner="job-1") for n in range(3)]
    other = storage.open_write(str(tmp_path / "0.tar"), owner="job-11")
    for name in ("x.job-1.tmp", ".x.job-1.0123.tmp", ".note.tmp", ".x.job-1.0123456789abcdef.tmp.tar"):
        (tmp_path / name).touch()
    assert storage.sweep(str(tmp_path), "job-1") == len(mine)
    assert storage.sweep(str(tmp_path), "job-1") == 0
    other.commit()
    assert len(os.listdir(tmp_path)) == 5
    assert storage.sweep(str(tmp_path / "nowhere"), "job-1") == 0


@pytest.mark.parametrize("owner", ["a/b", "a.b", "a b", "x" * 101])
def test_an_owner_that_cannot_be_part_of_a_name_is_refused(tmp_path: Path, owner: str) -> None:
    with pytest.raises(SpecError, match="own"):
        storage.open_write(str(tmp_path / "x"), owner=owner)


def test_names_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "é" * 127):
        storage.write_bytes(str(tmp_path / name), b"x", owner="o" * 64)
        assert storage.read_bytes(str(tmp_path / name)) == b"x"
    assert len(os.listdir(tmp_path)) == 2


def test_names_that_are_no_unicode_are_kept(tmp_path: Path) -> None:
    url = str(tmp_path / os.fsdecode(b"a\xff.tar"))
    storage.write_bytes(url, b"x")
    assert [found.url for found in storage.list_urls(str(tmp_path) + "/")] == [url]
    as_url = [found.url for found in storage.list_urls(f"file://{tmp_path}/")]
    assert as_url == [f"file://{tmp_path}/a%FF.tar"]
    assert storage.read_bytes(as_url[0]) == b"x"


def test_a_symbolic_link_is_written_through_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.tar").symlink_to(tmp_path / "real" / "x.tar")
    storage.write_bytes(str(tmp_path / "link.tar"), b"new")
    assert (tmp_path / "link.tar").is_symlink()
    assert (tmp_path / "real" / "x.tar").read_bytes() == b"new"


def test_lists_follow_links_end_in_circles_and_tell_of_links_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.tar").touch()
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "there").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "back").symlink_to(tmp_path / "list")
    (tmp_path / "list" / "gone.tar").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "list" / "fifo")
    storage.open_write(str(tmp_path / "list" / "unfinished.tar"))
    found = list(storage.list_urls(str(tmp_path / "list") + "/"))
    assert [(Path(stat.url).relative_to(tmp_path / "list"), stat.size_bytes) for stat in found] == [
        (Path("gone.tar"), None),
        (Path("there/1.tar"), 0),
    ]
    with pytest.raises(NotFoundError):
        storage.open_read(found[0].url)


def test_relative_prefixes_give_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_bytes("a-1.tar", b"")
    storage.write_bytes("sub/a-2.tar", b"")
    assert [stat.url for stat in storage.list_urls("a-")] == ["a-1.tar"]
    assert [stat.url for stat in storage.list_urls("")] == ["a-1.tar", "sub/a-2.tar"]
    assert [stat.url for stat in storage.list_urls("./s")] == ["./sub/a-2.tar"]


def test_a_full_disk_is_told_as_such_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write

    def full(fd: int, data: memoryview) -> int:
        if len(data) > 10:
            return real_write(fd, memoryview(data)[:10])  # the kernel writes what fits before it refuses
        raise OSError(28, "No space left on device")

    out = storage.open_write(str(tmp_path / "x.tar"))
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NoSpaceError, match="No space left"), out:
        out.write(b"x" * 15)
    assert os.listdir(tmp_path) == []


def test_a_failing_sync_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"publishing.*Input/output") as caught:
        storage.write_bytes(str(tmp_path / "x.tar"), b"x")
    assert caught.value.retryable
    assert os.listdir(tmp_path) == []


def test_large_and_many_pieces_survive_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_writev = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, pieces: real_writev(fd, [memoryview(b"".join(pieces))[:777]]))
    pieces = [body_of(n % 50, n) for n in range(3000)]
    with storage.open_write(str(tmp_path / "x")) as out:
        assert out.write_all(pieces) == sum(map(len, pieces))
    assert (tmp_path / "x").read_bytes() == b"".join(pieces)


UNPRIVILEGED = """
import os, sys
from tarmill import storage
storage.store_for("here")  # imported while that is still allowed
os.chdir(sys.argv[1])
if os.getuid() == 0:
    os.setuid(65534)
for call in (storage.open_read, storage.open_write, lambda url: storage.write_bytes(url + "2", b"x"), storage.delete):
    try:
        call("secret.tar")
    except storage.base.StorageError as error:
        print(type(error).__name__)
"""


def test_what_may_not_be_read_or_written_is_an_access_error(tmp_path: Path) -> None:
    (tmp_path / "secret.tar").write_bytes(b"x")
    (tmp_path / "secret.tar").chmod(0o000)
    tmp_path.chmod(0o555)
    try:
        run = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, str(tmp_path)], capture_output=True, text=True, check=False
        )
    finally:
        tmp_path.chmod(0o755)
    assert run.stdout.split() == ["AccessError"] * 4, run.stderr


def test_a_file_below_a_file_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError):
        storage.stat(str(tmp_path / "file" / "x"))
    with pytest.raises(StorageError):
        storage.write_bytes(str(tmp_path / "file" / "x"), b"")
