"""Spec files: a job with its run options as a Kubernetes resource holds it, and back (pure).

{"apiVersion": ..., "kind": "ShardMap", "metadata": {"name": ...},
 "spec": {fields of the kind, "scriptPath": FILE instead of script, "options": {fields of the run options}}}
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from typing import Any

from tarmill.errors import ShardPatternError, SpecError
from tarmill.formats.shards import ShardPattern
from tarmill.quantities import read_seconds, show_seconds
from tarmill.spec import KINDS, ReorderOptions, ReorderSpec, RunOptions, kind_of, spec_from_manifest, to_manifest
from tarmill.spec_base import Spec, camel, option_of
from tarmill.values import fields

NAME_LENGTH = 40
"""Of the names made here: a resource's children have longer ones, and 63 is the end."""
_SCRIPTS = {"scriptPath": "script", "reduceScriptPath": "reduceScript"}


def options_of(kind: type[Spec]) -> type[RunOptions]:
    """Tell which run options the jobs of a spec take."""
    return ReorderOptions if issubclass(kind, ReorderSpec) else RunOptions


def read_spec_file(found: dict[str, Any], read_script: Callable[[str], str]) -> tuple[Any, RunOptions]:
    """Read a job from the contents of a spec file.

    Args:
        found: what was parsed, a mapping.
        read_script: reads the text of the file that `scriptPath` or `reduceScriptPath` names.

    Returns:
        The spec, and the run options of its kind.

    Raises:
        SpecError: an unknown kind or field, a value that cannot be, a script given twice.
    """
    spec = found.get("spec")
    if not isinstance(spec, dict):
        return spec_from_manifest(found), RunOptions()  # which tells what is wrong
    kinds = {kind.name: kind.spec for kind in KINDS}
    known = {one.name for one in fields(kinds[found["kind"]])} if found.get("kind") in kinds else set()
    rest = {name: value for name, value in spec.items() if name != "options"}
    for path_field, name in _SCRIPTS.items():
        if path_field in rest and _snake(name) in known:
            path = rest.pop(path_field)
            if not isinstance(path, str) or name in rest:
                told = f"beside {name!r}; give one of them" if name in rest else f"as {path!r}; expected a path"
                raise SpecError(f"field {path_field!r} is there {told}", field=path_field, value=path)
            rest[name] = read_script(path)
            rest.setdefault(f"{name}Name", posixpath.basename(path))
    job = spec_from_manifest({**found, "spec": rest})
    return job, _read_options(options_of(type(job)), spec.get("options", {}))


def _read_options(kind: type[RunOptions], values: Any) -> RunOptions:
    if not isinstance(values, dict):
        raise SpecError(f"field 'options' is {values!r}; expected a mapping", field="options", value=values)
    try:
        return kind.from_dict(values)
    except SpecError as error:
        raise SpecError(f"in 'options': {error.message}", **error.facts) from None


def write_spec_file(spec: Any, options: RunOptions) -> dict[str, Any]:
    """Give the contents of a spec file: what `read_spec_file` reads as the same job."""
    found = to_manifest(spec)
    fields_of_job = _with_units(type(spec), found.pop("spec"))
    chosen = {name: getattr(options, name) for name in (one.name for one in fields(options_of(type(spec))))}
    if run := options_of(type(spec))(**chosen).to_dict():
        fields_of_job["options"] = _with_units(options_of(type(spec)), run)
    return {**found, "metadata": {"name": resource_name(spec)}, "spec": fields_of_job}


def _with_units(kind: type[Spec], values: dict[str, Any]) -> dict[str, Any]:
    """Write durations as text: an API server takes whole numbers and text there, and no fractions."""
    durations = {camel(field.name) for field in fields(kind) if option_of(field).unit == "seconds"}
    return {name: _duration(value) if name in durations else value for name, value in values.items()}


def _duration(value_s: float) -> str | float:
    for text in (show_seconds(value_s), f"{value_s!r}s"):
        try:
            if read_seconds(text) == value_s:
                return text
        except ValueError:  # a power of ten
            continue
    return value_s


def resource_name(spec: Any) -> str:
    """Derive a name for a job's resource from its output, as the DNS allows it: `s3://b/Train_2-@.tar` -> train-2."""
    try:
        stem = ShardPattern.parse(spec.output).stem if spec.output != "-" else ""
    except ShardPatternError:
        stem = ""
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:NAME_LENGTH].strip("-")
    verb = kind_of(spec).verb
    return name if name and name[0].isalpha() else f"{verb}-{name}"[:NAME_LENGTH].strip("-")


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda found: "_" + found[0].lower(), name)
