"""Jobs as resources on a real cluster, where nothing goes wrong: what they write is what the command line writes."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pytest
from support.maps import UPPER
from support.operated import System, condition, is_over, reason
from support.shards_in_store import SAMPLES, SHARDS, Data

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("kube"), pytest.mark.timeout(400)]


def test_a_map_on_workers_writes_what_the_command_writes_and_tells_all_of_it(system: System, data: Data) -> None:
    output = f"{data.url}/mapped/out-@.tar.gz"
    resource = system.resource("ShardMap", "upper", input=data.input, output=output, script=UPPER)
    resource["spec"]["workers"]["replicas"] = 2
    with system.namespace() as space:
        space.apply(resource)
        done = space.wait("shardmap", "upper", is_over, 120, "the end")
        status = done["status"]
        assert status["phase"] == "Succeeded", status
        assert status["shards"] == {"total": SHARDS, "done": SHARDS, "failed": 0}
        assert status["samples"]["written"] == SHARDS * SAMPLES
        assert [condition(done, kind) for kind in ("Complete", "Ready", "Reconciling", "Stalled", "Failed")] == [
            "True", "True", "False", "False", "False",
        ]  # fmt: skip
        row = space.kubectl("get", "shards", "--no-headers").split()
        assert row[:3] == ["shardmap.tarmill.dev/upper", "Succeeded", f"{SHARDS}/{SHARDS}"]
        space.wait_for(
            lambda: "Completed" in space.kubectl("get", "events", "-o", "custom-columns=R:.reason"), what="the Event"
        )
        # workers leave with their job, and the runner ends with exit code 0
        space.wait_for(lambda: not space.names("pod", "tarmill.dev/role=worker"), what="the end of the workers")
        [pod] = space.all("pod", "tarmill.dev/role=runner")
        assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0
        # applying it again is no change
        space.apply(resource)
        assert space.get("shardmap", "upper")["metadata"]["generation"] == 1
        assert space.get("shardmap", "upper")["status"] == status
    assert system.bytes_of(f"{data.name}/mapped") == data.mapped()
    manifest = json.loads(system.get(f"{data.name}/mapped/{status['manifest'].rpartition('/')[2]}"))
    assert manifest["samples"] == SHARDS * SAMPLES


def test_a_chain_applied_at_once_runs_in_order(system: System, data: Data) -> None:
    def stage(kind: str, name: str, source: tuple[str, str] | None, **spec: Any) -> dict[str, Any]:
        if source:
            spec["inputFrom"] = {"kind": source[0], "name": source[1]}
        return system.resource(kind, name, **{"output": f"{data.url}/{name}/out-@.tar", **spec})

    rows = {"output": f"{data.url}/rows.csv", "format": "csv", "columns": ["__key__", "cls"]}
    chain = [
        stage("ShardExtract", "rows", ("ShardSort", "sorted"), **rows),
        stage("ShardSort", "sorted", ("ShardShuffle", "mixed"), keys=["cls:int", "__key__"], numShards=3),
        stage("ShardShuffle", "mixed", ("ShardMap", "upper"), seed=7),
        stage("ShardMap", "upper", ("ShardUpload", "up"), script=UPPER),
        stage("ShardUpload", "up", None, sources=[f"{data.url}/files/"], samplesPerShard=10),
    ]
    for number in range(40):
        system.put(f"{data.name}/files/{number:02d}.txt", b"some text %d" % number)
        system.put(f"{data.name}/files/{number:02d}.cls", b"%d" % (number % 4))
    with system.namespace() as space:
        space.apply(*chain)
        space.wait("shardextract", "rows", lambda found: reason(found) == "WaitingForInput", what="its wait")
        for resource in reversed(chain):
            kind, name = resource["kind"].lower(), resource["metadata"]["name"]
            done = space.wait(kind, name, is_over, what="the end")
            assert done["status"]["phase"] == "Succeeded", done["status"]
    lines = system.get(f"{data.name}/rows.csv").decode().splitlines()
    assert [line.split(",") for line in lines[1:]] == [
        [f"{number:02d}", str(number % 4)] for number in sorted(range(40), key=lambda number: (number % 4, number))
    ]
    with tarfile.open(fileobj=io.BytesIO(system.get(f"{data.name}/sorted/out-000000.tar"))) as archive:
        first = archive.extractfile("00.txt")
        assert first is not None
        assert first.read() == b"SOME TEXT 0"
