"""The definitions in `crds/`, as a real API server takes them: what it accepts, what it refuses, in which words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.kube import Kube, KubectlError
from support.operated import System

from tarmill.spec import KINDS

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("kube"), pytest.mark.timeout(400)]

CRDS = Path(__file__).parents[3] / "crds"


@pytest.fixture(scope="module")
def space(system: System) -> Iterator[Kube]:
    """A namespace in a cluster that knows our kinds, and does nothing about them."""
    with system.stopped(), system.home.namespace() as made:
        yield made


def shard_map(name: str, **spec: Any) -> dict[str, Any]:
    whole = {"input": "http://web/in-@4.tar", "output": "http://web/out-@4.tar", "script": "x = 1\n"} | spec
    given = {field: value for field, value in whole.items() if value is not None}
    return {"apiVersion": "tarmill.dev/v1alpha1", "kind": "ShardMap", "metadata": {"name": name}, "spec": given}


def refusal(space: Kube, resource: dict[str, Any]) -> str:
    with pytest.raises(KubectlError) as caught:
        space.apply(resource)
    return str(caught.value)


def test_the_api_server_takes_all_five_kinds(space: Kube) -> None:
    listed = space.kubectl("api-resources", "--api-group=tarmill.dev", "-o", "name").split()
    assert sorted(listed) == sorted(f"{path.stem.partition('_')[2]}.tarmill.dev" for path in CRDS.glob("*.yaml"))
    assert len(listed) == len(KINDS)


def test_a_new_resource_has_its_defaults_and_is_not_current_yet(space: Kube) -> None:
    space.apply(shard_map("fresh"))
    found = space.get("shardmap", "fresh")
    assert found["status"]["observedGeneration"] == -1
    assert found["spec"]["workers"]["replicas"] == 2
    assert found["spec"]["run"]["backoffLimit"] == 3
    space.apply(shard_map("fresh"))
    assert space.get("shardmap", "fresh")["metadata"]["generation"] == found["metadata"]["generation"] == 1


@pytest.mark.parametrize(("change", "message"), [
    ({"inputFrom": {"kind": "ShardMap", "name": "other"}}, "give either input or inputFrom"),
    ({"input": None}, "give either input or inputFrom"),
    ({"script": None}, "give either script or scriptFrom"),
    ({"output": "-"}, "a pod has no terminal"),
    ({"workers": {"replicas": -1}}, "workers.replicas is 0 to 10000"),
    ({"run": {"backoffBaseSeconds": 20, "backoffMaxSeconds": 10}}, "at most run.backoffMaxSeconds"),
    ({"failure": {"maxWorkerRestarts": -2}}, "-1 for no limit"),
    ({"onError": "shrug"}, "Unsupported value"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_what_cannot_be_is_refused_with_what_to_do(space: Kube, change: dict[str, Any], message: str) -> None:
    assert message in refusal(space, shard_map("wrong", **change))


def test_a_seed_is_a_number_or_a_text(space: Kube) -> None:
    for name, seed in (("number", 7), ("text", "random")):
        shuffle = shard_map(name, seed=seed, script=None) | {"kind": "ShardShuffle"}
        space.apply(shuffle)
        assert space.get("shardshuffle", name)["spec"]["seed"] == seed


@pytest.mark.parametrize(("name", "message"), [
    ("a" * 41, "40 characters at most"), ("a.b", "a letter first"), ("9lives", "a letter first"),
])  # fmt: skip
def test_a_name_that_its_pods_cannot_carry_is_refused(space: Kube, name: str, message: str) -> None:
    assert message in refusal(space, shard_map(name))


def test_a_run_is_changed_only_by_beginning_another_one(space: Kube) -> None:
    space.apply(shard_map("held"))
    changed = {"output": "http://web/other-@4.tar"}
    assert "output is immutable; give run.runId another value" in refusal(space, shard_map("held", **changed))
    space.apply(shard_map("held", workers={"replicas": 5}, run={"suspend": True, "ttlSecondsAfterFinished": 9}))
    space.apply(shard_map("held", **changed, run={"runId": "second"}))
    assert space.get("shardmap", "held")["spec"]["output"] == changed["output"]


def test_explain_and_get_read_well(space: Kube) -> None:
    assert "bad sample or shard" in space.kubectl("explain", "shardmap.spec.onError")
    space.apply(shard_map("shown"))
    head = space.kubectl("get", "shards", "-o", "wide").splitlines()[0].split()
    assert head == ["NAME", "PHASE", "SHARDS", "FAILED", "WORKERS", "ETA", "AGE", "REASON", "ATTEMPT", "OUTPUT"]
