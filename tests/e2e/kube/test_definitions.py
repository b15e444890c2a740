"""The definitions in `crds/`, as a real API server takes them: what it accepts, what it refuses, in which words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.kube import Kube, KubectlError
from support.operated import System

from tarmill.spec import KINDS, Kind

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("kube"), pytest.mark.timeout(400)]

CRDS = Path(__file__).parents[3] / "crds"
ROLES = {"runner", "workers", "run"}


@pytest.fixture(scope="module")
def space(system: System) -> Iterator[Kube]:
    """A namespace in a cluster that knows our kinds, and does nothing about them."""
    with system.stopped(), system.home.namespace() as made:
        yield made


def shard_map(name: str, **spec: Any) -> dict[str, Any]:
    whole = {"input": "http://web/in-@4.tar", "output": "http://web/out-@4.tar", "script": "x = 1\n"} | spec
    given = {field: value for field, value in whole.items() if value is not None}
    return {"apiVersion": "tarmill.dev/v1alpha1", "kind": "ShardMap", "metadata": {"name": name}, "spec": given}


def of_kind(kind: Kind, name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "tarmill.dev/v1alpha1", "kind": kind.name, "metadata": {"name": name}, "spec": spec}


def refusal(space: Kube, *resources: dict[str, Any]) -> str:
    with pytest.raises(KubectlError) as caught:
        space.apply(*resources)
    return str(caught.value)


def spec_of(kind: Kind) -> Any:
    """The schema of a kind's spec."""
    return schema_of(kind)["properties"]["spec"]


def schema_of(kind: Kind) -> Any:
    [path] = CRDS.glob(f"*_{kind.name.lower()}s.yaml")
    return yaml.safe_load(path.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def rules(kind: Kind) -> list[tuple[str, bool]]:
    """The message of each rule of a kind, and whether it is about a change."""

    def within(schema: Any) -> Iterator[tuple[str, bool]]:
        for rule in schema.get("x-kubernetes-validations", []):
            yield rule["message"], "oldSelf" in rule["rule"]
        for part in schema.get("properties", {}).values():
            yield from within(part)

    return list(within(schema_of(kind)))


def another(schema: Any) -> Any:
    """A value that a schema lets in and that is not its default."""
    if "enum" in schema:
        return next(value for value in schema["enum"] if value != schema.get("default"))
    if schema.get("x-kubernetes-int-or-string"):
        return 77
    match schema["type"]:
        case "boolean":
            return not schema.get("default")
        case "integer" | "number":
            return 77
        case "string":
            return "other"
        case "array":
            return [another(schema["items"])]
    if "additionalProperties" in schema:
        return {"other": another(schema["additionalProperties"])}
    inner = schema.get("properties", {})
    names = schema.get("required") or (inner if "default" in schema else list(inner)[:1])
    return {name: another(inner[name]) for name in names}


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


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_cannot_be_is_refused_with_what_to_do(space: Kube, kind: Kind) -> None:
    """Every rule for values: a few resources break all of them, and the server says the words of each."""
    fields = set(spec_of(kind)["properties"])
    scripts = {"script": "x", "reduceScript": "x"} | {
        name: {"path": "p", "configMap": {"name": "n", "key": "k"}} for name in ("scriptFrom", "reduceScriptFrom")
    }
    env = [{"name": "AWS_SECRET_ACCESS_KEY", "value": "oh"}]
    run = {"backoffLimit": -1, "backoffBaseSeconds": 20, "backoffMaxSeconds": 10, "activeDeadlineSeconds": -1}
    wrong = [
        {
            "output": "-",
            "input": "-",
            "sources": ["-"],
            **scripts,
            "workers": {"replicas": -1, "threads": 0, "env": env},
        },
        {"output": "http://me:oh@web/o", "input": "http://me:oh@web/i", "rejected": "sftp://me:oh@web/r"}
        | {"sources": ["http://me:oh@web/"], "inputFrom": {"kind": "ShardMap", "name": "other"}},
        {"output": "s3://b/o-@.tar", "sources": ["/photos"], "runner": {"env": env}}
        | {"run": {**run, "ttlSecondsAfterFinished": -2}, "failure": {"maxWorkerRestarts": -2}},
    ]
    resources = [of_kind(kind, "9.x" * 14, **{n: v for n, v in one.items() if n in fields | ROLES}) for one in wrong]
    told = refusal(space, *resources)
    assert [message for message, changes in rules(kind) if not changes and message not in told] == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_run_is_changed_only_by_beginning_another_one(space: Kube, kind: Kind) -> None:
    """Every rule for changes: an edit of all fields at once is refused with the name of each."""
    schema = spec_of(kind)
    scripts = {name for name in ("script", "reduceScript") if name in schema["properties"]}
    held = {
        "output": "s3://b/out-@.tar",
        "input": "s3://b/in-@4.tar",
        "sources": ["s3://b/in/"],
        **dict.fromkeys(scripts, "x"),
    }
    held = {name: value for name, value in held.items() if name in schema["properties"]}
    space.apply(of_kind(kind, "held", **held))
    taken = {"run", "input", *scripts}
    other = {name: another(part) for name, part in schema["properties"].items() if name not in taken}
    run = {name: another(part) for name, part in schema["properties"]["run"]["properties"].items() if name != "runId"}
    other = {**other, "run": {**run, "backoffMaxSeconds": 77}, "workers": {**other["workers"], "replicas": 5}}
    told = refusal(space, of_kind(kind, "held", **other))
    assert [message for message, changes in rules(kind) if changes and message not in told] == []
    free = {
        "workers": {"replicas": 5},
        "run": {"suspend": True, "ttlSecondsAfterFinished": 9, "deleteWhenExpired": True},
    }
    space.apply(of_kind(kind, "held", **held, **free))
    space.apply(of_kind(kind, "held", **{**other, "run": {**other["run"], "runId": "second"}}))
    assert space.get(kind.name, "held")["spec"]["output"] == other["output"]


def test_a_value_that_is_none_of_the_known_is_refused(space: Kube) -> None:
    assert "Unsupported value" in refusal(space, shard_map("wrong", onError="shrug"))
    assert "give either input or inputFrom" in refusal(space, shard_map("wrong", input=None))
    assert "give either script or scriptFrom" in refusal(space, shard_map("wrong", script=None))


def test_a_seed_is_a_number_or_a_text(space: Kube) -> None:
    for name, seed in (("number", 7), ("text", "random")):
        shuffle = shard_map(name, seed=seed, script=None) | {"kind": "ShardShuffle"}
        space.apply(shuffle)
        assert space.get("shardshuffle", name)["spec"]["seed"] == seed


def test_another_manager_and_another_apply_change_nothing(space: Kube) -> None:
    """As GitOps tools do: over and over, by server-side apply under a name of their own, or as kubectl did before."""
    resource = shard_map("again", runner={"env": [{"name": "A", "value": "b"}]}, options={"taskTimeout": "5m"})
    text = json.dumps(resource)
    status = json.dumps({"status": {"observedGeneration": 1, "phase": "Running"}})
    for flags in (["--server-side", "--field-manager=argocd"], ["--server-side", "--field-manager=flux"], []):
        for _ in range(2):
            space.kubectl("apply", *flags, "-f", "-", input=text)
            patch = ["--subresource=status", "--type=merge", "--field-manager=tarmill-operator", "-p", status]
            space.kubectl("patch", "shardmap", "again", *patch)
    assert space.get("shardmap", "again")["metadata"]["generation"] == 1
    assert space.kubectl("diff", "-f", "-", input=text) == "", "an exit code that is not 0 tells of a difference"


def test_explain_and_get_read_well(space: Kube) -> None:
    assert "bad sample or shard" in space.kubectl("explain", "shardmap.spec.onError")
    for kind in KINDS:
        for part in ("", ".spec", ".spec.options", ".spec.run", ".status"):
            assert "<no description>" not in space.kubectl("explain", f"{kind.name.lower()}{part}"), part
    space.apply(shard_map("shown"))
    head = space.kubectl("get", "shards", "-o", "wide").splitlines()[0].split()
    assert head == ["NAME", "PHASE", "SHARDS", "FAILED", "WORKERS", "ETA", "AGE", "REASON", "ATTEMPT", "OUTPUT"]
