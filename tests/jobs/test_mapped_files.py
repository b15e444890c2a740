"""Samples copied out of mapped files: the same bytes as by reading them, and never the end of a process."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.maps import bytes_of
from support.reorders import every_plan, put_shards, shuffle, sort

from tarmill import storage
from tarmill.errors import ChangedError, MappedReadError
from tarmill.jobs.mapped_files import MappedFiles, kept
from tarmill.jobs.span_sources import SpanSources
from tarmill.planning.span_tasks import Source
from tarmill.storage.file_write import FileWriteStream

PAGES = bytes(range(256)) * 64


@pytest.fixture
def mapped_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much each call appended out of mapped files."""
    seen: list[int] = []
    write = FileWriteStream.write_mapped

    def noted(stream: FileWriteStream, pieces: Any, size_bytes: int) -> None:
        write(stream, pieces, size_bytes)
        seen.append(size_bytes)

    monkeypatch.setattr(FileWriteStream, "write_mapped", noted)
    return seen


def source_in(folder: Path, contents: bytes = PAGES) -> Source:
    path = folder / "in.dat"
    path.write_bytes(contents)
    return Source(str(path), storage.stat(str(path)).version, "in.dat", 0)


def pieces_of(source: Source, *places: tuple[int, int]) -> list[memoryview]:
    pieces = SpanSources([source], maps=MappedFiles()).mapped([0] * len(places), *map(list, zip(*places, strict=True)))
    assert pieces is not None
    return pieces


@every_plan
@pytest.mark.parametrize("tool", [partial(shuffle, seed="1"), sort])
def test_whether_files_are_mapped_decides_over_no_byte(
    tmp_path: Path, plan: str, tool: Any, mapped_bytes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put_shards(tmp_path, 3, 200, 3000)
    tool(source, tmp_path / "mapped/out-@4.tar", plan=plan)
    assert sum(mapped_bytes) >= 3 * 200 * 3000
    assert len(kept) == 0, "released at the end"
    monkeypatch.setattr(SpanSources, "mapped", lambda *_: None)
    mapped_bytes.clear()
    tool(source, tmp_path / "read/out-@4.tar", plan=plan)
    assert mapped_bytes == []
    assert bytes_of(tmp_path / "mapped") == bytes_of(tmp_path / "read")


def test_what_the_kernel_is_told_to_forget_is_not_mapped_any_more(
    tmp_path: Path, mapped_bytes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, told = put_shards(tmp_path, 3, 20, 3000), []
    monkeypatch.setattr(SpanSources, "forget", lambda *_: told.append(Path("/proc/self/maps").read_text()))
    shuffle(source, tmp_path / "out-@2.tar", plan="external")
    assert mapped_bytes
    assert told
    assert not any(str(tmp_path) in maps for maps in told)


def test_what_is_compressed_is_not_written_out_of_mapped_files(
    tmp_path: Path, mapped_bytes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(SpanSources, "mapped")  # nothing is mapped for nothing
    shuffle(put_shards(tmp_path, 2, 20, 3000), tmp_path / "out-@2.tar.gz")
    assert mapped_bytes == []


def test_inputs_that_take_more_than_half_the_memory_are_read(tmp_path: Path, mapped_bytes: list[int]) -> None:
    shuffle(put_shards(tmp_path, 2, 20, 30_000), tmp_path / "out-@2.tar", plan="local", memory=1 << 20)
    assert mapped_bytes == []


def test_pieces_are_appended_in_order_and_read_back_as_they_are_in_the_file(tmp_path: Path) -> None:
    places = [(5000, 300), (0, 4096), (12_288, 0), (4095, 2)]
    expected = b"".join(PAGES[start : start + length] for start, length in places)
    with storage.open_write(str(tmp_path / "out.dat")) as stream:
        stream.write(b"before")
        mapped = stream.mapped()
        assert mapped is not None
        mapped.write_mapped(pieces_of(source_in(tmp_path), *places), len(expected))
        back = memoryview(bytearray(len(expected)))
        mapped.read_back(back)
        assert back == expected
        stream.write(b"behind")
    assert (tmp_path / "out.dat").read_bytes() == b"before" + expected + b"behind"


def test_more_pieces_than_one_call_takes_are_written_to_the_last(tmp_path: Path) -> None:
    pieces = pieces_of(source_in(tmp_path), *((at, 3) for at in range(2500)))
    with FileWriteStream(str(tmp_path / "out.dat"), str(tmp_path / "out.dat"), "", False) as stream:
        stream.write_mapped(pieces, 7500)
    assert (tmp_path / "out.dat").read_bytes() == b"".join(map(bytes, pieces))


def test_a_file_that_became_shorter_is_an_error_of_the_kernel(tmp_path: Path) -> None:
    pieces = pieces_of(source_in(tmp_path), (0, 100), (8192, 100))
    os.truncate(tmp_path / "in.dat", 4096)
    with FileWriteStream(str(tmp_path / "out.dat"), str(tmp_path / "out.dat"), "", False) as stream:
        with pytest.raises(MappedReadError, match="became shorter"):
            stream.write_mapped(pieces, 200)
        stream.abort()
    assert not (tmp_path / "out.dat").exists()


def test_a_file_that_became_shorter_is_named_by_what_copies_from_it(tmp_path: Path) -> None:
    sources = SpanSources([source_in(tmp_path)], maps=MappedFiles())
    assert sources.mapped([0], [0], [10]) is not None
    os.truncate(tmp_path / "in.dat", 4096)
    with pytest.raises(ChangedError, match=r"in\.dat has changed"):
        sources.tell_why([0], [8192], [100])


def test_a_range_behind_the_end_of_a_file_is_no_part_of_an_output(tmp_path: Path) -> None:
    pieces = pieces_of(source_in(tmp_path), (0, 10), (len(PAGES) - 10, 11))
    with FileWriteStream(str(tmp_path / "out.dat"), str(tmp_path / "out.dat"), "", False) as stream:
        with pytest.raises(MappedReadError, match="became shorter"):
            stream.write_mapped(pieces, 21)
        stream.abort()


def test_another_version_of_a_file_is_refused_though_the_old_one_is_mapped(tmp_path: Path) -> None:
    maps, source = MappedFiles(), source_in(tmp_path)
    assert SpanSources([source], maps=maps).mapped([0], [0], [10]) is not None
    source_in(tmp_path, PAGES[::-1])
    with pytest.raises(ChangedError, match=r"in\.dat has changed"):
        SpanSources([source], maps=maps).mapped([0], [0], [10])


def test_what_cannot_be_mapped_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> memoryview:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(MappedFiles, "map", refuse)
    shuffle(put_shards(tmp_path, 2, 20, 3000), tmp_path / "out-@2.tar", plan="local")


def test_an_output_that_cannot_be_read_while_it_is_written_gets_what_was_read(
    tmp_path: Path, mapped_bytes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileWriteStream, "mapped", lambda _: None)
    shuffle(put_shards(tmp_path, 2, 20, 3000), tmp_path / "out-@2.tar", plan="local")
    shuffle(put_shards(tmp_path, 2, 20, 3000), tmp_path / "external-@2.tar", plan="external")
    assert mapped_bytes == []
