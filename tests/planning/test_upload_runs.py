"""Samples by name alone: what their files' names say, however runs are cut, and in whichever shard they are."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill.planning import upload_runs
from tarmill.planning.upload_listing import Packed, Part, whole
from tarmill.planning.upload_runs import MARK, Run, RunListing, cut, label_part, samples_of
from tarmill.planning.upload_tasks import UploadJob, UploadTask
from tarmill.spec import UploadSpec

STEMS = st.text("ab-é\udcff", min_size=1, max_size=3)
FIELDS = st.text("abx.é", max_size=3)
FILES = st.one_of(
    st.sets(st.tuples(STEMS, FIELDS), min_size=1, max_size=20),
    # all samples alike, or all but one
    st.builds(
        lambda stems, fields, more: {(stem, field) for stem in stems for field in fields} | more,
        st.sets(STEMS, min_size=1, max_size=8),
        st.sets(FIELDS, min_size=1, max_size=3),
        st.sets(st.tuples(STEMS, FIELDS), max_size=1),
    ),
)
RUNS = st.builds(
    lambda rel, files, label: Run("/base/", rel, sorted(f"{stem}{MARK}{field}" for stem, field in files), label),
    st.sampled_from(["", "d/", "d/é/"]),
    FILES,
    st.none() | st.integers(0, 20),
)


def samples_by_hand(run: Run, root: int, prefix: str) -> list[Packed]:
    """Grouped name by name."""
    pairs = (name.split(MARK) for name in run.names)
    more: tuple[Part, ...] = () if run.label is None else (label_part(run.label),)
    return [
        (f"{prefix}{run.rel}{stem}", root, (*(field for _, field in group), *more))
        for stem, group in groupby(pairs, key=lambda pair: pair[0])
    ]


@given(run=RUNS, prefix=st.sampled_from(["", "p/"]))
def test_files_of_one_stem_are_one_sample(run: Run, prefix: str) -> None:
    assert list(samples_of(run, 2, prefix)) == samples_by_hand(run, 2, prefix)


@given(run=RUNS, most=st.integers(1, 6))
def test_a_run_is_cut_between_samples_only(run: Run, most: int) -> None:
    parts = list(cut(run, most))
    assert [name for part in parts for name in part.names] == list(run.names)
    assert all(len(part.names) >= most for part in parts[:-1])
    assert [sample for part in parts for sample in samples_of(part, 0, "")] == samples_by_hand(run, 0, "")


@given(
    runs=st.lists(RUNS, max_size=4),
    spill=st.sampled_from([0, 50, 1 << 20]),
    most=st.integers(1, 5),
    cuts=st.sets(st.integers(0, 60), max_size=6),
)
def test_shards_get_just_their_samples(runs: list[Run], spill: int, most: int, cuts: set[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upload_runs, "_PIECE_FILES", most)
        listing = RunListing("p/", spill_bytes=spill)
        for run in runs:
            listing.add(run, 1)
    listing.finish()
    expected = [sample for run in runs for sample in samples_by_hand(run, 1, "p/")]
    assert [*listing] == [whole(sample) for sample in expected]
    assert listing.files == sum(len(parts) for _, _, parts in expected)
    assert [*listing.sizes] == [0] * len(expected)
    assert all(listing.entry(index) == whole(sample) for index, sample in enumerate(expected))
    spec = UploadSpec(sources=("s",), output="o", key_prefix="p/")
    job = UploadJob("j", spec, "", "", (), follow=False, begun_ns=1, remote=False, settings=None)
    edges = sorted({0, len(expected)} | {place for place in cuts if place < len(expected)})
    for begin, end in [*pairwise(edges), (0, 0)]:
        first, last, skip = listing.span(begin, end)
        blob, lengths = b"".join(listing.blocks(None, first, last)), listing.lengths(None, first, last).tobytes()
        task = UploadTask(0, "o", job, end - begin, lengths, blob, by_run=True, skip=skip)
        assert [*task.entries(lambda *_: b"")] == expected[begin:end]
    listing.close()


def test_the_version_tells_names_folders_and_classes() -> None:
    def version(run: Run, root: int = 0) -> str:
        listing = RunListing("")
        listing.add(run, root)
        listing.finish()
        return listing.version

    names = [f"a{MARK}x", f"b{MARK}x"]
    one = Run("/base/", "d/", names)
    others = [Run("", "e/", names), Run("", "d/", names[:1]), Run("", "d/", names, 1)]
    assert len({version(one), *map(version, others), version(one, 1)}) == 5
    assert version(one) == version(Run("/elsewhere/", "d/", names))
