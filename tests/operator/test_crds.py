from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.observing import NOW, ended, pod_of, resource, started, with_job

from tarmill.spec import KINDS
from tarmill_operator import crds
from tarmill_operator.crds import all_crds, main
from tarmill_operator.reconcile import reconcile
from tarmill_operator.status_schema import STATUS
from tarmill_operator.times import to_text

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(all_crds())


def test_the_files_are_what_the_specs_make(tmp_path: Path) -> None:
    main([str(tmp_path)])
    made = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert {file.name: file.read_text() for file in (ROOT / "crds").iterdir()} == made, "make crds"


def test_there_is_one_for_each_kind() -> None:
    assert {document["spec"]["names"]["kind"] for document in all_crds().values()} == {kind.name for kind in KINDS}


@pytest.mark.parametrize("name", NAMES)
def test_a_definition_is_small_enough_for_plain_apply(name: str) -> None:
    assert len(json.dumps(yaml.safe_load((ROOT / "crds" / name).read_text()))) < 150_000


def schemas(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from schemas(inner, f"{path}.{name}")
    for inner in (schema.get("items"), schema.get("additionalProperties")):
        if isinstance(inner, dict):
            yield from schemas(inner, f"{path}[]")


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_described_and_bounded(name: str) -> None:
    (version,) = all_crds()[name]["spec"]["versions"]
    spec, status = (version["schema"]["openAPIV3Schema"]["properties"][part] for part in ("spec", "status"))
    for path, schema in (*schemas(spec), *schemas(status)):
        if not path.endswith("[]"):
            assert schema.get("description"), path
    for path, schema in schemas(spec):
        if schema.get("type") == "string" and "enum" not in schema:
            assert "maxLength" in schema, path
        if schema.get("type") == "array":
            assert "maxItems" in schema, path
            assert "enum" not in schema, f"{path}: choices are of each item"


@pytest.mark.parametrize("name", NAMES)
def test_no_description_speaks_of_a_command_line(name: str) -> None:
    (version,) = all_crds()[name]["spec"]["versions"]
    for path, schema in schemas(version["schema"]["openAPIV3Schema"]):
        told = schema.get("description", "")
        assert not re.search(r"(?<![\w<-])--?[a-z]|standard (in|out)put|commas|comma-|`-`", told), f"{path}: {told}"


@pytest.mark.parametrize("name", NAMES)
def test_rules_name_fields_that_there_are(name: str) -> None:
    (version,) = all_crds()[name]["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for rule in spec["x-kubernetes-validations"]:
        for path in re.findall(r"(?:self|oldSelf)\.\??([a-zA-Z]+)(?:\.\??([a-zA-Z]+)(?!\())?", rule["rule"]):
            schema = spec["properties"][path[0]]
            if path[1] and "properties" in schema:
                assert path[1] in schema["properties"], rule["rule"]


def test_every_part_of_a_status_that_is_written_is_in_its_schema() -> None:
    observed = started(resource(run={"backoffLimit": 0}))
    words = {
        "outcome": "failed",
        "reason": "ScriptError",
        "message": "x",
        "shards": {"total": 4, "done": 1, "failed": 3},
        "samples": {"read": 1, "written": 1},
        "bytes": {"read": 1, "written": 1, "total": 9},
        "dropped": {"corrupt": 1},
        "failures": [{"shard": "a", "reason": "b", "message": "c"}],
        "manifest": "m",
        "report": "r",
        "lastProgressTime": to_text(NOW),
        "etaSeconds": 3,
    }
    pod = pod_of(observed, **ended(1, **words))
    seen = with_job(observed, "Failed")
    from dataclasses import replace

    status = reconcile(replace(seen, pods=(pod,), fresh=True), NOW).status
    unknown = [path for path in paths(status) if not in_schema(path)]
    assert unknown == []


def paths(value: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from paths(inner, (*before, name))
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, (*before, "[]"))
    else:
        yield before


def in_schema(path: tuple[str, ...]) -> bool:
    schema: dict[str, Any] = STATUS
    for part in path:
        if part == "[]":
            schema = schema["items"]
        elif part in schema.get("properties", {}):
            schema = schema["properties"][part]
        else:
            return False
    return True


def test_definitions_are_written_without_anchors() -> None:
    assert "&id" not in crds.to_yaml(all_crds()[NAMES[0]])
