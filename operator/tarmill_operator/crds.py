"""The five CustomResourceDefinitions, made from the runner's specs: `python -m tarmill_operator.crds FOLDER`.

Validation is OpenAPI and CEL in the API server: no webhook, no certificate of ours that may run out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from tarmill.spec import KINDS, Kind, ReorderOptions, ReorderSpec, RunOptions
from tarmill.spec_base import camel
from tarmill.values import fields
from tarmill_operator.cluster_spec import ClusterPolicy, FailurePolicy, RunPolicy, WorkerCount
from tarmill_operator.names import CATEGORY, GROUP, VERSION, plural
from tarmill_operator.pod_schema import IMAGE_PULL_SECRETS, key_reference, resource_reference, role
from tarmill_operator.rules import has_input, name_rules, script_fields, spec_rules
from tarmill_operator.schema import MAX_TEXT, Schema, object_schema, properties_of
from tarmill_operator.status_schema import PRINTER_COLUMNS, STATUS

SHORT_NAMES = {"ShardMap": "smap", "ShardExtract": "sext", "ShardShuffle": "sshuf", "ShardSort": "ssort"} | {
    "ShardUpload": "sup"
}
CLUSTER_FIELDS = frozenset(
    {"image", "imagePullPolicy", "imagePullSecrets", "runner", "workers", "cluster", "run", "failure"}
)
"""Fields of a resource that say where and how it runs; the runner is told the others."""
_MAX_RUN_ID = 128
"""Each rule about a change compares it: the API server counts what that may cost."""


def crd(kind: Kind) -> dict[str, Any]:
    """Make the definition of one kind."""
    names = {
        "kind": kind.name,
        "listKind": f"{kind.name}List",
        "plural": plural(kind.name),
        "singular": kind.name.lower(),
        "shortNames": [SHORT_NAMES[kind.name]],
        "categories": [CATEGORY],
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": PRINTER_COLUMNS,
        "schema": {"openAPIV3Schema": _resource(kind)},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names['plural']}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def _resource(kind: Kind) -> Schema:
    return {
        "type": "object",
        "description": (kind.spec.__doc__ or "").partition("\n")[0],
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec_schema(kind),
            "status": STATUS,
        },
        "x-kubernetes-validations": name_rules(),
    }


def spec_schema(kind: Kind) -> Schema:
    """Make the schema of a kind's spec, with its rules."""
    properties = _kind_properties(kind) | _common_properties(kind)
    return {
        "type": "object",
        "description": "What the job is, and where and how it runs.",
        "required": _required(kind),
        "properties": properties,
        "x-kubernetes-validations": spec_rules(kind, properties),
    }


def options_of(kind: Kind) -> type[RunOptions]:
    """Tell which run options a kind takes."""
    return ReorderOptions if issubclass(kind.spec, ReorderSpec) else RunOptions


def _kind_properties(kind: Kind) -> dict[str, Schema]:
    found = properties_of(kind.spec)
    found["output"].pop("default", None)
    for name in script_fields(kind):
        found[f"{camel(name)}From"] = {
            "type": "object",
            "description": f"Instead of {camel(name)}: where its text is.",
            "properties": {
                "configMap": key_reference("A key of a ConfigMap."),
                "path": {"type": "string", "maxLength": MAX_TEXT, "description": "A file in the image, or mounted."},
            },
            "x-kubernetes-validations": [
                {
                    "rule": "has(self.configMap) != has(self.path)",
                    "message": "give either configMap or path",
                }
            ],
        }
    if has_input(kind):
        found["inputFrom"] = resource_reference(
            "Instead of input: the output of another resource in this namespace, once that is complete.",
            tuple(other.name for other in KINDS if other.name != "ShardExtract"),
        )
    return found


def _common_properties(kind: Kind) -> dict[str, Schema]:
    options = properties_of(options_of(kind))
    run = object_schema(RunPolicy, "When and how often it is tried, how long it may take and is kept.")
    run["properties"]["runId"] |= {"default": "", "maxLength": _MAX_RUN_ID}
    text = {"type": "string", "maxLength": MAX_TEXT}
    return {
        "options": {
            "type": "object",
            "description": "How stores are talked to, and how patiently.",
            "properties": options,
        },
        "image": {**text, "description": "Image of runner and workers; the operator's default otherwise."},
        "imagePullPolicy": {
            "type": "string",
            "enum": ["Always", "IfNotPresent", "Never"],
            "description": "When the image is pulled.",
        },
        "imagePullSecrets": IMAGE_PULL_SECRETS,
        "runner": role("The pod that plans, watches and publishes."),
        "workers": role("The pods that read and write shards.", **properties_of(WorkerCount)),
        "cluster": object_schema(ClusterPolicy, "What the workers run on."),
        "run": run,
        "failure": object_schema(FailurePolicy, "What to do about shards that fail."),
    }


def _required(kind: Kind) -> list[str]:
    """Name what must be given; in a cluster that is also where rows go, since nobody reads a pod's standard output."""
    replaceable = {"input", *script_fields(kind)} if has_input(kind) else set(script_fields(kind))
    asked = [f for f in fields(kind.spec) if (f.required and f.name not in replaceable) or f.name == "output"]
    return [camel(f.name) for f in asked]


def all_crds() -> dict[str, dict[str, Any]]:
    """Make all definitions, by file name."""
    return {f"{GROUP}_{plural(kind.name)}.yaml": crd(kind) for kind in KINDS}


def to_yaml(document: dict[str, Any]) -> str:
    """Write a document as people read it: in our order, without anchors, long texts folded."""

    class _Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(document, Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True)


def main(arguments: list[str] | None = None) -> None:
    """Write the definitions into a folder."""
    (folder,) = arguments if arguments is not None else sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, document in all_crds().items():
        (Path(folder) / name).write_text(f"# Made from the specs by `make crds`; change these.\n{to_yaml(document)}")


if __name__ == "__main__":
    main()
