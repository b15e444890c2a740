"""The pages of the five kinds, from their schemas: a page for each, and one for what all of them have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tarmill.spec import KINDS, Kind
from tarmill_operator.crds import CLUSTER_FIELDS, SHORT_NAMES, crd, spec_schema
from tarmill_operator.status_schema import PRINTER_COLUMNS, STATUS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "kubernetes"
RULES = "x-kubernetes-validations"
HEAD = ["| field | type | default | what it does |", "| --- | --- | --- | --- |"]
MADE = "This page is made from the schema by `make docs`; `kubectl explain {}.spec` tells the same."

Schema = dict[str, Any]
Rows = Iterator[tuple[str, Schema]]


def pages() -> dict[str, str]:
    """Give the pages by their file names."""
    made = {f"{kind.name.lower()}.md": kind_page(kind) for kind in KINDS}
    return {**made, "all_kinds.md": common_page()}


def kind_page(kind: Kind) -> str:
    """Make the page of one kind: an example, its own fields, its options, its rules."""
    name = kind.name.lower()
    schema = spec_schema(kind)
    own = {key: part for key, part in schema["properties"].items() if key not in CLUSTER_FIELDS | {"options"}}
    told = [text for text in messages_of(kind) if text not in messages_of_all()]
    lines = [
        f"# {kind.name}",
        "",
        f"{(kind.spec.__doc__ or '').partition(chr(10))[0]} In a pod: `{kind.command}` "
        f"([its page](../{kind.command}.md) has the whole story). Short name `{SHORT_NAMES[kind.name]}`,",
        "category `shards`.",
        "",
        "```yaml",
        (EXAMPLES / f"{name}.yaml").read_text().rstrip(),
        "```",
        "",
        MADE.format(name),
        "",
        "## spec",
        "",
        f"Required: {', '.join(f'`{field}`' for field in schema['required'])}. [All kinds](all_kinds.md) have `image`,",
        "`runner`, `workers`, `cluster`, `run` and `failure` besides.",
        "",
        *table(rows(own)),
        "",
        "## spec.options",
        "",
        *table(rows(schema["properties"]["options"]["properties"])),
        "",
        "## Rules",
        "",
        "Beside [those of all kinds](all_kinds.md#rules):",
        "",
        *(f"- {message}" for message in told),
        "- what a run goes by is immutable, but for `run.suspend`, `run.runId`, `run.ttlSecondsAfterFinished`,",
        "  `run.deleteWhenExpired` and `workers.replicas`; with another `run.runId` all may change: a new run",
    ]
    return "\n".join(lines) + "\n"


def messages_of(kind: Kind) -> list[str]:
    """Say what the rules for the values of a kind's spec say, in their order."""
    rules = spec_schema(kind)[RULES]
    return [rule["message"] for rule in rules if "oldSelf" not in rule["rule"]]


def messages_of_all() -> list[str]:
    """Say what all kinds' rules have in common."""
    first, *others = map(messages_of, KINDS)
    return [text for text in first if all(text in other for other in others)]


def common_page() -> str:
    """Make the page of what all kinds have: pods, runs, status."""
    properties = spec_schema(KINDS[0])["properties"]
    single = {key: properties[key] for key in ("image", "imagePullPolicy", "imagePullSecrets")}
    counts = {key: properties["workers"]["properties"][key] for key in ("replicas", "threads")}
    parts = [
        ("spec.image and its like", rows(single)),
        ("spec.runner and spec.workers", rows(properties["runner"]["properties"])),
        ("spec.workers alone", rows(counts)),
        *((f"spec.{part}", rows(properties[part]["properties"])) for part in ("cluster", "run", "failure")),
    ]
    lines = ["# Fields of all kinds", "", MADE.format("shardmap")]
    for title, found in parts:
        lines += ["", f"## {title}", "", *table(found)]
    names = [rule["message"] for rule in crd(KINDS[0])["spec"]["versions"][0]["schema"]["openAPIV3Schema"][RULES]]
    lines += ["", "## Rules", "", "The API server refuses a resource that breaks one of them, and says so:", ""]
    lines += [f"- {message}" for message in (*names, *messages_of_all())]
    lines += ["", "## status", "", "Reasons are [a closed list](reasons.md).", ""]
    lines += ["| field | type | what it tells |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {type_of(schema)} | {text_of(schema)} |" for name, schema in rows(STATUS["properties"])]
    lines += ["", "## Columns of kubectl get", "", "| column | of | with |", "| --- | --- | --- |"]
    for column in PRINTER_COLUMNS:
        wide = "`-o wide`" if column.get("priority") else ""
        lines.append(f"| {column['name']} | `{column['jsonPath'].lstrip('.')}` | {wide} |")
    return "\n".join(lines) + "\n"


def rows(properties: Schema, above: str = "") -> Rows:
    """Give each field, and after it those inside it, as far as the schema names them."""
    for name, schema in properties.items():
        yield f"{above}{name}", schema
        yield from rows(schema.get("properties", {}), f"{above}{name}.")


def table(found: Rows) -> list[str]:
    """Format fields as a table."""
    return [*HEAD, *(f"| `{name}` | {type_of(part)} | {default_of(part)} | {text_of(part)} |" for name, part in found)]


def type_of(schema: Schema) -> str:
    """Name the type, or the values that are allowed."""
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return "number or text with a unit" if "pattern" in schema else "number or text"
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {type_of(schema['items'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map of {type_of(schema['additionalProperties'])}"
    return str(kind)


def default_of(schema: Schema) -> str:
    """Give the default as YAML would have it, where it tells anything."""
    value = schema.get("default")
    if value in (None, {}, "", []):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else f'{value:g}' if isinstance(value, float) else value}`"


def text_of(schema: Schema) -> str:
    """Give the description as a table takes it."""
    return re.sub(r"\s+", " ", schema.get("description", "")).replace("|", "\\|")
