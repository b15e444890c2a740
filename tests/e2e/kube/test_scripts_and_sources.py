"""Where a resource's script and an upload's files may be, on a real cluster."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from support.kube import Kube
from support.maps import UPPER
from support.operated import System, is_over, phase
from support.shards_in_store import Data

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("kube"), pytest.mark.timeout(400)]

FILES = {"a.txt": "text a", "a.cls": "1", "b.txt": "text b", "b.cls": "2"}


def config_map(name: str, data: dict[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def mounted(name: str, path: str) -> dict[str, Any]:
    """What a runner says to have a ConfigMap as files."""
    return {
        "volumes": [{"name": "more", "configMap": {"name": name}}],
        "volumeMounts": [{"name": "more", "mountPath": path, "readOnly": True}],
    }


def succeed(space: Kube, *resources: dict[str, Any]) -> None:
    space.apply(*resources)
    for resource in resources:
        done = space.wait(resource["kind"], resource["metadata"]["name"], is_over, 120, "the end")
        assert phase(done) == "Succeeded", done["status"]


def test_a_script_may_be_in_a_config_map_or_in_a_file_of_the_runner(system: System, data: Data) -> None:
    def upper(name: str, **spec: Any) -> dict[str, Any]:
        return system.resource("ShardMap", name, input=data.input, output=f"{data.url}/{name}/out-@.tar.gz", **spec)

    of_config_map = {"configMap": {"name": "scripts", "key": "upper.py"}}
    with system.namespace() as space:
        space.apply(config_map("scripts", {"upper.py": UPPER}))
        succeed(
            space,
            upper("by-key", scriptFrom=of_config_map, workers={"replicas": 1}),
            upper("by-path", scriptFrom={"path": "/app/upper.py"}, runner=mounted("scripts", "/app")),
        )
    for name in ("by-key", "by-path"):
        assert system.bytes_of(f"{data.name}/{name}") == data.mapped()


def test_files_may_be_in_a_store_in_a_volume_or_in_a_list(system: System, data: Data) -> None:
    def upload(name: str, source: str, **spec: Any) -> dict[str, Any]:
        output = f"{data.url}/{name}/out-@.tar"
        return system.resource("ShardUpload", name, sources=[source], output=output, **spec)

    for name, text in FILES.items():
        system.put(f"{data.name}/files/{name}", text.encode())
    rows = [f"{key},{data.url}/files/{key}.txt,{FILES[f'{key}.cls']}" for key in ("a", "b")]
    system.put(f"{data.name}/list.csv", "\n".join(["__key__,url,label", *rows]).encode())
    with system.namespace() as space:
        space.apply(config_map("files", FILES))
        succeed(
            space,
            upload("by-prefix", f"{data.url}/files/"),
            # what a ConfigMap shows are links
            upload("by-volume", "/files", followSymlinks=True, runner=mounted("files", "/files")),
            upload("by-list", f"{data.url}/list.csv", columns={"txt": "@url", "cls": "label"}, workers={"replicas": 1}),
        )
    for name in ("by-prefix", "by-volume", "by-list"):
        [shard] = system.bytes_of(f"{data.name}/{name}").values()
        with tarfile.open(fileobj=io.BytesIO(shard)) as archive:
            found = {member.name: archive.extractfile(member).read().decode() for member in archive}  # type: ignore[union-attr]
        assert found == FILES
