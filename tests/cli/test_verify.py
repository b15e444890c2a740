"""`tarmill verify` and `tarmill clean` as a person or a program uses them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.daskcluster import DaskCluster
from support.maps import command, finished_shards, put_records, put_shards, records_in, run_map

from tarmill.cli import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of each test: in-0.tar ... and out-000000.tar ... with its manifest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    put_shards(tmp_path, 3)
    run_map("in-@3.tar", "out-@.tar")
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main.command, [*arguments])


def verify(*arguments: str) -> Result:
    return call("verify", "-j1", *arguments)


def change(path: str) -> None:
    first, *rest = records_in(path)
    put_records(path, [first | {"txt": b"other"}, *rest])


def test_all_well_is_one_line():
    result = verify("-q", "out-@.tar")
    assert (result.exit_code, result.stderr) == (0, "")
    [line] = result.stdout.splitlines()
    assert line.startswith("out-@.tar is as out.manifest.json says: 3 shards, 15 samples, 33,792 bytes, digest ")


def test_a_permutation_is_one_line():
    result = verify("-q", "in-@3.tar", "out-@.tar")
    assert result.exit_code == 0
    [line] = result.stdout.splitlines()
    assert line.startswith(
        "out-@.tar holds just the samples of in-@3.tar, and is as out.manifest.json says: 15 samples in 3 and 3 shards"
    )


def test_faults_are_told_on_standard_error_with_the_shards_and_exit_code_1():
    change("out-000001.tar")
    os.unlink("out-000002.tar")
    result = verify("out-@.tar")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "out-000002.tar is not there\n" in result.stderr
    assert "out-000001.tar: its samples have the digest " in result.stderr
    assert result.stderr.splitlines()[-1] == "error: out-@.tar is not as it should be: 3 faults in 2 shards"


def test_json_lines_are_json_to_the_last_line():
    assert [json.loads(line)["event"] for line in verify("out-@.tar", "--log-format", "json").stderr.splitlines()]
    os.unlink("out-000002.tar")
    events = [json.loads(line) for line in verify("out-@.tar", "--log-format", "json").stderr.splitlines()]
    assert [event["event"] for event in events[-2:]] == ["fault", "error"]
    assert events[-2]["message"] == "out-000002.tar is not there"


def test_the_samples_that_differ_are_named():
    change("out-000001.tar")
    os.unlink("out.manifest.json")
    result = verify("-q", "in-@3.tar", "out-@.tar")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "changed, same key on both sides and other contents: key 's1-000' of shard in-1.tar and of out-000001.tar",
        "error: out-@.tar does not hold just the samples of in-@3.tar: 15 samples in IN, 15 in OUT (1 changed)",
    ]


def test_the_first_20_faults_are_told_and_how_many_there_are():
    put_shards(Path(), 25, 1, name="many")
    run_map("many-{0..24}.tar", "copy-@.tar")
    for path in Path().glob("copy-*.tar"):
        path.unlink()
    lines = verify("-q", "copy-@.tar").stderr.splitlines()
    assert len(lines) == 22
    assert lines[20] == "... and 5 more faults"
    assert "25 faults in 25 shards" in lines[21]


def test_what_the_manifest_tells_is_said_and_is_no_excuse():
    manifest = json.loads(Path("out.manifest.json").read_text())
    change("out-000001.tar")
    manifest["counts"]["renamed"] = 3
    Path("out.manifest.json").write_text(json.dumps(manifest))
    result = verify("in-@3.tar", "out-@.tar")
    assert result.exit_code == 1
    assert result.stderr.endswith("; the manifest of OUT tells of 3 renamed keys\n")


def test_the_result_as_json_is_all_that_standard_output_has():
    good = verify("--json", "in-@3.tar", "out-@.tar")
    found = json.loads(good.stdout)
    assert good.exit_code == 0
    assert (found["ok"], found["permutation"], found["faults"]) == (True, True, [])
    assert found["input"]["digest"] == found["output"]["digest"]
    change("out-000001.tar")
    bad = verify("--json", "in-@3.tar", "out-@.tar")
    assert bad.exit_code == 1
    found = json.loads(bad.stdout)
    assert found["permutation"] is False
    assert found["differences"] == {"changed": 1}
    assert found["examples"] == [
        {"kind": "changed", "key": "s1-000", "input_shard": "in-1.tar", "output_shard": "out-000001.tar"}
    ]
    assert {fault["shard"] for fault in found["faults"]} == {"out-000001.tar"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in-@3.tar"], "in.manifest.json is not there"),
        ([], "0 data sets are named"),
        (["a.tar", "b.tar", "c.tar"], "3 data sets are named"),
        (["in-@.tar"], "in.manifest.json is not there"),
        (["--key-function", "(", "out-@.tar"], "key"),
    ],
)
def test_what_cannot_be_asked_has_exit_code_2(arguments, message):
    result = verify(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.real
@pytest.mark.xdist_group("dask")
def test_a_cluster_finds_the_same_as_this_machine(folder):
    pytest.importorskip("distributed")
    change("out-000001.tar")
    here = verify("--json", "in-@3.tar", "out-@.tar")
    (folder / "dask").mkdir()
    with DaskCluster(folder / "dask", workers=2) as cluster:
        arguments = ["verify", "-c", cluster.host_and_port, "--json", "in-@3.tar", "out-@.tar"]
        # distributed itself warns of this and that
        there = command(arguments, folder, tool="tarmill", PYTHONWARNINGS="default")
    assert there.returncode == here.exit_code == 1
    assert json.loads(there.stdout) == json.loads(here.stdout)


def age(folder: Path, seconds: float = 100) -> None:
    for path in folder.rglob("*"):
        when = path.stat().st_mtime - seconds
        os.utime(path, (when, when))


def test_clean_lists_with_sizes_and_removes_nothing_on_a_dry_run(folder):
    age(folder / "_tarmill")
    result = call("clean", "--all", ".", "--dry-run")
    assert result.exit_code == 0
    *lines, total = result.stdout.splitlines()
    sizes = {path: int(size.replace(",", "")) for size, path in (line.split() for line in lines)}
    assert sizes == {str(path): path.stat().st_size for path in Path("_tarmill").rglob("*.json")}
    assert total == f"would remove 4 files of 1 job, {sum(sizes.values()):,} bytes"


def test_clean_says_how_much_went(folder):
    age(folder / "_tarmill")
    [job] = os.listdir("_tarmill")
    result = call("clean", job)
    assert result.exit_code == 0
    assert result.stdout.startswith("removed 4 files of 1 job, 1,")
    assert result.stderr == ""
    assert sorted(os.listdir()) == sorted(
        [*(f"in-{n}.tar" for n in range(3)), *(f"out-00000{n}.tar" for n in range(3)), "out.manifest.json"]
    )
    assert call("clean", "--all", ".").stdout == "removed 0 files of 0 jobs, 0 bytes\n"


def test_clean_warns_of_a_job_that_is_not_complete(folder):
    age(folder / "_tarmill")
    os.unlink("out.manifest.json")
    result = call("clean", "--all", "out-@.tar")
    assert result.exit_code == 0
    assert "is not complete" in result.stderr
    assert "a rerun starts over" in result.stderr


def test_clean_refuses_a_job_that_may_be_running_without_force(folder):
    run_map("in-@3.tar", "more-@.tar")
    running = finished_shards(folder)
    first = running[0].parent
    age(first)
    result = call("clean", "--all", ".")
    assert result.exit_code == 2
    assert "may be running" in result.stderr
    assert "--force" in result.stderr
    assert not first.exists()
    assert len(finished_shards(folder)) == 3
    assert call("clean", "--all", ".", "--dry-run").exit_code == 0
    assert len(finished_shards(folder)) == 3
    assert call("clean", "--all", ".", "--force").exit_code == 0
    assert finished_shards(folder) == []


def test_clean_of_no_job_is_a_usage_error():
    result = call("clean", "out-@.tar")
    assert result.exit_code == 2
    assert "--all" in result.stderr


def test_both_stand_in_the_help_of_tarmill():
    told = call("--help").stdout
    assert "verify" in told
    assert "clean" in told
