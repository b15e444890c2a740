"""Ranges of local files: many at once give what each alone would."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill import storage
from tarmill.errors import ChangedError
from tarmill.jobs.span_sources import SpanSources
from tarmill.planning.span_tasks import Source

CONTENTS = [bytes(range(number, number + 200)) * 400 for number in range(3)]


def sources_in(folder: Path) -> SpanSources:
    paths = [folder / f"{number}.dat" for number in range(len(CONTENTS))]
    for path, contents in zip(paths, CONTENTS, strict=True):
        path.write_bytes(contents)
    return SpanSources([Source(str(path), storage.stat(str(path)).version, path.name, 0) for path in paths])


@given(
    st.lists(st.tuples(st.sampled_from(range(len(CONTENTS))), st.integers(1, 3000)), min_size=1, max_size=20),
    st.sampled_from([0, 7]),
    st.sampled_from([0, 30_000]),
)
def test_ranges_of_runs_are_read_as_each_alone(taken: list[tuple[int, int]], gap: int, more: int) -> None:
    ends = [100, 0, 5000]
    numbers, starts, lengths = [], [], []
    for number, length in [*taken, (1, 100 + more)]:
        numbers.append(number)
        starts.append(ends[number])
        lengths.append(length)
        ends[number] += length + gap
    with tempfile.TemporaryDirectory() as folder:
        sources = sources_in(Path(folder))
        found = sources.read_runs(numbers, starts, lengths)
        sources.release()
    assert [bytes(piece) for piece in found] == [
        CONTENTS[number][start : start + length] for number, start, length in zip(numbers, starts, lengths, strict=True)
    ]


def test_a_run_that_becomes_shorter_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    sources = sources_in(tmp_path)
    sources.read_runs([0, 0], [0, 10], [10, 10])
    with (tmp_path / "0.dat").open("r+b") as run:
        run.truncate(15)
    with pytest.raises(ChangedError, match="has become shorter"):
        sources.read_runs([0, 0], [0, 10], [10, 10])
    sources.release()
