"""Samples read out of runs a stretch at a time: the same bytes as each alone."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tarmill import storage
from tarmill.errors import ChangedError
from tarmill.jobs import run_stretches
from tarmill.jobs.copy_writer import Picks
from tarmill.jobs.run_stretches import RunStretches, release_memory
from tarmill.jobs.span_sources import SpanSources
from tarmill.planning.span_tasks import Source

CONTENTS = [bytes(range(number, number + 200)) * 200 for number in range(3)]
ROOM = 10_000


def runs_in(folder: Path) -> list[Source]:
    paths = [folder / f"{number}.dat" for number in range(len(CONTENTS))]
    for path, contents in zip(paths, CONTENTS, strict=True):
        path.write_bytes(contents)
    return [Source(str(path), storage.stat(str(path)).version or "", path.name, 0) for path in paths]


def picks_of(taken: list[tuple[int, int]]) -> Picks:
    """Samples of (run, length), those of a run one behind the other."""
    ends, starts = [100, 0, 5000], []
    for number, length in taken:
        starts.append(ends[number])
        ends[number] += length
    numbers, lengths = (np.array(column) for column in zip(*taken, strict=True))
    stems = np.zeros(len(taken), np.uint64)
    return Picks(numbers.astype(np.uint32), np.array(starts), lengths, stems, stems, None)


def read(stretches: RunStretches, picks: Picks) -> list[bytes]:
    found = []
    for sources, part in stretches.portions(picks):
        columns = part.source.tolist(), part.starts.tolist(), part.lengths.tolist()
        pieces = [bytes(piece) for piece in sources.read(*columns).samples]
        assert pieces[0] == sources.read_one(*(column[0] for column in columns))
        found += pieces
    return found


def expected(picks: Picks) -> list[bytes]:
    rows = zip(picks.source.tolist(), picks.starts.tolist(), picks.lengths.tolist(), strict=True)
    return [CONTENTS[run][start : start + length] for run, start, length in rows]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(range(3)), st.integers(1, 1500) | st.sampled_from([4096, ROOM, ROOM + 1])),
        min_size=1,
        max_size=20,
    ).filter(lambda taken: sum(length for _, length in taken) < 30_000)
)
def test_portions_hold_each_sample_once_and_in_order(tmp_path: Path, taken: list[tuple[int, int]]) -> None:
    picks, runs = picks_of(taken), runs_in(tmp_path)
    files = SpanSources(runs)
    with mock.patch.multiple(run_stretches, _LEAST_BYTES=ROOM, _MOST_BYTES=ROOM):
        stretches = RunStretches(runs, files)
        assert read(stretches, picks) == expected(picks)
    stretches.release()
    files.release()


def test_a_run_that_ends_within_a_page_is_read_to_its_end(tmp_path: Path) -> None:
    picks, runs = picks_of([(0, 39_900), (1, 40_000)]), runs_in(tmp_path)
    files = SpanSources(runs)
    stretches = RunStretches(runs, files)
    assert read(stretches, picks) == expected(picks)
    stretches.release()
    files.release()


def test_tasks_at_one_time_have_memory_of_their_own_and_leave_it_to_the_next(tmp_path: Path) -> None:
    release_memory()
    runs = runs_in(tmp_path)
    picks = [picks_of([(0, 300), (1, 200)]), picks_of([(1, 100), (2, 500)])]
    both = [RunStretches(runs, SpanSources(runs)) for _ in picks]
    portions = [stretches.portions(one) for stretches, one in zip(both, picks, strict=True)]
    opened = [next(portion) for portion in portions]
    for (sources, part), one in zip(opened, picks, strict=True):
        columns = part.source.tolist(), part.starts.tolist(), part.lengths.tolist()
        assert list(map(bytes, sources.read(*columns).samples)) == expected(one)
    for stretches in both:
        stretches.release()
    assert len(run_stretches._spare) == 2
    RunStretches(runs, SpanSources(runs))
    assert len(run_stretches._spare) == 1
    release_memory()
    assert run_stretches._spare == []


@pytest.mark.parametrize("left", [0, 4096, 5000, 39_999])
def test_a_run_that_became_shorter_is_an_error(tmp_path: Path, left: int) -> None:
    runs = [Source(run.path, "", run.label, run.part) for run in runs_in(tmp_path)]
    with (tmp_path / "1.dat").open("r+b") as run:
        run.truncate(left)
    stretches = RunStretches(runs, SpanSources(runs))
    with pytest.raises(ChangedError, match=r"1\.dat has become shorter"):
        read(stretches, picks_of([(0, 100), (1, 40_000)]))
    stretches.release()


def test_a_run_that_is_another_one_is_an_error(tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    (tmp_path / "1.dat").write_bytes(CONTENTS[0] + b"x")
    stretches = RunStretches(runs, SpanSources(runs))
    with pytest.raises(ChangedError, match=r"1\.dat has changed"):
        read(stretches, picks_of([(0, 100), (1, 400)]))
    stretches.release()
