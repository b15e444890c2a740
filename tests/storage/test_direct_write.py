"""Files written past the page cache: the same bytes as through it, wherever that can and cannot be done."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tarmill import storage
from tarmill.errors import NoSpaceError
from tarmill.storage import direct_write, file_write
from tarmill.storage.direct_write import ALIGNMENT, DIRECT, lies_on_a_disk

BLOCK = 2 * ALIGNMENT
SIZES = st.integers(0, 3 * BLOCK) | st.sampled_from([512, ALIGNMENT, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a disk; blocks are small."""
    with (tmp_path / "probe").open("wb") as probe:
        if not lies_on_a_disk(probe.fileno()):
            pytest.skip("there is no file system on a disk here")
    (tmp_path / "probe").unlink()
    monkeypatch.setattr(direct_write, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(direct_write, "_spare", [])
    return tmp_path


def body(size: int) -> bytes:
    return bytes(index * 7 % 251 for index in range(size))


def write(path: Path, sizes: list[int], together: bool = False) -> bytes:
    """Write pieces, one by one or all at once; what the file should hold."""
    pieces = [body(size) for size in sizes]
    with storage.open_write(str(path)) as stream:
        if together:
            stream.write_all(pieces)
        else:
            for piece in pieces:
                stream.write(piece)
        assert stream.bytes_written == sum(sizes)
    return b"".join(pieces)


def is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & DIRECT)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(SIZES, max_size=8), st.booleans())
def test_a_file_holds_what_was_written_in_whatever_pieces_it_came(
    folder: Path, sizes: list[int], together: bool
) -> None:
    assert write(folder / "x", sizes, together) == (folder / "x").read_bytes()
    assert os.listdir(folder) == ["x"]


def test_what_was_written_does_not_lie_in_the_page_cache(folder: Path) -> None:
    write(folder / "x", [10 * BLOCK + 100])
    with (folder / "x").open("rb") as file:
        with pytest.raises(BlockingIOError):
            os.preadv(file.fileno(), [bytearray(10)], 0, os.RWF_NOWAIT)
        assert os.preadv(file.fileno(), [bytearray(10)], 10 * BLOCK, os.RWF_NOWAIT) == 10, "the end within a page does"


def test_small_files_go_through_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_write, "set_direct", lambda *_: pytest.fail("nothing to be switched"))
    write(folder / "x", [BLOCK - 1])


@pytest.mark.parametrize("sizes", [[5 * BLOCK], [ALIGNMENT, 3 * BLOCK + 5]])
def test_where_a_file_system_has_no_such_way_the_cache_is_used(
    folder: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.fcntl

    def refuse(fd: int, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL and flags & DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return int(real(fd, command, flags))

    monkeypatch.setattr(direct_write.fcntl, "fcntl", refuse)
    assert write(folder / "x", sizes) == (folder / "x").read_bytes()


def test_where_a_file_system_said_so_and_cannot_the_cache_is_used_from_there_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.write, [0]

    def refuse(fd: int, data: Any) -> int:
        if is_direct(fd):
            calls[0] += 1
            if calls[0] == 2:
                raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, data)

    monkeypatch.setattr(direct_write.os, "write", refuse)
    assert write(folder / "x", [6 * BLOCK + 10]) == (folder / "x").read_bytes()
    assert calls == [2]


def test_a_full_disk_is_an_error_that_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def full(fd: int, data: Any) -> int:
        if is_direct(fd) and os.lseek(fd, 0, os.SEEK_CUR) >= 2 * BLOCK:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(direct_write.os, "write", full)
    with pytest.raises(NoSpaceError):
        write(folder / "x", [5 * BLOCK])
    assert os.listdir(folder) == []


def test_memory_of_files_that_are_finished_or_given_up_is_used_again(folder: Path) -> None:
    write(folder / "x", [BLOCK])
    with pytest.raises(ZeroDivisionError), storage.open_write(str(folder / "y")) as stream:  # noqa: PT012
        stream.write(b"y")
        stream.write(b"%d" % (1 // 0))
    write(folder / "z", [BLOCK])
    assert len(direct_write._spare) == 1
    streams = [storage.open_write(str(folder / f"many-{number}")) for number in range(6)]
    for stream in streams:
        stream.write(b"x")
    for stream in streams:
        stream.abort()
    assert len(direct_write._spare) == 4, "not as many as were ever open at once"
    assert sorted(os.listdir(folder)) == ["x", "z"]


def test_what_need_not_reach_the_disk_and_what_lies_on_none_goes_through_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(file_write, "DirectWriter", lambda _: pytest.fail("nobody waits for the disk"))
        patch.setattr(file_write, "current_settings", lambda: storage.StorageSettings(fsync=False))
        write(folder / "x", [5 * BLOCK])
    with monkeypatch.context() as patch:
        patch.setattr(file_write, "DirectWriter", lambda _: pytest.fail("there is no disk"))
        patch.setattr(file_write, "lies_on_a_disk", lambda _: False)
        write(folder / "x", [5 * BLOCK])
