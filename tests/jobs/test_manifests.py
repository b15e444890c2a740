"""What a job leaves beside its outputs, and that all of it tells the truth and no secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import tars
from support.maps import UPPER, put_records, put_shards, run_map
from xxhash import xxh3_128_hexdigest

from tarmill import storage
from tarmill.errors import NotFoundError, OutputExistsError, TarmillError
from tarmill.formats.shards import ShardPattern
from tarmill.jobs import manifests
from tarmill.jobs.inputs import find_shards, name_in
from tarmill.jobs.manifests import fault_of, in_parallel, read_manifest
from tarmill.planning.counts import Counts
from tarmill.planning.tasks import OutputShard, ShardDone


def manifest_of(place: str, name: str = "out") -> dict[str, Any]:
    return read_manifest(f"{place}{name}.manifest.json")


def test_the_manifest_holds_names_sizes_counts_and_hashes(place: str) -> None:
    report = run_map(put_shards(place, 2), f"{place}out-@.tar.gz", UPPER)
    found = manifest_of(place)
    assert (found["kind"], found["job"], found["digest"]) == ("ShardMap", report.job, report.digest)
    assert (found["samples"], found["members"]) == (10, 20)
    for number, shard in enumerate(found["shards"]):
        data = storage.read_bytes(f"{place}{shard['name']}")
        assert shard["name"] == f"out-{number:06d}.tar.gz"
        assert shard["size_bytes"] == len(data)
        assert shard["content_hash"] == xxh3_128_hexdigest(data)
        assert shard["samples"] == 5
    assert found["size_bytes"] == sum(shard["size_bytes"] for shard in found["shards"])


def test_names_in_the_manifest_are_relative_to_its_folder(place: str) -> None:
    run_map(put_shards(place, 2), f"{place}sub/{{a,b}}/out.tar")
    manifest = next(info.url for info in storage.list_urls(f"{place}sub/") if info.url.endswith(".manifest.json"))
    names = [shard["name"] for shard in read_manifest(manifest)["shards"]]
    folder = manifest[: manifest.rfind("/") + 1]
    assert [storage.stat(folder + name).url for name in names] == [f"{place}sub/{name}/out.tar" for name in "ab"]


def test_two_data_sets_share_a_folder(place: str) -> None:
    source = put_shards(place, 2)
    run_map(source, f"{place}one-@.tar")
    run_map(source, f"{place}two-@.tar")
    assert manifest_of(place, "one")["digest"] == manifest_of(place, "two")["digest"]


def test_the_manifest_comes_last(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    open_write = storage.open_write

    def note(url: str, **options: Any) -> storage.WriteStream:
        written.append(url)
        return open_write(url, **options)

    monkeypatch.setattr(storage.registry, "open_write", note)  # type: ignore[attr-defined]
    monkeypatch.setattr(storage, "open_write", note)
    run_map(put_shards(place, 2), f"{place}out-@.tar", rejected=f"{place}rejected.jsonl")
    assert written[-1] == f"{place}out.manifest.json"
    assert f"{place}out-000001.tar" in written


def test_a_manifest_of_another_data_set_is_not_overwritten(place: str) -> None:
    run_map(put_shards(place, 2), f"{place}set-@2.tar")
    before = storage.read_bytes(f"{place}set.manifest.json")
    with pytest.raises(OutputExistsError, match=r"set\.manifest\.json"):
        run_map(f"{place}set-@2.tar", f"{place}set-@2.tar.gz")
    assert storage.read_bytes(f"{place}set.manifest.json") == before
    run_map(f"{place}set-@2.tar", f"{place}set-@2.tar.gz", exists="overwrite")
    assert manifest_of(place, "set")["shards"][0]["name"] == "set-0.tar.gz"


@pytest.mark.parametrize("text", [b"{}", b"[1]", b"not json", b'{"format": 1, "shards": [5]}'])
def test_a_file_that_is_no_manifest_is_not_overwritten(place: str, text: bytes) -> None:
    storage.write_bytes(f"{place}out.manifest.json", text)
    with pytest.raises(OutputExistsError):
        run_map(put_shards(place, 1), f"{place}out-@.tar")
    assert storage.read_bytes(f"{place}out.manifest.json") == text


@pytest.mark.parametrize("text", [b"{}", b"not json", b"[]", b'{"format": 99, "shards": []}'])
def test_what_is_no_manifest_is_not_read_as_one(place: str, text: bytes) -> None:
    storage.write_bytes(f"{place}x.manifest.json", text)
    with pytest.raises(TarmillError, match="no data set manifest"):
        manifest_of(place, "x")


def test_a_shards_manifest_reads_back() -> None:
    counts = Counts(read=7, written=5, added=1)
    counts.dropped["script-error"] = 3
    output = OutputShard("out-0.tar", 10240, "v1", "00" * 16, 5, 10, "ff" * 16)
    done = ShardDone(3, counts, output, 2)
    again = ShardDone.from_dict(json.loads(json.dumps(done.to_dict())))
    assert again == done
    assert again.counts.missing == 0


def test_inputs_know_the_hashes_that_their_manifest_holds(place: str) -> None:
    run_map(put_shards(place, 2), f"{place}out-@2.tar")
    shards = find_shards(ShardPattern.parse(f"{place}out-@2.tar"))
    assert [shard.content_hash for shard in shards] == [
        xxh3_128_hexdigest(storage.read_bytes(shard.url)) for shard in shards
    ]


def test_inputs_in_several_folders_know_their_hashes_too(place: str) -> None:
    run_map(put_shards(place, 2), f"{place}sub/{{a,b}}/out.tar")
    shards = find_shards(ShardPattern.parse(f"{place}sub/{{a,b}}/out.tar"))
    assert all(shard.content_hash for shard in shards)


def test_names_hold_no_query() -> None:
    url = "https://h/d/sub/out-0.tar?X-Signature=abc"
    assert name_in("https://h/d/", url) == "sub/out-0.tar"
    assert name_in("d/", "d/what?.tar") == "what?.tar"


def test_a_damaged_manifest_of_the_input_does_no_harm(place: str) -> None:
    run_map(put_shards(place, 2), f"{place}mid-@2.tar")
    storage.write_bytes(f"{place}mid.manifest.json", b"{")
    assert run_map(f"{place}mid-@2.tar", f"{place}out-@.tar").succeeded


def test_faults_of_an_output_are_told(place: str) -> None:
    stat = storage.write_bytes(f"{place}x", b"12345")
    output = OutputShard("x", 5, stat.version, "", 1, 1, "")
    assert fault_of(output, f"{place}x") is None
    assert fault_of(OutputShard("x", 5, "", "", 1, 1, ""), f"{place}x") is None  # a version that nobody asked for
    assert fault_of(OutputShard("x", 6, "", "", 1, 1, ""), f"{place}x") is not None
    storage.write_bytes(f"{place}x", b"54321")
    assert fault_of(output, f"{place}x") is not None
    storage.delete(f"{place}x")
    assert fault_of(output, f"{place}x") == "is gone"


def test_parallel_calls_keep_order_and_raise_the_first_error() -> None:
    assert in_parallel(lambda number: number * 2, range(40)) == [number * 2 for number in range(40)]
    assert in_parallel(str, []) == []
    with pytest.raises(NotFoundError):
        in_parallel(storage.stat, ["mem://no/1", "mem://no/2"])


def test_hard_linked_inputs_of_real_files_close_what_they_open(tmp_path: Path) -> None:
    data = tars.member("a.txt", b"one") + tars.header("b.txt", flag=b"1", link=b"a.txt") + tars.END
    (tmp_path / "in.tar").write_bytes(data)
    run_map(tmp_path / "in.tar", tmp_path / "out.tar")


def test_state_lies_beside_the_outputs_without_a_leading_dot(tmp_path: Path) -> None:
    report = run_map(put_records(tmp_path / "in.tar", [{"__key__": "a", "txt": b""}]), tmp_path / "x" / "out.tar")
    state = tmp_path / "x" / "_tarmill" / report.job
    assert sorted(path.name for path in state.iterdir()) == ["job.json", "shard-0000000.json"]
    assert manifests.shard_manifest(f"{state}/", 0) == f"{state}/shard-0000000.json"
