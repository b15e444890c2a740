"""Verify jobs: every damage that is planted is caught against the manifest and against the input, and named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tars
from support.maps import pairs_of, put_records, put_shards, records_in, run_map

from tarmill import storage
from tarmill.errors import ShardPatternError, TarmillError, UsageError
from tarmill.jobs import verify, verify_compare
from tarmill.jobs.verify import VerifyReport, told_by_manifest
from tarmill.jobs.verify_compare import differences
from tarmill.spec import RunOptions


@pytest.fixture(params=["mem", "file"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "mem://here/" if request.param == "mem" else f"{tmp_path}/"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """in-0.tar ... in-2.tar, and a copy of them, out-000000.tar ..., with its manifest."""
    run_map(put_shards(tmp_path), tmp_path / "out-@.tar")
    return tmp_path


def check(output: str | Path, source: str | Path = "", **fields: Any) -> VerifyReport:
    options = RunOptions(**{"workers": 1, **fields.pop("options", {})})
    return verify.run(str(output), str(source), options=options, **fields)


def kinds(report: VerifyReport) -> list[str]:
    return [fault.kind for fault in report.faults]


def named(report: VerifyReport) -> list[tuple[str, str, str, str]]:
    """The samples that are named, their shards without folders."""
    return [
        (d.kind, d.key, d.source_shard.rpartition("/")[2], d.output_shard.rpartition("/")[2])
        for d in report.differences
    ]


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    put_records(path, change(records_in(path)))


def set_manifest(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- against the manifest ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["out-@.tar", "out-@000003.tar", "out-*.tar", "out-{000000..000002}.tar", "out.manifest.json"]
)
def test_what_a_job_wrote_is_as_its_manifest_says_however_it_is_named(folder, name):
    made = run_map(put_shards(folder), f"{folder}out-@.tar")
    report = check(folder + name)
    assert report.ok
    assert report.faults == []
    totals = report.output.totals()
    assert totals is not None
    assert (totals.shards, totals.samples, totals.members, totals.digest) == (3, 15, 30, made.digest)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_is_checked_against_the_manifest_in_it(tmp_path, slash):
    run_map(put_shards(tmp_path), tmp_path / "done" / "train-@.tar.gz")
    assert check(f"{tmp_path}/done{slash}").ok


def test_a_copy_in_another_folder_and_in_processes_is_checked(data):
    copy = data / "copy"
    copy.mkdir()
    for path in data.glob("out*"):
        (copy / path.name).write_bytes(path.read_bytes())
    assert check(copy / "out-@.tar", options={"workers": 2}).ok


def test_a_missing_an_extra_and_a_cut_shard_are_all_told(data):
    (data / "out-000000.tar").unlink()
    cut = data / "out-000001.tar"
    cut.write_bytes(cut.read_bytes()[:-3000])
    (data / "out-000003.tar").write_bytes(tars.ustar(pairs_of(3)))
    report = check(data / "out-@.tar")
    assert [(fault.kind, Path(fault.shard).name) for fault in report.faults] == [
        ("extra", "out-000003.tar"),
        ("missing", "out-000000.tar"),
        ("size", "out-000001.tar"),
        ("truncated", "out-000001.tar"),
    ]
    assert not report.ok


def test_a_flipped_byte_is_found_by_the_hash_also_where_no_sample_changes(data):
    path = data / "out-000001.tar"
    damaged = bytearray(path.read_bytes())
    damaged[520] ^= 1  # contents of the first member
    path.write_bytes(damaged)
    assert kinds(check(data / "out-@.tar")) == ["hash", "digest"]
    damaged[520] ^= 1
    damaged[-1] ^= 1  # behind the end mark, which is no error of tar where it is zeros
    path.write_bytes(damaged)
    assert kinds(check(data / "out-@.tar"))[0] == "hash"


def test_a_flipped_byte_in_a_header_is_a_bad_header(data):
    path = data / "out-000002.tar"
    damaged = bytearray(path.read_bytes())
    damaged[3] ^= 1
    path.write_bytes(damaged)
    assert kinds(check(data / "out-@.tar")) == ["hash", "bad-header"]


def test_a_dropped_a_doubled_and_a_changed_sample_each_are_faults_of_their_shard(data):
    rewrite(data / "out-000000.tar", lambda records: records[1:])
    rewrite(data / "out-000001.tar", lambda records: [*records, records[0]])
    rewrite(data / "out-000002.tar", lambda records: [records[0] | {"cls": b"7"}, *records[1:]])
    found: dict[str, set[str]] = {}
    for fault in check(data / "out-@.tar").faults:
        found.setdefault(Path(fault.shard).name, set()).add(fault.kind)
    assert found["out-000000.tar"] >= {"samples", "members", "digest"}
    assert found["out-000001.tar"] >= {"samples", "members", "digest"}
    assert "digest" in found["out-000002.tar"]
    assert "samples" not in found["out-000002.tar"]


def test_where_a_job_copied_samples_and_did_not_look_into_them_the_sums_are_compared(data):
    manifest = data / "out.manifest.json"
    shards = [shard | {"digest": "", "members": 0} for shard in json.loads(manifest.read_text())["shards"]]
    set_manifest(manifest, shards=shards)
    assert check(data / "out-@.tar").ok
    rewrite(data / "out-000002.tar", lambda records: [records[0] | {"cls": records[0]["cls"][::-1]}, *records[1:]])
    report = check(data / "out-@.tar")
    assert {(fault.kind, Path(fault.shard).name) for fault in report.faults} == {
        ("hash", "out-000002.tar"),
        ("digest", ""),
    }


def test_another_key_function_than_the_job_had_is_told_where_every_byte_is_right(data):
    manifest = data / "out.manifest.json"
    set_manifest(manifest, shards=[s | {"digest": ""} for s in json.loads(manifest.read_text())["shards"]])
    assert check(data / "out-@.tar", key_function=r"(.*)\.(.*)").ok  # splits these names in the same way
    set_manifest(manifest, digest="0" * 32)
    [fault] = check(data / "out-@.tar").faults
    assert fault.kind == "digest"
    assert "--key-function" in fault.message


def test_sums_that_do_not_fit_are_faults_of_the_data_set(data):
    set_manifest(data / "out.manifest.json", samples=16)
    [fault] = check(data / "out-@.tar").faults
    assert (fault.shard, fault.kind) == ("", "samples")
    assert "have 15 samples" in fault.message


def test_shards_that_a_pattern_does_not_name_and_the_manifest_does_are_told(data):
    report = check(data / "out-{000000..000001}.tar")
    assert [(fault.kind, Path(fault.shard).name) for fault in report.faults] == [("unnamed", "out-000002.tar")]


def test_names_of_a_pattern_that_are_nowhere_are_missing(data):
    assert kinds(check(data / "out-@000004.tar")) == ["missing"]


def test_when_all_shards_are_gone_each_is_missing(data):
    for path in data.glob("out-*.tar"):
        path.unlink()
    for name in ("out-@.tar", "out-*.tar", "out.manifest.json"):
        assert kinds(check(data / name)) == ["missing"] * 3


@pytest.mark.parametrize("name", ["../in-0.tar", "/etc/passwd", "http://h/x.tar", "a/../../x.tar"])
def test_a_name_that_leads_out_of_the_folder_is_not_opened(data, name):
    manifest = data / "out.manifest.json"
    shards = json.loads(manifest.read_text())["shards"]
    set_manifest(manifest, shards=[shards[0] | {"name": name}, *shards[1:]])
    report = check(manifest)
    assert report.faults[0].kind == "unreadable"
    assert "no name below its folder" in report.faults[0].message


@pytest.mark.parametrize(
    "changes",
    [{"shards": [{"name": "x"}]}, {"shards": [1]}, {"format": 2}],
    ids=["no facts", "no dict", "other format"],
)
def test_a_damaged_manifest_is_an_error(data, changes):
    set_manifest(data / "out.manifest.json", **changes)
    with pytest.raises(TarmillError, match=r"out\.manifest\.json"):
        check(data / "out-@.tar")


def test_without_a_manifest_the_other_ways_are_told(tmp_path):
    with pytest.raises(UsageError, match=r"in\.manifest\.json is not there.*verify IN OUT.*tarmill index"):
        check(put_shards(tmp_path))
    with pytest.raises(UsageError, match=r"x\.manifest\.json is not there"):
        check(tmp_path / "x.manifest.json")


def test_two_data_sets_in_a_folder_are_to_be_named(tmp_path):
    source = put_shards(tmp_path / "in")
    run_map(source, tmp_path / "done" / "a-@.tar")
    run_map(source, tmp_path / "done" / "b-@.tar")
    with pytest.raises(UsageError, match=r"a\.manifest\.json, .*b\.manifest\.json; name one"):
        check(tmp_path / "done")


def test_standard_input_is_refused():
    with pytest.raises(UsageError, match="standard input"):
        check("-", "in.tar")


# ---- against the input ------------------------------------------------------------------------------------------


def recut(folder: str | Path, records: list[dict[str, Any]], sizes: list[int], name: str = "new") -> str:
    """Write records into shards of such sizes, without a manifest; their pattern."""
    where = f"{folder}/" if isinstance(folder, Path) else folder
    for shard, size in enumerate(sizes):
        put_records(f"{where}{name}-{shard}.tar", records[:size])
        records = records[size:]
    assert not records
    return f"{where}{name}-@{len(sizes)}.tar"


def all_records(folder: str | Path, shards: int = 3) -> list[dict[str, Any]]:
    where = f"{folder}/" if isinstance(folder, Path) else folder
    return [record for shard in range(shards) for record in records_in(f"{where}in-{shard}.tar")]


def test_a_permutation_in_other_cuts_passes(folder):
    source = put_shards(folder)
    output = recut(folder, all_records(folder)[::-1], [1, 0, 9, 5])
    report = check(output, source)
    assert report.ok
    assert report.is_permutation is True


def test_compression_and_an_open_count_without_a_manifest_make_no_difference(tmp_path):
    source = put_shards(tmp_path)
    for shard in range(3):
        data = (tmp_path / f"in-{shard}.tar").read_bytes()
        (tmp_path / f"gz-00000{shard}.tar.gz").write_bytes(gzip.compress(data))
    assert check(tmp_path / "gz-@.tar.gz", source).ok


def test_a_dropped_sample_is_named(folder):
    source, records = put_shards(folder), all_records(folder)
    report = check(recut(folder, records[:7] + records[8:], [14]), source)
    assert report.is_permutation is False
    assert named(report) == [("lost", "s1-002", "in-1.tar", "")]
    assert str(report.differences[0]) == f"only in IN: key 's1-002' of shard {folder}in-1.tar"


def test_a_doubled_sample_is_named(folder):
    source, records = put_shards(folder), all_records(folder)
    report = check(recut(folder, [*records, records[3]], [8, 8]), source)
    assert named(report) == [("doubled", "s0-003", "", "new-1.tar")]


def test_a_changed_sample_is_named_with_both_shards(folder):
    source, records = put_shards(folder), all_records(folder)
    records[4]["txt"] = b"other"
    report = check(recut(folder, records, [3, 12]), source)
    assert named(report) == [("changed", "s0-004", "in-0.tar", "new-1.tar")]


def test_a_sample_that_came_from_nowhere_and_a_lost_copy_are_named(folder):
    put_shards(folder)
    records = all_records(folder)
    source = recut(folder, [*records, records[0]], [16], "twice")
    report = check(recut(folder, [*records, {"__key__": "z", "txt": b"z"}], [16]), source)
    assert named(report) == [("added", "z", "", "new-0.tar"), ("fewer", "s0-000", "twice-0.tar", "")]


@pytest.mark.parametrize("at_a_time", [1, 4, 1000])
def test_differences_do_not_depend_on_how_many_samples_are_compared_at_a_time(tmp_path, monkeypatch, at_a_time):
    monkeypatch.setattr(verify_compare, "SAMPLES_PER_PASS", at_a_time)
    source, records = put_shards(tmp_path), all_records(tmp_path)
    records[4]["txt"] = b"other"
    report = check(recut(tmp_path, [*records[:9], *records[10:], records[0]], [7, 8]), source)
    assert report.counts == {"changed": 1, "doubled": 1, "lost": 1}
    assert named(report) == [
        ("lost", "s1-004", "in-1.tar", ""),
        ("changed", "s0-004", "in-0.tar", "new-0.tar"),
        ("doubled", "s0-000", "", "new-1.tar"),
    ]


def test_ten_samples_are_named_of_every_kind_some(tmp_path):
    source, records = put_shards(tmp_path, samples=20), all_records(tmp_path)
    changed = [record | {"txt": b"other"} for record in records[:20]]
    report = check(recut(tmp_path, [*changed, *records[40:], *records[40:60]], [20, 20, 20]), source)
    assert report.counts == {"changed": 20, "lost": 20, "doubled": 20}
    assert len(report.differences) == 10
    assert {d.kind for d in report.differences} == {"changed", "lost", "doubled"}
    for difference in report.differences:
        assert difference.key in {"changed": "s0", "lost": "s1", "doubled": "s2"}[difference.kind] + difference.key[2:]


def test_samples_of_one_key_pair_off_one_to_one(tmp_path):
    first, second, third = ({"__key__": "a", "txt": text} for text in (b"1", b"2", b"3"))
    source = recut(tmp_path, [first, second], [1, 1], "old")
    report = check(recut(tmp_path, [third], [1]), source)
    assert report.counts == {"changed": 1, "lost": 1}
    assert sorted(d.key for d in report.differences) == ["a", "a"]


def test_data_sets_that_have_nothing_in_common_are_told_apart(tmp_path):
    source = put_shards(tmp_path, 1)
    report = check(put_records(tmp_path / "x.tar", [{"__key__": "x", "y": b""}]), source)
    assert report.counts == {"lost": 5, "added": 1}


def test_planted_faults_are_caught_against_the_input_too_and_the_manifest_is_checked(data):
    rewrite(data / "out-000000.tar", lambda records: records[1:])
    report = check(data / "out-@.tar", data / "in-@3.tar", options={"workers": 2})
    assert named(report) == [("lost", "s0-000", "in-0.tar", "")]
    assert "samples" in kinds(report)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_shard_that_cannot_be_read_leaves_the_question_open(data, damage):
    path = data / "out-000001.tar"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:3000])
    report = check(data / "out-@.tar", data / "in-@3.tar")
    assert damage in kinds(report)
    assert report.is_permutation is None
    assert not report.ok
    assert "not compared" in report.notes[0]


def test_a_damaged_input_is_told_too(data):
    (data / "in-0.tar").write_bytes((data / "in-0.tar").read_bytes()[:2000])
    report = check(data / "out-@.tar", data / "in-@3.tar")
    assert [(fault.kind, Path(fault.shard).name) for fault in report.faults] == [("truncated", "in-0.tar")]


def test_the_manifest_of_the_input_is_not_at_stake(data):
    set_manifest(data / "out.manifest.json", samples=99)
    assert check(data / "in-@3.tar", data / "out-@.tar").ok


def test_what_the_manifest_counts_is_told(tmp_path):
    script = "def process_sample(record):\n    return None if record['__key__'].endswith('1') else record\n"
    run_map(put_shards(tmp_path), tmp_path / "out-@.tar", script)
    report = check(tmp_path / "out-@.tar", tmp_path / "in-@3.tar")
    assert report.is_permutation is False
    assert report.counts == {"lost": 3}
    assert told_by_manifest(report.output) == "the manifest of OUT tells of 3 dropped samples"
    report.output.manifest["counts"] = {"renamed": 2, "added": 1}
    assert told_by_manifest(report.output) == "the manifest of OUT tells of 1 added samples, 2 renamed keys"


def test_a_field_called_key_counts(tmp_path):
    for name, body in (("a", b"k"), ("b", b"k"), ("c", b"l")):
        put_records(tmp_path / f"{name}.tar", [{"__key__": "a", "key": body, "x": b"1"}])
    assert check(tmp_path / "b.tar", tmp_path / "a.tar").ok
    assert check(tmp_path / "c.tar", tmp_path / "a.tar").counts == {"changed": 1}


def test_keys_that_are_no_text_are_named(tmp_path):
    storage.write_bytes(f"{tmp_path}/a.tar", tars.ustar([(b"\xff.x".decode("utf-8", "surrogateescape"), b"1")]))
    storage.write_bytes(f"{tmp_path}/b.tar", tars.ustar([("b.x", b"1")]))
    report = check(tmp_path / "b.tar", tmp_path / "a.tar")
    assert str(report.differences[0]).startswith(r"only in IN: key '\udcff'")


def test_a_pattern_that_stands_for_nothing_is_an_error(tmp_path):
    source = put_shards(tmp_path)
    with pytest.raises(UsageError, match="no such shard is there"):
        check(tmp_path / "nothing-@.tar", source)
    with pytest.raises(ShardPatternError, match="matches no shard"):
        check(tmp_path / "nothing-*.tar", source)


def test_differences_of_many_random_multisets_agree_with_counters():
    import random
    from collections import Counter

    import numpy

    rng = random.Random(4)
    for _ in range(200):
        sides = [
            [(rng.randrange(6) * 4 + k, k) for k in (rng.randrange(4) for _ in range(rng.randrange(9)))] for _ in "12"
        ]
        found = differences(*(numpy.array(side, "<u8").reshape(-1, 2) for side in sides))
        ours, theirs = Counter(sides[0]), Counter(sides[1])
        lost = ours - theirs
        new = theirs - ours
        fewer = sum(count for row, count in lost.items() if row in theirs)
        doubled = sum(count for row, count in new.items() if row in ours)
        keys = [Counter[int](), Counter[int]()]
        for side, surplus, others in ((0, lost, theirs), (1, new, ours)):
            for row, count in surplus.items():
                keys[side][row[1]] += count if row not in others else 0
        changed = (keys[0] & keys[1]).total()
        expected = {
            "lost": lost.total() - fewer - changed,
            "added": new.total() - doubled - changed,
            "changed": changed,
            "doubled": doubled,
            "fewer": fewer,
        }
        assert {kind: count for kind, (count, _) in found.items()} == {k: n for k, n in expected.items() if n}
        for left, right in found.get("changed", (0, []))[1]:
            assert sides[0][left][1] == sides[1][right][1]
            assert sides[0][left] != sides[1][right]
