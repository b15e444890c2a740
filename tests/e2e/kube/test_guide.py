"""The guide for Kubernetes: its first job runs, and a real API server takes every resource that a page shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.operated import System, is_over, phase
from support.shards_in_store import SAMPLES, SHARDS, Data

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("kube"), pytest.mark.timeout(400)]

PAGES = sorted((Path(__file__).parents[3] / "docs" / "kubernetes").glob("*.md"))
BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STORE = "http://tarmill-store.tarmill-system.svc.cluster.local"


def resources_in(page: Path) -> list[dict[str, Any]]:
    """The resources of our kinds in a page that are whole."""
    documents = [one for block in BLOCK.findall(page.read_text()) for one in yaml.safe_load_all(block)]
    return [one for one in documents if str(one.get("apiVersion")).startswith("tarmill.dev/")]


def test_the_first_jobs_of_the_guide_run(system: System, data: Data) -> None:
    for shard in range(SHARDS):
        system.put(f"first/train-{shard}.tar", (data.folder / f"in-{shard}.tar").read_bytes())
    page = next(page for page in PAGES if page.name == "index.md")
    found = json.loads(json.dumps(resources_in(page)).replace(STORE, system.url))
    assert [one["metadata"]["name"] for one in found] == ["upper", "mixed"]
    with system.namespace() as space:
        space.apply(*found)
        for one in found:
            done = space.wait(one["kind"], one["metadata"]["name"], is_over, 120, "the end")
            assert phase(done) == "Succeeded", done["status"]
            assert done["status"]["samples"]["written"] == SHARDS * SAMPLES
        space.kubectl("wait", "shardmap/upper", "--for=condition=Complete", "--timeout=5s")


def test_the_api_server_takes_every_resource_that_a_page_shows(system: System) -> None:
    found = [one for page in PAGES for one in resources_in(page)]
    assert {one["kind"] for one in found} >= {"ShardMap", "ShardExtract", "ShardShuffle", "ShardSort", "ShardUpload"}
    with system.namespace() as space:
        for one in found:
            text = json.dumps(one)
            space.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", input=text)
