"""The objects that a run consists of."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support.observing import SETTINGS, UID, resource
from support.pods import assert_restricted

from tarmill_operator.children import Children, job_document
from tarmill_operator.merge import merged
from tarmill_operator.model import Resource


def made(item: Resource | None = None, **settings: Any) -> dict[str, Resource]:
    children = Children(item or resource(), replace(SETTINGS, dask_operator=True, **settings), 1)
    return {part.kind: part.make() for part in children.parts(2)}


def pod_specs(objects: dict[str, Resource]) -> dict[str, Resource]:
    found = {}
    for kind, one in objects.items():
        if kind in ("Job", "Deployment"):
            found[kind] = one["spec"]["template"]["spec"]
        if kind == "DaskCluster":
            found |= {role: one["spec"][role]["spec"] for role in ("worker", "scheduler")}
    return found


@pytest.mark.parametrize("engine", ["native", "dask-kubernetes"])
def test_every_pod_passes_the_restricted_standard_and_holds_no_token(engine: str) -> None:
    for spec in pod_specs(made(resource(cluster={"engine": engine}))).values():
        assert spec["automountServiceAccountToken"] is False
        assert_restricted(spec)
        for container in spec["containers"]:
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


@pytest.mark.parametrize("engine", ["native", "dask-kubernetes"])
def test_everything_is_named_labelled_and_owned(engine: str) -> None:
    for one in made(resource(cluster={"engine": engine})).values():
        metadata = one["metadata"]
        assert len(metadata["name"]) <= 63
        assert metadata["labels"]["tarmill.dev/uid"] == UID
        assert metadata["labels"]["tarmill.dev/run"] == "1"
        assert not any(name.startswith("dask.org") for name in metadata["labels"])
        (owner,) = metadata["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (UID, True, False)


def test_the_longest_name_still_fits() -> None:
    item = resource()
    item["metadata"]["name"] = "a" * 40
    for one in made(item).values():
        assert len(one["metadata"]["name"]) + len("-5d4f9c7b8d-x2x9z") <= 80
        assert len(one["metadata"]["name"]) <= 63


def test_a_template_cannot_take_away_the_labels_by_which_pods_are_found() -> None:
    template = {"metadata": {"labels": {"tarmill.dev/uid": "x", "tarmill.dev/role": "y", "team": "a"}}}
    item = resource(workers={"replicas": 2, "podTemplate": template}, runner={"podTemplate": template})
    objects = made(item)
    for kind, role in (("Job", "runner"), ("Deployment", "worker")):
        labels = objects[kind]["spec"]["template"]["metadata"]["labels"]
        assert (labels["tarmill.dev/uid"], labels["tarmill.dev/role"], labels["team"]) == (UID, role, "a")
    selector = objects["Deployment"]["spec"]["selector"]["matchLabels"]
    assert selector.items() <= objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()


def test_the_policy_lets_in_the_run_s_own_pods_and_for_progress_the_operator() -> None:
    policy = made()["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == {"tarmill.dev/uid": UID, "tarmill.dev/run": "1"}
    own, status = policy["ingress"]
    assert own["from"] == [{"podSelector": policy["podSelector"]}]
    assert status["ports"] == [{"port": 8788}]
    assert status["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "tarmill-system"}


def test_the_runner_reads_the_kind_s_own_fields_and_where_scripts_are() -> None:
    item = resource(
        options={"taskTimeout": "5m"},
        scriptFrom={"configMap": {"name": "scripts", "key": "map.py"}},
        image="mine:1",
        failure={"onPoisonShard": "Fail"},
        run={"suspend": False},
    )
    document = job_document(item)
    assert document["spec"] == {
        "input": "s3://b/in-@4.tar",
        "output": "s3://b/out-@4.tar",
        "options": {"taskTimeout": "5m"},
        "scriptPath": "/etc/tarmill-scripts/script/map.py",
    }
    job = made(item)["Job"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    assert job["backoffLimit"] == 0
    assert container["image"] == "mine:1"
    assert "--fail-fast" in container["args"]
    assert {"name": "script-0", "mountPath": "/etc/tarmill-scripts/script", "readOnly": True} in container[
        "volumeMounts"
    ]
    assert json.loads(made(item)["ConfigMap"]["data"]["job.json"]) == document


def test_a_person_s_fields_are_laid_over_ours_and_lists_of_named_things_are_merged() -> None:
    role = {
        "resources": {"limits": {"memory": "4Gi"}},
        "env": [{"name": "AWS_REGION", "value": "x"}, {"name": "MEMORY_LIMIT", "value": "1G"}],
        "nodeSelector": {"pool": "spot"},
        "podTemplate": {"spec": {"containers": [{"name": "worker", "lifecycle": {}}], "hostNetwork": None}},
    }
    spec = made(resource(workers={"replicas": 1, "threads": 4} | role))["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    variables = {one["name"]: one for one in container["env"]}
    assert variables["AWS_REGION"]["value"] == "x"
    assert variables["MEMORY_LIMIT"]["value"] == "1G"
    assert "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE" in variables
    assert (container["lifecycle"], spec["nodeSelector"]) == ({}, {"pool": "spot"})
    assert container["command"][container["command"].index("--nthreads") + 1] == "4"


@pytest.mark.parametrize(
    ("below", "above", "result"),
    [
        ({"a": 1, "b": 2}, {"b": None, "c": 3}, {"a": 1, "c": 3}),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "2"}, {"name": "B"}]},
         {"env": [{"name": "A", "value": "2"}, {"name": "B"}]}),
        ({"args": ["a", "b"]}, {"args": ["c"]}, {"args": ["c"]}),
        ({"env": [{"name": "A"}]}, {"env": "x"}, {"env": "x"}),
        ({"env": [{"name": "A"}]}, {"env": ["x"]}, {"env": [{"name": "A"}, "x"]}),
    ],
)  # fmt: skip
def test_merging(below: Any, above: Any, result: Any) -> None:
    assert merged(below, above) == result


@pytest.mark.parametrize("engine", ["native", "dask-kubernetes"])
@pytest.mark.parametrize("replicas", [0, 2])
def test_each_part_is_announced_by_the_kind_and_name_that_it_has(engine: str, replicas: int) -> None:
    item = resource(cluster={"engine": engine}, workers={"replicas": replicas})
    for part in Children(item, replace(SETTINGS, dask_operator=True), 1).parts(2):
        one = part.make()
        assert (one["kind"], one["metadata"]["name"]) == (part.kind, part.name)
