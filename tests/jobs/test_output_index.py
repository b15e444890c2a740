"""Index files for other readers that jobs write beside their outputs: those that `tarmill index` writes, in time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tars
from support.maps import IDENTITY, command, environment, leftovers, pairs_of, put_shards, run_map
from support.reorders import AtStage, doomed, manifest_of, shuffle, sort

from tarmill import storage
from tarmill.errors import JobFailed, SpecError, UsageError
from tarmill.formats.sidecar_names import SIDECARS
from tarmill.jobs import sidecars
from tarmill.jobs.api import run as run_job
from tarmill.jobs.report import Report
from tarmill.spec import MapSpec, RunOptions, ShuffleSpec, SortSpec

Job = Callable[..., Report]
JOBS: dict[str, Job] = {
    "map": run_map,
    "shuffle": lambda *places, **fields: shuffle(*places, seed="1", **fields),
    "sort": sort,
    "reduce": lambda *places, **fields: sort(*places, reduce="first", **fields),
}
every_job = pytest.mark.parametrize("job", JOBS.values(), ids=JOBS.keys())
map_and_shuffle = pytest.mark.parametrize("job", [run_map, shuffle], ids=["map", "shuffle"])


class Stages(AtStage):
    """Knows which passes there were."""

    def __init__(self) -> None:
        super().__init__(lambda: None)


def files_in(folder: Path) -> dict[str, bytes]:
    """All files below a folder but what jobs keep for themselves and the data set's manifest."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if "_tarmill/" not in name and "manifest" not in name}


def times_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("out-*")}


def run_with(job: Job, source: str, output: str, stages: Stages, **fields: Any) -> Report:
    """Run a job and know its passes: `run_map` takes no listener."""
    if job is not run_map:
        return job(source, output, listener=stages, **fields)
    return run_job(MapSpec(input=source, output=output, script=IDENTITY, **fields), RunOptions(workers=1), stages)


# ---- what is written ------------------------------------------------------------------------------------------------


@every_job
def test_a_job_writes_what_tarmill_index_writes_beside_its_outputs(tmp_path, job):
    source = put_shards(tmp_path / "in")
    report = job(source, tmp_path / "a" / "out-@.tar", index=SIDECARS)
    job(source, tmp_path / "b" / "out-@.tar")
    assert files_in(tmp_path / "b").keys() == {"out-000000.tar", "out-000001.tar", "out-000002.tar"}
    sidecars.run(f"{tmp_path}/b/out-@000003.tar", SIDECARS, RunOptions(workers=1))
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")
    assert manifest_of(tmp_path / "a" / "out-@.tar")["index"] == sorted(SIDECARS)
    assert len(report.index) == 6
    assert report.to_dict()["index"] == report.index


def test_processes_and_other_stores_write_the_same(tmp_path):
    source = put_shards(tmp_path / "in")
    run_map(source, tmp_path / "out-@.tar", index=SIDECARS, options={"workers": 2})
    run_map(put_shards("mem://here/in/"), "mem://here/out-@.tar", index=SIDECARS)
    here = {name: data for name, data in files_in(tmp_path).items() if not name.startswith("in/")}
    there = {
        stat.url.removeprefix("mem://here/"): storage.read_bytes(stat.url) for stat in storage.list_urls("mem://here/")
    }
    assert here.items() <= there.items()


@map_and_shuffle
def test_shards_come_first_then_their_files_then_those_of_the_data_set_and_the_manifest_last(
    tmp_path, monkeypatch, job
):
    order: list[str] = []
    write, commit = storage.write_bytes, storage.WriteStream.commit
    monkeypatch.setattr(storage, "write_bytes", lambda url, *a, **k: (order.append(url), write(url, *a, **k))[1])
    monkeypatch.setattr(storage.WriteStream, "commit", lambda stream: (order.append(stream.url), commit(stream))[1])
    job(put_shards(tmp_path / "in"), tmp_path / "out-@.tar", index=("energon", "sizes"))
    ends = (".tar", ".tar.idx", ".info.json", "sizes.json", "out.manifest.json")
    seen = [end for url in order for end in ends if url.endswith(end)]
    assert list(dict.fromkeys(seen)) == list(ends)
    assert seen == sorted(seen, key=ends.index)


@map_and_shuffle
def test_counts_are_known_without_another_look(tmp_path, job):
    stages = Stages()
    run_with(job, put_shards(tmp_path), f"{tmp_path}/out-@.tar.gz", stages, index=("sizes", "timm"))
    assert not [stage for stage in stages.stages if "indexing" in stage]
    sizes = json.loads((tmp_path / "sizes.json").read_text())
    assert sizes == {f"out-00000{number}.tar.gz": 5 for number in range(3)}


def test_samples_are_counted_as_other_readers_see_them_whatever_the_key_function(tmp_path):
    pairs = [(f"{sample}/{name}", b"x") for sample in "ab" for name in ("one.x", "two.x")]
    (tmp_path / "in.tar").write_bytes(tars.ustar(pairs))
    spec = ShuffleSpec(
        input=f"{tmp_path}/in.tar", output=f"{tmp_path}/out-@1.tar", key_function="dir_plus_file", index=("sizes",)
    )
    report = run_job(spec, RunOptions(workers=1))
    assert report.counts.written == 2
    assert json.loads((tmp_path / "sizes.json").read_text()) == {"out-0.tar": 4}


WIDS = """
import json, sys, types
from typing import Generic, TypeVar
for name in ("torch", "torch.distributed", "torch.utils", "torch.utils.data"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["torch"].distributed = sys.modules["torch.distributed"]
class Base(Generic[TypeVar("T")]):
    pass
sys.modules["torch.utils.data"].Dataset = sys.modules["torch.utils.data"].Sampler = Base
import wids
from wids.wids import IndexedTarSamples
data = wids.ShardListDataset(sys.argv[1], localname=lambda url: url, transformations=[])
for shard in data.shards:
    IndexedTarSamples(path=shard["url"], md5sum=shard["md5sum"], expected_size=shard["nsamples"])
found = []
for number in range(len(data)):
    sample = data[number]
    found.append([sample["__key__"], {name: body.read().decode() for name, body in sample.items() if name[0] == "."}])
print(json.dumps(found))
"""
"""wids, for which torch need not be there: it only inherits from two empty classes of it."""


@map_and_shuffle
def test_wids_finds_every_sample_by_its_index_and_every_sum_right(tmp_path, job):
    job(put_shards(tmp_path), tmp_path / "out-@.tar", index=("wids",))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WIDS, str(tmp_path / "out.wids.json")],
        capture_output=True,
        timeout=100,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr.decode()
    found = sorted(json.loads(done.stdout))
    expected = {key.rpartition(".")[0]: {} for shard in range(3) for key, _ in pairs_of(shard)}
    for shard in range(3):
        for name, body in pairs_of(shard):
            key, _, field = name.rpartition(".")
            expected[key]["." + field] = body.decode()
    assert found == sorted([key, fields] for key, fields in expected.items())


# ---- run again ------------------------------------------------------------------------------------------------------


@map_and_shuffle
def test_a_finished_job_gets_just_the_files_when_it_is_run_again_for_them(tmp_path, job):
    source, output = put_shards(tmp_path), f"{tmp_path}/out-@.tar"
    first = job(source, output)
    before = times_of(tmp_path)
    stages = Stages()
    second = run_with(job, source, output, stages, index=("dali",))
    assert second.job == first.job
    assert second.shards_resumed == 3
    assert stages.stages == ["indexing 3"]
    assert times_of(tmp_path).items() >= before.items()
    run_with(job, source, output, stages, index=("wids", "dali"))
    manifest = manifest_of(output)
    assert (manifest["index"], manifest["job"]) == (["dali", "wids"], first.job)
    job(source, output)
    assert manifest_of(output) == manifest


@map_and_shuffle
def test_only_what_is_missing_is_indexed_again(tmp_path, job):
    source, output, stages = put_shards(tmp_path), f"{tmp_path}/out-@.tar", Stages()
    job(source, output, index=("energon", "wids"))
    whole = files_in(tmp_path)
    (tmp_path / "out-000001.tar.idx").unlink()
    (tmp_path / "out.wids.json").unlink()
    run_with(job, source, output, stages, index=("energon", "wids"))
    assert stages.stages == ["indexing 1"]
    run_with(job, source, output, stages, index=("energon",))
    assert stages.stages == ["indexing 1"]
    assert files_in(tmp_path) == whole


@map_and_shuffle
def test_a_shard_that_is_written_once_more_is_indexed_once_more(tmp_path, job):
    source, output, stages = put_shards(tmp_path), f"{tmp_path}/out-@.tar", Stages()
    job(source, output, index=("energon", "wids"))
    whole = files_in(tmp_path)
    (tmp_path / "out-000001.tar").unlink()
    run_with(job, source, output, stages, index=("energon", "wids"))
    assert stages.stages[-1] == "indexing 1"
    assert files_in(tmp_path) == whole
    (tmp_path / "out-000001.tar").unlink()
    job(source, output, index=("energon",))  # what nobody asks for any more would not be kept right
    assert set(whole) - set(files_in(tmp_path)) == {"out.wids.json"}
    assert manifest_of(output)["index"] == ["energon"]


@pytest.mark.parametrize("tool", ["htmapper", "htshuffle"])
def test_a_kill_between_the_shards_and_their_data_set_leaves_what_a_rerun_completes(tmp_path, tool):
    put_shards(tmp_path)
    (tmp_path / "same.py").write_text(IDENTITY)
    arguments = [
        "-j1",
        "in-@3.tar",
        "out-@.tar",
        "--index",
        "energon,wids",
        *(["-psame.py"] if tool == "htmapper" else []),
    ]
    died = doomed(tool, arguments, tmp_path, "out.wids.json")
    assert died.returncode == -9
    assert not (tmp_path / "out.manifest.json").exists()
    assert (tmp_path / "out-000002.tar.idx").exists()
    done = command(arguments, tmp_path, tool=tool)
    assert done.returncode == 0, done.stderr.decode()
    assert leftovers(tmp_path) == []
    found = files_in(tmp_path)
    sidecars.run(f"{tmp_path}/out-@000003.tar", ["energon", "wids"], RunOptions(workers=1))
    assert files_in(tmp_path) == found


# ---- other shards under the same names ------------------------------------------------------------------------------


@map_and_shuffle
def test_files_of_a_data_set_that_is_overwritten_do_not_outlive_it(tmp_path, job):
    run_map(put_shards(tmp_path, 1, name="val"), tmp_path / "other-@.tar", index=SIDECARS)
    others = files_in(tmp_path)
    source = put_shards(tmp_path)
    job(source, tmp_path / "out-@.tar", index=SIDECARS)
    salted = {"salt": "2", "exists": "overwrite"}
    job(source, tmp_path / "out-@.tar", **salted)
    left = {name: data for name, data in files_in(tmp_path).items() if not name.startswith(("in-", "out-"))}
    assert left == {name: data for name, data in others.items() if name in left or not name.startswith(("in-", "out-"))}
    assert not list(tmp_path.glob("out*.idx"))
    assert "index" not in manifest_of(tmp_path / "out-@.tar")


def test_files_of_shards_that_are_no_more_go_with_them(tmp_path):
    source = put_shards(tmp_path)
    shuffle(source, tmp_path / "out-@.tar", index=SIDECARS)
    shuffle(source, tmp_path / "out-@.tar", num_shards=2, exists="overwrite", index=("energon", "sizes"))
    sizes = json.loads((tmp_path / "sizes.json").read_text())
    assert (sizes.keys(), sum(sizes.values())) == ({"out-000000.tar", "out-000001.tar"}, 15)
    assert len(json.loads((tmp_path / ".nv-meta/.info.json").read_text())["shard_counts"]) == 2
    assert sorted(path.name for path in tmp_path.glob("*.idx")) == ["out-000000.tar.idx", "out-000001.tar.idx"]
    assert not (tmp_path / "out.wids.json").exists()
    assert not (tmp_path / "_info.json").exists()


def test_a_manifest_cannot_have_files_removed_elsewhere(tmp_path):
    source, output = put_shards(tmp_path / "in"), f"{tmp_path}/a/out-@.tar"
    run_map(source, output, index=("energon",))
    (tmp_path / "out-000000.tar.idx").write_bytes(b"not ours")
    manifest = json.loads((tmp_path / "a/out.manifest.json").read_text())
    manifest["shards"][0]["name"] = "../out-000000.tar"
    (tmp_path / "a/out.manifest.json").write_text(json.dumps(manifest))
    run_map(source, output, exists="overwrite")
    assert (tmp_path / "out-000000.tar.idx").exists()


# ---- what cannot be -------------------------------------------------------------------------------------------------


@map_and_shuffle
@pytest.mark.parametrize(
    ("output", "index", "message"),
    [
        ("out-@.tar", "idx", "--index has 'idx'; expected some of wids, energon"),
        ("out-@.tar.gz", "dali", r"compressed \(gz\).*plain tars"),
        ("out-@.tar.zst", "wids", r"compressed \(zst\).*plain tars"),
        ("out-@.tgz", "energon", r"ends with '\.tar'"),
        ("out.x-@.tar", "dali", r"3 shards would share|2 shards would share"),
        ("{a,b,c}/out.tar", "sizes", r"3 shards would share 'out\.tar'"),
        ("out-@.tar", "sizes", r"sizes\.json that is there is no JSON"),
    ],
    ids=["unknown", "gzip", "zstd", "no .tar", "one name for all", "one base name", "no JSON there"],
)
def test_what_cannot_be_indexed_is_refused_before_the_work_begins(tmp_path, job, output, index, message):
    source = put_shards(tmp_path / "in")
    (tmp_path / "sizes.json").write_text("no")
    with pytest.raises(SpecError, match=message):
        job(source, tmp_path / output, index=(index,))
    assert files_in(tmp_path).keys() == {"sizes.json", *(f"in/in-{number}.tar" for number in range(3))}


def test_nothing_can_be_written_beside_standard_output(tmp_path):
    with pytest.raises(UsageError, match="beside standard input or output"):
        run_map(put_shards(tmp_path, 1), "-", index=("sizes",))


@map_and_shuffle
def test_samples_that_a_reader_cannot_take_fail_the_index_and_a_rerun_without_it_goes_on(tmp_path, job):
    (tmp_path / "in.tar").write_bytes(tars.ustar([("a b.x", b"1")]))
    with pytest.raises(
        JobFailed, match=r"1 of 1 shards could not be indexed.*a blank.*run it again.*without"
    ) as caught:
        job(tmp_path / "in.tar", tmp_path / "out-@1.tar", index=("dali", "sizes"))
    assert not caught.value.facts["report"].succeeded
    assert files_in(tmp_path).keys() == {"in.tar", "out-0.tar"}
    assert not (tmp_path / "out.manifest.json").exists()
    assert job(tmp_path / "in.tar", tmp_path / "out-@1.tar", index=("sizes",)).shards_resumed == 1


def test_a_spec_file_names_readers_as_a_list():
    spec = SortSpec.from_dict({"input": "a.tar", "output": "b-@.tar", "index": ["wids", "sizes"]})
    assert spec.index == ("wids", "sizes")
    with pytest.raises(SpecError, match="'idx'"):
        SortSpec.from_dict({"input": "a.tar", "output": "b-@.tar", "index": ["idx"]})
