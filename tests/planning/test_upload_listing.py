"""The listing of an upload: what goes in comes out, in little room, and shards get just their part."""

from __future__ import annotations

import io
import tarfile
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill.formats.tar_write import TarSink
from tarmill.planning.upload_cuts import by_count, by_size, shard_edges, shuffled
from tarmill.planning.upload_listing import Listing, pack, tar_bytes, unpack
from tarmill.planning.upload_tasks import UploadJob, UploadTask
from tarmill.spec import UploadSpec

NAMES = st.text("ab/é\udcff -_", min_size=1, max_size=30)
PARTS = st.one_of(
    st.tuples(NAMES, st.just(""), st.integers(0, 1 << 40), st.integers(0, 1 << 62), st.integers(0, 1 << 40)),
    st.tuples(NAMES, NAMES, st.integers(-1, 1 << 40), NAMES, st.none() | st.floats(0, 1e9)),
    st.tuples(NAMES, st.none(), st.integers(0, 100), st.binary(max_size=20), st.none()),
)
ENTRIES = st.tuples(NAMES, st.integers(-1, 3), st.lists(PARTS, min_size=1, max_size=4).map(tuple))


def listing_of(entries: list[Any], spill: int = 1 << 20) -> Listing:
    listing = Listing(spill_bytes=spill)
    for entry in entries:
        listing.add(entry)
    listing.finish()
    return listing


@given(entries=st.lists(ENTRIES, max_size=12), spill=st.sampled_from([0, 50, 1 << 20]))
def test_a_listing_gives_back_its_entries_wherever_they_wait(entries: list[Any], spill: int) -> None:
    listing = listing_of(entries, spill)
    assert list(listing) == entries
    assert listing.files == sum(len(parts) for _, _, parts in entries)
    assert listing.version == listing_of(entries).version
    assert list(listing.sizes) == [tar_bytes(key, parts) for key, _, parts in entries]
    joined = Listing(spill_bytes=spill)
    for cut in (entries[:5], entries[5:]):
        joined.extend(listing_of(cut).as_piece())
    joined.finish()
    assert (list(joined), joined.version) == (entries, listing.version)
    listing.close()
    joined.close()


@given(
    samples=st.lists(
        st.tuples(NAMES, st.just(3), st.lists(st.one_of(NAMES, PARTS), min_size=1, max_size=3).map(tuple)), max_size=12
    ),
    spill=st.sampled_from([0, 50, 1 << 20]),
)
def test_of_files_that_were_listed_by_name_the_names_come_back(samples: list[Any], spill: int) -> None:
    listing = Listing(spill_bytes=spill)
    for cut in (samples[:5], samples[5:]):
        listing.add_named(cut)
    listing.finish()
    assert list(listing) == [
        (key, 3, tuple((part, "", -1, 0, 0) if isinstance(part, str) else part for part in parts))
        for key, _, parts in samples
    ]
    assert listing.files == sum(len(parts) for _, _, parts in samples)
    assert list(listing.sizes) == [0] * len(samples)
    assert listing.unknown == listing.content_bytes == 0
    listing.close()


def test_the_version_of_a_listing_tells_sizes_times_and_values() -> None:
    part = ("txt", "", 5, 10, 20)
    versions = {
        listing_of([("k", 0, (changed,))]).version
        for changed in [
            part,
            ("txt", "", 6, 10, 20),
            ("txt", "", 5, 11, 20),
            ("txt", "", 5, 10, 21),
            ("cls", *part[1:]),
        ]
    }
    assert len(versions) == 5


@given(entry=ENTRIES)
def test_packed_entries_are_the_same_bytes_whoever_holds_their_parts(entry: Any) -> None:
    assert pack(entry) == pack(unpack(pack(entry)))


def test_a_million_files_take_about_a_hundred_bytes_each() -> None:
    listing = Listing()
    for number in range(2000):
        listing.add(
            (f"folder-{number % 10}/sample-{number:08d}", 0, (("jpg", "", 100_000, 1_700_000_000 << 30, 1 << 24),))
        )
    room = listing.data_bytes + 8 * (len(listing.ends) + len(listing.sizes))
    assert room / 2000 < 110


@given(entries=st.lists(ENTRIES, min_size=1, max_size=12), data=st.data())
def test_tasks_get_just_their_entries_in_the_order(entries: list[Any], data: st.DataObject) -> None:
    order = data.draw(st.none() | st.permutations(range(len(entries))))
    begin = data.draw(st.integers(0, len(entries)))
    end = data.draw(st.integers(begin, len(entries)))
    listing = listing_of(entries, 30)
    job = UploadJob("j", UploadSpec(sources=("s",), output="o"), "", "", (), False, 0, False, None)
    blob = b"".join(listing.blocks(order, begin, end))
    lengths = listing.lengths(order, begin, end).tobytes()
    expected = [entries[index] for index in (range(len(entries)) if order is None else order)][begin:end]
    assert list(UploadTask(0, "o", job, end - begin, lengths, blob).entries(lambda *_: b"")) == expected
    in_file = UploadTask(0, "o", job, end - begin, lengths, b"", "file", None, 7)
    whole = bytes(7) + blob
    listing.close()
    assert list(in_file.entries(lambda offset, length: whole[offset : offset + length])) == expected


@given(
    key=st.text("ab/é", min_size=1, max_size=150).filter(lambda key: not key.endswith("/")),
    fields=st.dictionaries(st.text("xyé", min_size=1, max_size=40), st.binary(max_size=2000), min_size=1, max_size=3),
)
def test_the_room_of_a_sample_is_what_it_takes_in_a_tar(key: str, fields: dict[str, bytes]) -> None:
    blocks: list[bytes] = []
    sink = TarSink(blocks.append)
    sink.add(dict(fields), key)
    sink.drain()
    parts = [(name, "", len(body), 0, 0) for name, body in fields.items()]
    assert tar_bytes(key, parts) == len(b"".join(blocks))


@given(
    fields=st.dictionaries(st.text("xyé.", min_size=1, max_size=120), st.binary(max_size=3000), min_size=1, max_size=3)
)
def test_a_sample_written_in_blocks_is_the_same_bytes_and_digest(fields: dict[str, bytes]) -> None:
    whole, pieces = io.BytesIO(), io.BytesIO()
    one, two = TarSink(whole.write), TarSink(pieces.write)
    one.add(dict(fields), "a/b")
    two.add_streams(
        "a/b",
        {
            name: lambda body=body: (len(body), [body[at : at + 700] for at in range(0, len(body), 700)])
            for name, body in fields.items()
        },
    )
    for sink in (one, two):
        sink.finish()
    assert pieces.getvalue() == whole.getvalue()
    assert (two.digest, two.samples, two.members) == (one.digest, one.samples, one.members)
    with tarfile.open(fileobj=io.BytesIO(pieces.getvalue())) as tar:
        assert {name: tar.extractfile(name).read() for name in tar.getnames()} == {  # type: ignore[union-attr]
            f"a/b.{name}": body for name, body in fields.items()
        }


def test_a_field_that_is_not_as_long_as_it_said_tears_the_archive_aloud() -> None:
    sink = TarSink(lambda block: None)
    with pytest.raises(ValueError, match="3 bytes instead of 5"):
        sink.add_streams("k", {"txt": lambda: (5, [b"abc"])})


# Order and cuts


def spec(**fields: Any) -> UploadSpec:
    return UploadSpec(sources=("s",), output="out-@.tar", **fields)


@given(sizes=st.lists(st.integers(512, 5000), max_size=60), room=st.integers(2000, 20_000))
def test_cuts_by_size_lose_nothing_and_overshoot_only_for_a_sample_that_is_larger(sizes: list[int], room: int) -> None:
    edges = by_size(sizes, room)
    assert edges[0] == 0
    assert edges[-1] == len(sizes)
    assert edges == sorted(set(edges))
    for begin, end in pairwise(edges):
        assert sum(sizes[begin:end]) + 1024 <= room or end == begin + 1


@given(count=st.integers(0, 200), each=st.integers(1, 50))
def test_cuts_by_count_are_exact(count: int, each: int) -> None:
    edges = by_count(count, each)
    assert [end - begin for begin, end in pairwise(edges)] == [
        min(each, count - begin) for begin in range(0, count, each)
    ]


@given(count=st.integers(1, 100), shards=st.integers(1, 100))
def test_a_number_of_shards_differs_by_one_sample_at_most(count: int, shards: int) -> None:
    if count < shards:
        with pytest.raises(Exception, match="do not fill"):
            shard_edges(spec(num_shards=shards), None, [512] * count, None, sizes_known=True)
    allowed = spec(num_shards=shards, empty_shards=True)
    edges = shard_edges(allowed, None, [512] * count, None, sizes_known=True)
    sizes = {end - begin for begin, end in pairwise(edges)}
    assert (len(edges), edges[0], edges[-1]) == (shards + 1, 0, count)
    assert max(sizes) - min(sizes) <= 1


def test_sizes_that_nobody_knows_cannot_decide_about_cuts() -> None:
    with pytest.raises(Exception, match="--samples-per-shard or --num-shards"):
        shard_edges(spec(shard_size=10**6), None, [512], None, sizes_known=False)
    assert shard_edges(spec(), None, [512] * 20_001, None, sizes_known=False) == [0, 10_000, 20_000, 20_001]


@given(count=st.integers(0, 300), seed=st.integers(0, (1 << 64) - 1))
def test_a_shuffle_is_a_permutation_that_the_seed_alone_decides(count: int, seed: int) -> None:
    order = list(shuffled(count, seed))
    assert sorted(order) == list(range(count))
    assert list(shuffled(count, seed)) == order
    if count > 20:
        assert list(shuffled(count, seed ^ 1)) != order
