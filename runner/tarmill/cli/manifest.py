"""A job as a file for `tarmill run` and `kubectl apply`: read, written, and what lies beside its output."""

from __future__ import annotations

import json
import sys
from typing import Any

from tarmill import storage
from tarmill.cli.output import say
from tarmill.errors import SpecError
from tarmill.formats.shards import ShardPattern
from tarmill.spec import RunOptions
from tarmill.spec_file import write_spec_file

REPORT_SUFFIX = ".report.json"
# What readers of YAML 1.1 or 1.2 may take for something else than text: numbers, dates, truth values, nothing.
_AMBIGUOUS = r"(?i)[-+.\d].*|y|n|yes|no|on|off|true|false|null|~"


def read_manifest_text(url: str) -> dict[str, Any]:
    """Read a spec file, YAML or JSON.

    Raises:
        SpecError: it is neither, or no mapping.
    """
    text = storage.read_bytes(url).decode("utf-8", "replace")
    try:
        found = json.loads(text) if text.lstrip().startswith("{") else _load_yaml(text)
    except ValueError as error:
        raise SpecError(f"{url}: {error}; expected YAML or JSON", field="spec", value=url) from None
    if not isinstance(found, dict):
        raise SpecError(f"{url} holds {type(found).__name__}; expected 'kind' and 'spec'", field="spec", value=url)
    return found


def _load_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def print_manifest(spec: Any, options: RunOptions) -> None:
    """Print a job as YAML, on standard output."""
    for name in ("input", "output", "rejected"):
        text = getattr(spec, name, "")
        if isinstance(text, str) and storage.mask(text) != text:
            say(f"note: {name} holds a secret, which has no place in a file; use ~/.netrc, or a Secret in Kubernetes")
    sys.stdout.write(to_yaml(write_spec_file(spec, options)))
    sys.stdout.flush()


def to_yaml(found: dict[str, Any]) -> str:
    """Write YAML as people do: in order, scripts as blocks, and text in quotes where it might be taken for more."""
    import re

    import yaml

    class Dumper(yaml.SafeDumper):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, False)  # lists stand further in than their names

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        plain = value.replace("\n", "").isprintable()  # among the others are line ends that only YAML knows
        quoted = not plain or re.fullmatch(_AMBIGUOUS, value)
        style = '"' if quoted else "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)

    Dumper.add_representer(str, text)
    return yaml.dump(found, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)


def report_url(spec: Any) -> str:
    """Name the file of `--report auto`: `<stem>.report.json` beside the output, "" where nothing can be beside it."""
    if storage.capabilities(spec.output).shared == "process":
        return ""
    pattern = ShardPattern.parse(spec.output)
    return f"{pattern.folder}{pattern.stem}{REPORT_SUFFIX}"
