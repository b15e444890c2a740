"""Samples copied out of mapped files: the same bytes as by reading them, and never the end of the command."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.maps import bytes_of
from support.reorders import put_shards, shuffle, sort

from tarmill import storage
from tarmill.engine.serial import serial_engine
from tarmill.errors import ChangedError
from tarmill.jobs import external, mapped_files, reorder_local, reorder_prepare
from tarmill.jobs.mapped_files import MappedFiles, kept
from tarmill.jobs.span_sources import SpanSources
from tarmill.planning.span_tasks import Source

PAGES = bytes(range(256)) * 64


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ranges each call gave out of mapped files; tasks that may map files run in this process."""
    seen: list[int] = []
    pieces = SpanSources._pieces

    def noted(sources: SpanSources, *ranges: Any) -> list[memoryview]:
        found = pieces(sources, *ranges)
        seen.append(len(found))
        return found

    monkeypatch.setattr(SpanSources, "_pieces", noted)
    monkeypatch.setattr(reorder_prepare, "_runs_apart", lambda *_: True)
    for module in (reorder_local, external):
        monkeypatch.setattr(module, "choose_engine", lambda *_, **__: serial_engine())
    return seen


def source_in(folder: Path, contents: bytes = PAGES) -> Source:
    path = folder / "in.dat"
    path.write_bytes(contents)
    return Source(str(path), storage.stat(str(path)).version or "", "in.dat", 0)


@pytest.mark.parametrize("plan", ["local", "external"])
@pytest.mark.parametrize("tool", [partial(shuffle, seed="1"), sort])
def test_whether_files_are_mapped_decides_over_no_byte(
    tmp_path: Path, plan: str, tool: Any, mapped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put_shards(tmp_path, 3, 200, 3000)
    tool(source, tmp_path / "mapped/out-@4.tar", plan=plan)
    assert sum(mapped) == 3 * 200
    assert len(kept) == 0, "released at the end"
    monkeypatch.setattr(SpanSources, "_map", lambda *_: False)
    mapped.clear()
    tool(source, tmp_path / "read/out-@4.tar", plan=plan)
    assert sum(mapped) == 0
    assert bytes_of(tmp_path / "mapped") == bytes_of(tmp_path / "read")


def test_what_the_kernel_is_told_to_forget_is_not_mapped_any_more(
    tmp_path: Path, mapped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, told = put_shards(tmp_path, 3, 20, 3000), []
    monkeypatch.setattr(SpanSources, "forget", lambda *_: told.append(Path("/proc/self/maps").read_text()))
    shuffle(source, tmp_path / "out-@2.tar", plan="external")
    assert sum(mapped)
    assert told
    assert not any(str(tmp_path) in maps for maps in told)


@pytest.mark.parametrize(
    ("samples", "size", "options"),
    [
        pytest.param(20, 40_000, {"plan": "local"}, id="large samples"),
        pytest.param(20, 3000, {"plan": "local", "memory": 100_000}, id="more than half the memory"),
        pytest.param(20, 3000, {"plan": "memory"}, id="all in memory"),
    ],
)
def test_what_gains_nothing_or_has_no_room_is_not_mapped(
    tmp_path: Path, samples: int, size: int, options: dict[str, Any], mapped: list[int]
) -> None:
    shuffle(put_shards(tmp_path, 2, samples, size), tmp_path / "out-@2.tar", **options)
    assert mapped
    assert sum(mapped) == 0


def test_a_process_that_would_end_with_its_tasks_maps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reorder_prepare, "has_one_thread", lambda: False)
    monkeypatch.setattr(MappedFiles, "map", lambda *_: pytest.fail("mapped"))
    shuffle(put_shards(tmp_path, 2, 20, 3000), tmp_path / "out-@2.tar", plan="local", workers=1)


def test_ranges_are_given_in_order_as_one_block_and_each(tmp_path: Path) -> None:
    places = [(5000, 300), (0, 4096), (12_288, 0), (4095, 2)]
    numbers, starts, lengths = [0] * len(places), *map(list, zip(*places, strict=True))
    sources = SpanSources([source_in(tmp_path)], maps=MappedFiles())
    expected = [PAGES[start : start + length] for start, length in places]
    found = sources.read(numbers, starts, lengths)
    assert list(map(bytes, found.samples)) == expected
    assert list(map(bytes, found.blocks)) == [b"".join(expected)]
    assert list(map(bytes, sources.pieces(numbers, starts, lengths))) == expected


def test_what_is_given_does_not_change_with_its_file(tmp_path: Path) -> None:
    sources = SpanSources([source_in(tmp_path)], maps=MappedFiles())
    found = sources.read([0], [0], [4096])
    with (tmp_path / "in.dat").open("r+b") as file:
        file.write(b"x" * 4096)
    assert bytes(found.samples[0]) == bytes(found.blocks[0]) == PAGES[:4096]


def test_a_file_that_was_shorter_when_it_was_mapped_is_told(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    os.truncate(tmp_path / "in.dat", 4096)
    sources = SpanSources([Source(source.path, "", source.label, 0)], maps=MappedFiles())
    for call in (sources.read, sources.pieces):
        with pytest.raises(ChangedError, match=r"in\.dat has become shorter"):
            call([0, 0], [0, 4000], [10, 97])


def test_another_version_of_a_file_is_refused_though_the_old_one_is_mapped(tmp_path: Path) -> None:
    maps, source = MappedFiles(), source_in(tmp_path)
    assert SpanSources([source], maps=maps).read([0], [0], [10]).samples
    source_in(tmp_path, PAGES[::-1])
    with pytest.raises(ChangedError, match=r"in\.dat has changed"):
        SpanSources([source], maps=maps).read([0], [0], [10])


def test_what_cannot_be_mapped_is_read(tmp_path: Path, mapped: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mapped_files, "mmap", SimpleNamespace(mmap=refuse, PROT_READ=1))
    shuffle(put_shards(tmp_path, 2, 20, 3000), tmp_path / "out-@2.tar", plan="local")
    assert mapped
    assert sum(mapped) == 0
