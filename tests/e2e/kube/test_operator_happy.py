"""Jobs as resources on a real cluster, where nothing goes wrong: what they write is what the command line writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.kube import Kube
from support.maps import UPPER, bytes_of, run_map
from support.operated import System, condition, is_over, operated
from support.reorders import put_records

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("kube"), pytest.mark.timeout(400)]

SHARDS = 4
SAMPLES = 30


@pytest.fixture(scope="module")
def system(kube: Kube) -> Iterator[System]:
    with operated(kube) as made:
        yield made


@pytest.fixture
def data(system: System, tmp_path: Path) -> Path:
    """Shards in a folder of this machine, and in one of the same name in the storage."""
    folder = tmp_path / tmp_path.name
    folder.mkdir()
    for shard in range(SHARDS):
        records = [
            {"__key__": f"k{shard}-{number:03d}", "txt": f"text {number} ".encode() * 50, "cls": b"%d" % (number % 3)}
            for number in range(SAMPLES)
        ]
        put_records(folder / f"in-{shard}.tar", records)
        system.put(f"{folder.name}/in-{shard}.tar", (folder / f"in-{shard}.tar").read_bytes())
    return folder


def test_a_map_on_workers_writes_what_the_command_writes_and_tells_all_of_it(
    system: System, data: Path, tmp_path: Path
) -> None:
    run_map(f"{data}/in-@{SHARDS}.tar", tmp_path / "local" / "out-@.tar.gz", UPPER)
    there = f"{system.url}/{data.name}"
    with system.namespace() as space:
        space.apply(
            system.resource(
                "ShardMap",
                "upper",
                input=f"{there}/in-@{SHARDS}.tar",
                output=f"{there}/mapped/out-@.tar.gz",
                script=UPPER,
                workers={"replicas": 2},
            )
        )
        done = space.wait("shardmap", "upper", is_over, 120, "the end")
        status = done["status"]
        assert status["phase"] == "Succeeded", status
        assert status["shards"] == {"total": SHARDS, "done": SHARDS, "failed": 0}
        assert status["samples"]["written"] == SHARDS * SAMPLES
        assert [condition(done, kind) for kind in ("Complete", "Ready", "Reconciling", "Stalled", "Failed")] == [
            "True", "True", "False", "False", "False",
        ]  # fmt: skip
        assert status["manifest"].startswith(f"{there}/mapped/")
        row = space.kubectl("get", "shards", "--no-headers").split()
        assert row[:3] == ["shardmap.tarmill.dev/upper", "Succeeded", f"{SHARDS}/{SHARDS}"]
        assert "Completed" in space.kubectl("get", "events", "-o", "custom-columns=R:.reason")
        # workers leave with their job, and the run's pods end with exit code 0
        space.wait_for(lambda: not space.names("pod", "tarmill.dev/role=worker"), 60, "the end of the workers")
        [pod] = space.all("pod", "tarmill.dev/role=runner")
        assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0
    assert system.bytes_of(f"{data.name}/mapped") == {
        name: body for name, body in bytes_of(tmp_path / "local").items() if ".tar" in name
    }
    manifest = json.loads(system.get(f"{data.name}/mapped/{status['manifest'].rpartition('/')[2]}"))
    assert manifest["samples"] == SHARDS * SAMPLES
