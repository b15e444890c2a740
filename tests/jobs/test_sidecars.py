"""Index jobs: what is found in shards, and the files beside them, in every store."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from support import tars
from support.maps import IDENTITY, pairs_of, put_records, put_shards, run_map

from tarmill import storage
from tarmill.errors import JobFailed, NotFoundError, SpecError, TarmillError
from tarmill.formats.digest import to_hex
from tarmill.formats.sidecar_names import SIDECARS
from tarmill.formats.tar_write import TarSink
from tarmill.jobs.sidecar_places import place_of
from tarmill.jobs.sidecars import run
from tarmill.spec import RunOptions

ALL = tuple(SIDECARS)


def index(pattern: str, *write: str, **options: Any) -> Any:
    return run(pattern, write, RunOptions(**{"workers": 1, **options}))


def json_at(url: str) -> Any:
    return json.loads(storage.read_bytes(url))


def names_in(folder: str) -> list[str]:
    return sorted(stat.url.removeprefix(folder) for stat in storage.list_urls(folder))


def wids_count(data: bytes) -> int:
    """Count samples as wids does: runs of names with equal text before the first dot of the last component."""
    with tarfile.open(fileobj=BytesIO(data)) as archive:
        found = [re.fullmatch(r"((?:.*/)?.*?)(\..*)", name) for name in archive.getnames() if "." in name]
    keys = [match[1] for match in found if match]
    return sum(key != before for key, before in zip(keys, [None, *keys], strict=False))


@pytest.fixture(params=["mem", "file"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "mem://here/" if request.param == "mem" else f"{tmp_path}/"


def test_the_summary_has_the_digest_of_what_a_job_wrote(folder):
    pattern = put_shards(folder)
    made = run_map(pattern, f"{folder}out-@.tar", IDENTITY)
    report = index(f"{folder}out-@000003.tar")
    assert [shard.samples for shard in report.shards] == [5, 5, 5]
    assert [shard.members for shard in report.shards] == [10, 10, 10]
    sizes = [storage.stat(f"{folder}out-00000{n}.tar").size_bytes for n in range(3)]
    assert [shard.size_bytes for shard in report.shards] == sizes
    total = sum(int(shard.digest, 16) for shard in report.shards) % 2**128
    assert f"{total:032x}" == made.digest
    assert report.written == []


def test_the_digest_counts_a_field_called_key(folder):
    records = [{"__key__": "a", "key": b"k", "x": b"1"}, {"__key__": "b", "x": b"2"}]
    sink = TarSink(lambda block: None)
    for record in records:
        sink.add(record)
    [found] = index(put_records(f"{folder}a.tar", records)).shards
    assert found.digest == to_hex(sink.digest)


def test_all_files_lie_beside_the_shards_and_nothing_else(folder):
    report = index(put_shards(folder, name="train"), *ALL)
    beside = [f"train-{n}{end}" for n in range(3) for end in (".idx", ".tar", ".tar.idx")]
    assert names_in(folder) == sorted([".nv-meta/.info.json", "_info.json", "sizes.json", "train.wids.json", *beside])
    assert report.names == ["train-0.tar", "train-1.tar", "train-2.tar"]
    assert len(report.written) == 6


def test_wids_finds_the_sums_sizes_and_counts_of_the_files(folder):
    put_shards(folder, shards=2)
    storage.write_bytes(f"{folder}in-2.tar", tars.ustar(pairs_of(2)) + bytes(700))
    index(f"{folder}in-@3.tar", "wids")
    shards = json_at(f"{folder}in.wids.json")["shardlist"]
    for number, shard in enumerate(shards):
        data = storage.read_bytes(f"{folder}in-{number}.tar")
        assert shard["url"] == f"in-{number}.tar"
        assert shard["md5sum"] == hashlib.md5(data).hexdigest()
        assert shard["filesize"] == len(data)
        assert shard["nsamples"] == wids_count(data)


def test_two_data_sets_of_a_folder_share_the_files_that_are_per_folder(folder):
    index(put_shards(folder, 2, name="train"), *ALL)
    index(put_shards(folder, 1, name="val"), *ALL)
    assert json_at(f"{folder}sizes.json") == {"train-0.tar": 5, "train-1.tar": 5, "val-0.tar": 5}
    assert list(json_at(f"{folder}.nv-meta/.info.json")["shard_counts"]) == ["train-0.tar", "train-1.tar", "val-0.tar"]
    splits = json_at(f"{folder}_info.json")["splits"]
    assert {name: split["num_samples"] for name, split in splits.items()} == {"train": 10, "val": 5}
    assert len(json_at(f"{folder}train.wids.json")["shardlist"]) == 2


def test_the_files_are_no_shards_of_their_folder(folder):
    put_shards(folder)
    index(folder, *ALL)
    assert index(folder).names == ["in-0.tar", "in-1.tar", "in-2.tar"]


def test_shards_in_several_folders_are_named_from_the_one_above(folder):
    for name in "ab":
        storage.write_bytes(f"{folder}{name}/{name}.tar", tars.ustar(pairs_of(0)))
    report = index(f"{folder}a/a.tar::{folder}b/b.tar", *ALL)
    assert report.names == ["a/a.tar", "b/b.tar"]
    assert list(json_at(f"{folder}.nv-meta/.info.json")["shard_counts"]) == ["a/a.tar", "b/b.tar"]
    assert json_at(f"{folder}a/sizes.json") == {"a.tar": 5, "b.tar": 5}
    assert storage.stat(f"{folder}b/b.tar.idx").size_bytes == 6 * 8


def test_processes_write_what_one_process_writes(tmp_path):
    found = []
    for workers in (1, 2):
        where = tmp_path / str(workers)
        where.mkdir()
        pattern = put_shards(where, 4)
        run(pattern, ALL, RunOptions(workers=workers))
        found.append({str(path.relative_to(where)): path.read_bytes() for path in where.rglob("*") if path.is_file()})
    assert found[0] == found[1]


@pytest.mark.parametrize("wanted", ["wids", "energon", "dali"])
def test_an_offset_index_of_a_compressed_shard_is_refused_and_nothing_is_written(folder, wanted):
    storage.write_bytes(f"{folder}a.tar", gzip.compress(tars.ustar(pairs_of(0))))
    with pytest.raises(JobFailed, match=rf"no {wanted} index.*compressed \(gz\).*plain tars"):
        index(f"{folder}a.tar", wanted, "sizes")
    assert names_in(folder) == ["a.tar"]


def test_a_shard_that_is_damaged_fails_and_the_data_set_gets_no_file(folder):
    pattern = put_shards(folder)
    storage.write_bytes(f"{folder}in-1.tar", tars.ustar(pairs_of(1))[:-1024])
    with pytest.raises(JobFailed, match=r"1 of 3 shards failed.*in-1\.tar.*cut short"):
        index(pattern, *ALL)
    assert names_in(folder) == [
        "in-0.idx",
        "in-0.tar",
        "in-0.tar.idx",
        "in-1.tar",
        "in-2.idx",
        "in-2.tar",
        "in-2.tar.idx",
    ]


def test_a_missing_shard_is_told_before_anything_is_written(folder):
    put_shards(folder)
    with pytest.raises(NotFoundError, match=r"in-3\.tar \(number 4 of 4\)"):
        index(f"{folder}in-@4.tar", *ALL)
    assert names_in(folder) == ["in-0.tar", "in-1.tar", "in-2.tar"]


def test_shards_whose_files_would_be_one_are_refused(folder):
    for name in ("a.x.tar", "a.y.tar", "d/a.x.tar"):
        storage.write_bytes(folder + name, tars.ustar(pairs_of(0)))
    with pytest.raises(SpecError, match=r"2 shards would share '.*a\.idx'"):
        index(f"{folder}a.{{x,y}}.tar", "dali")
    with pytest.raises(SpecError, match=r"2 shards would share 'a\.x\.tar'"):
        index(f"{folder}a.x.tar::{folder}d/a.x.tar", "sizes")


def test_an_unknown_reader_is_refused_with_those_that_are_known():
    with pytest.raises(SpecError, match="'idx'; expected some of wids, energon, dali, sizes, timm"):
        index("a.tar", "idx")


def test_places_are_found_from_urls():
    assert place_of(["http://h/d/a.tar?sig=1/2", "http://h/d/b.tar?sig=3"]) == ("http://h/d/", ["a.tar", "b.tar"])
    assert place_of(["d/a.tar", "d/e/b.tar"]) == ("d/", ["a.tar", "e/b.tar"])
    assert place_of(["a.tar", "d/b.tar"]) == ("", ["a.tar", "d/b.tar"])
    assert place_of(["/x/ab/1.tar", "/x/ac/2.tar"]) == ("/x/", ["ab/1.tar", "ac/2.tar"])
    assert place_of(["-"]) == ("", ["-"])


@pytest.mark.parametrize(
    "urls", [["http://h/a.tar", "http://g/a.tar"], ["a.tar", "/x/b.tar"], ["a.tar", "http://h/b.tar"]]
)
def test_places_without_a_common_folder_are_refused(urls):
    with pytest.raises(TarmillError, match="no folder in common"):
        place_of(urls)


def test_nothing_can_be_written_beside_standard_input():
    with pytest.raises(SpecError, match="standard input"):
        index("-", "sizes")
