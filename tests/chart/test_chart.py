"""The Helm chart as it renders: what is in it, what it refuses, and that nothing of it needs more than it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.helm import CHART, EVERYTHING, NAMESPACED, ROOT, helm, needs_helm, one, rendered
from support.pods import assert_restricted

from tarmill.spec import KINDS
from tarmill_operator.children import Children
from tarmill_operator.config import from_environment
from tarmill_operator.crds import spec_schema
from tarmill_operator.model import Settings

pytestmark = needs_helm
CRD_CHART = CHART / "charts" / "tarmill-crds"


def pod_specs(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in objects:
        if item["kind"] == "Pod":
            yield item["spec"]
        elif item["kind"] in ("Deployment", "StatefulSet"):
            yield item["spec"]["template"]["spec"]


@pytest.mark.parametrize("values", [{}, EVERYTHING, NAMESPACED], ids=["defaults", "everything", "namespaced"])
def test_lint_finds_nothing(tmp_path: Path, values: dict[str, Any]) -> None:
    done = helm(tmp_path, values, "lint", "--strict", "--with-subcharts", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_definitions_are_those_of_the_repository_and_stay_when_it_goes(tmp_path: Path) -> None:
    for path in (ROOT / "crds").iterdir():
        assert (CRD_CHART / "files" / "crds" / path.name).read_text() == path.read_text(), "make crds"
    crds = [item for item in rendered(tmp_path, {}) if item["kind"] == "CustomResourceDefinition"]
    for crd in crds:
        keep = {"helm.sh/resource-policy": "keep", "argocd.argoproj.io/sync-options": "Prune=false"}
        assert crd["metadata"].pop("annotations") == keep
        assert crd == yaml.safe_load((ROOT / "crds" / f"tarmill.dev_{crd['spec']['names']['plural']}.yaml").read_text())
    assert len(crds) == len(list((ROOT / "crds").iterdir()))
    assert not [
        item for item in rendered(tmp_path, {"crds": {"install": False}}) if item["kind"] == "CustomResourceDefinition"
    ]
    alone = helm(tmp_path, {}, "template", "definitions", str(CRD_CHART))
    assert alone.returncode == 0, alone.stderr
    assert [item for item in yaml.load_all(alone.stdout, yaml.CSafeLoader) if item] == [
        item for item in rendered(tmp_path, {}) if item["kind"] == "CustomResourceDefinition"
    ]


def test_with_namespaces_nothing_holds_for_the_whole_cluster(tmp_path: Path) -> None:
    objects = rendered(tmp_path, {**NAMESPACED, "crds": {"install": False}})
    assert not [item["kind"] for item in objects if item["kind"].startswith(("Cluster", "CustomResource"))]
    roles = [item for item in objects if item["kind"] == "Role"]
    assert sorted(role["metadata"]["namespace"] for role in roles) == ["one", "system", "two"]
    rules = one(rendered(tmp_path, {}), "ClusterRole", "system-mill")["rules"]
    assert [role["rules"] for role in roles if role["metadata"]["namespace"] == "one"] == [rules]
    assert {item["metadata"]["namespace"] for item in objects} == {"one", "two", "system"}


def test_the_operator_reads_no_secret_and_gives_itself_no_rights(tmp_path: Path) -> None:
    rules = one(rendered(tmp_path, {}), "ClusterRole", "system-mill")["rules"]
    [secrets] = [rule for rule in rules if "secrets" in rule["resources"]]
    assert set(secrets["verbs"]) == {"create", "delete"}
    assert not [rule for rule in rules if "*" in rule["verbs"] + rule["resources"] + rule["apiGroups"]]
    assert not [rule for rule in rules if "rbac.authorization.k8s.io" in rule["apiGroups"]]


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_each_pod_is_one_that_restricted_lets_in(tmp_path: Path, values: dict[str, Any]) -> None:
    specs = list(pod_specs(rendered(tmp_path, values)))
    assert len(specs) == 2 + bool(values)
    for spec in specs:
        assert_restricted(spec)
        for container in spec["containers"]:
            assert container["resources"]["limits"]["memory"]


def test_only_the_operator_has_a_token(tmp_path: Path) -> None:
    objects = rendered(tmp_path, EVERYTHING)
    with_token = [spec for spec in pod_specs(objects) if spec["automountServiceAccountToken"]]
    assert [spec["containers"][0]["name"] for spec in with_token] == ["operator"]


def test_the_operator_understands_its_environment(tmp_path: Path) -> None:
    values = {**NAMESPACED, "operator": {"logFormat": "text", "progressSeconds": 2, "relistSeconds": 60}}
    container = one(rendered(tmp_path, values), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    config = from_environment({entry["name"]: entry.get("value", "given") for entry in container["env"]})
    assert (config.namespaces, config.lease, config.log_format) == (("one", "two"), "mill", "text")
    assert (config.progress_s, config.relist_s, config.port) == (2, 60, container["ports"][0]["containerPort"])
    assert config.image == "ghcr.io/tarmill/tarmill:0.1.0"


def test_an_image_may_be_named_by_its_digest(tmp_path: Path) -> None:
    digest = "sha256:" + "0123456789abcdef" * 4
    objects = rendered(tmp_path, {"image": {"tag": digest}})
    [container] = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"ghcr.io/tarmill/tarmill-operator@{digest}"


def test_one_replica_has_no_disruption_budget_that_would_keep_a_node_from_draining(tmp_path: Path) -> None:
    kinds = [item["kind"] for item in rendered(tmp_path, {"replicas": 1})]
    assert "PodDisruptionBudget" not in kinds
    assert one(rendered(tmp_path, {}), "PodDisruptionBudget")["spec"]["minAvailable"] == 1


def test_a_network_policy_lets_in_what_asks_for_metrics_alone(tmp_path: Path) -> None:
    assert "NetworkPolicy" not in {item["kind"] for item in rendered(tmp_path, {})}
    objects = rendered(tmp_path, EVERYTHING)
    policy = one(objects, "NetworkPolicy")["spec"]
    labels = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    [rule] = policy["ingress"]
    assert rule["from"] == [
        {"podSelector": {}},
        {"namespaceSelector": {"matchLabels": {"tarmill.dev/metrics": "true"}}},
    ]


def test_runners_are_found_by_the_labels_and_the_port_that_they_have(tmp_path: Path) -> None:
    monitor = one(rendered(tmp_path, EVERYTHING), "PodMonitor", "mill-runners")["spec"]
    job = {"metadata": {"name": "digits", "namespace": "team", "uid": "u-1"}, "kind": "ShardMap", "spec": {}}
    parts = Children({**job, "apiVersion": "tarmill.dev/v1alpha1"}, Settings("tarmill:1"), 1).parts(1)
    template = {part.kind: part.make() for part in parts}["Job"]["spec"]["template"]
    assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert set(monitor["podTargetLabels"]) <= template["metadata"]["labels"].keys()
    ports = [port["name"] for port in template["spec"]["containers"][0]["ports"]]
    assert [endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]] == [ports[0]] == ["status"]
    namespaced = one(rendered(tmp_path, {**EVERYTHING, **NAMESPACED}), "PodMonitor", "mill-runners")
    assert namespaced["spec"]["namespaceSelector"] == {"matchNames": ["one", "two"]}


def notes(folder: Path, values: dict[str, Any]) -> str:
    """What `helm install` prints in the end; helm shows it only where there is a cluster, hence the detour."""
    chart = folder / "chart"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "NOTES.txt").rename(chart / "templates" / "notes.yaml")
    return helm(folder, values, "template", "mill", str(chart), "--debug", "-s", "templates/notes.yaml").stdout


@pytest.mark.parametrize(("values", "told"), [
    ({}, ["all namespaces", "s3://bucket/out-@.tar", "kubectl create secret generic aws", "kubectl get shards"]),
    (EVERYTHING, ["http://mill-store.system.svc.cluster.local/out-@.tar", "secret generic store"]),
    ({**NAMESPACED, "crds": {"install": False}}, ["kubectl --namespace one apply", "the chart tarmill-crds"]),
], ids=["defaults", "everything", "namespaced"])  # fmt: skip
def test_the_notes_show_a_job_that_would_be_looked_after(
    tmp_path: Path, values: dict[str, Any], told: list[str]
) -> None:
    text = notes(tmp_path, values)
    assert [words for words in told if words not in text] == []
    job = yaml.safe_load(text.partition("<<'END'\n")[2].partition("\nEND\n")[0])
    assert job["spec"].keys() <= spec_schema(KINDS[0])["properties"].keys()
    [source] = job["spec"]["runner"]["envFrom"]
    assert f"secret generic {source['secretRef']['name']} " in text


@pytest.mark.parametrize(("values", "words"), [
    ({"replicas": "two"}, "replicas"),
    ({"watchNamespaces": ["Not A Name"]}, "watchNamespaces"),
    ({"imagee": {}}, "imagee"),
    ({"image": {"tag": "a b"}}, "tag"),
    ({"operator": {"logLevel": "LOUD"}}, "logLevel"),
    ({"storage": {"enabled": True}}, "storage.usersSecret is missing: name a Secret with htpasswd"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_values_that_cannot_be_are_refused_by_name(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    done = helm(tmp_path, values, "template", "mill", str(CHART))
    assert done.returncode != 0
    assert words in done.stderr


def test_the_dashboard_asks_for_metrics_that_there_are(tmp_path: Path) -> None:
    config = one(rendered(tmp_path, EVERYTHING), "ConfigMap", "mill-dashboard")
    panels = json.loads(config["data"]["tarmill.json"])["panels"]
    sources = "".join((ROOT / path).read_text() for path in (
        "operator/tarmill_operator/metrics.py", "runner/tarmill/serve/metrics.py",
    ))  # fmt: skip
    for panel in panels:
        for target in panel["targets"]:
            for word in target["expr"].replace("(", " ").replace("[", " ").replace(")", " ").split():
                if word.startswith("tarmill_"):
                    stem = word.removesuffix("_total").removesuffix("_bucket")
                    assert stem in sources or stem.removeprefix("tarmill_") in sources, word
