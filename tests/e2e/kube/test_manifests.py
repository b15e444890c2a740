"""What is shipped for people to apply, held by a real API server against what it knows: chart, manifests, examples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.helm import EVERYTHING, rendered
from support.kube import Kube

from tarmill.cli import htextract, htmapper, htshuffle, htsort, htupload
from tarmill.cli.arguments import plain_values
from tarmill.cli.manifest import to_yaml
from tarmill.spec import KINDS
from tarmill.spec_file import write_spec_file

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("kube"), pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[3]
CRDS = ROOT / "crds"
EXAMPLES = [*sorted((ROOT / "examples" / "kubernetes").glob("*.yaml")), ROOT / "deploy" / "argocd" / "jobs.yaml"]
OF_OTHERS = ("ServiceMonitor", "PodMonitor")
"""Kinds that no plain cluster knows."""


@pytest.fixture(scope="module")
def space(kube: Kube) -> Iterator[Kube]:
    """A namespace in a cluster that knows our kinds; the definitions are left where something else brought them."""
    there = "shardmaps.tarmill.dev" in kube.names("crd")
    if not there:
        kube.kubectl("apply", "--server-side", "-f", str(CRDS))
    kube.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(CRDS), timeout_s=90)
    with kube.namespace() as made:
        yield made
    if not there:
        kube.kubectl("delete", "-f", str(CRDS), timeout_s=120)


def check(space: Kube, objects: list[dict[str, Any]]) -> None:
    """Let the server go through objects as if it took them, and refuse a field that it does not know."""
    for item in objects:
        if "namespace" in item["metadata"]:
            item["metadata"]["namespace"] = space.space
    whole = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    space.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", input=whole)


@pytest.mark.parametrize("values", [
    EVERYTHING,
    {"watchNamespaces": ["one"], "storage": {"enabled": True, "usersSecret": "u", "persistence": {"enabled": False}}},
], ids=["everything", "namespaced"])  # fmt: skip
def test_the_server_knows_each_field_of_the_chart(space: Kube, tmp_path: Path, values: dict[str, Any]) -> None:
    objects = [item for item in rendered(tmp_path, values) if item["kind"] not in OF_OTHERS]
    assert {"Deployment", "StatefulSet", "Role", "CustomResourceDefinition", "Pod"} <= {x["kind"] for x in objects}
    check(space, [item for item in objects if item["kind"] != "CustomResourceDefinition"])


def test_the_server_knows_each_field_of_the_plain_manifests(space: Kube) -> None:
    check(space, list(yaml.safe_load_all((ROOT / "deploy" / "tarmill.yaml").read_text())))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_server_takes_each_example(space: Kube, path: Path) -> None:
    check(space, list(yaml.safe_load_all(path.read_text())))


def test_the_server_takes_what_each_command_prints(space: Kube, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("def process_sample(record):\n    return record\n")
    shared = ["--task-timeout", "1.5s", "--wait-for-workers", "5m", "--store-option", "s3.region=eu-west-1"]
    lines = {
        htmapper: ["-p", str(script), "--param", "n=010", "-f", "txt", "s3://b/in-@4.tar", "s3://b/mapped-@.tar.gz"],
        htextract: ["-f", "__key__,json:a", "--top", "3", "-o", "s3://b/rows.jsonl", "s3://b/in-@4.tar"],
        htshuffle: ["--seed", "7", "--memory", "1.5GiB", "s3://b/in-@4.tar", "s3://b/mixed-@.tar"],
        htsort: ["-k", "cls:int", "--reduce", "count", "--index", "wids", "s3://b/in-@4.tar", "s3://b/sorted-@.tar"],
        htupload: ["--fetch-timeout", "0.5s", "--shuffle", "--seed", "3", "s3://b/in/", "s3://b/up-@.tar"],
    }
    printed = []
    for command, words in lines.items():
        values = plain_values([*shared, *words], *command.COMMAND.kinds)
        assert values
        printed.append(yaml.safe_load(to_yaml(write_spec_file(*command.COMMAND.read(values)))))
    assert len({item["kind"] for item in printed}) == len(KINDS)
    check(space, printed)


def test_an_index_is_one_of_a_few(space: Kube) -> None:
    example = yaml.safe_load((ROOT / "examples" / "kubernetes" / "shardmap.yaml").read_text())
    example["spec"]["index"] = ["wids", "sizes"]
    check(space, [example])
