"""`tarmill run --spec FILE`: the same jobs from a spec file, as a Kubernetes resource holds it."""

from __future__ import annotations

import json
from typing import Any

import click

from tarmill.cli.options import spec_options, split_values
from tarmill.cli.output import finish_job, run_command
from tarmill.errors import SpecError
from tarmill.spec import (
    ExtractSpec,
    MapSpec,
    ReorderOptions,
    ReorderSpec,
    RunOptions,
    UploadSpec,
    kind_of,
    spec_from_manifest,
)

EPILOG = """\b
Example: the job that `htmapper -p double.py 'a-@4.tar' 'b-@.tar'` runs.
  $ cat job.yaml
  apiVersion: tarmill.dev/v1alpha1
  kind: ShardMap
  spec:
    input: a-@4.tar
    output: b-@.tar
    script: |
      def process_sample(record):
          record["txt"] = record["txt"] * 2
          return record
  $ tarmill run --spec job.yaml
"""


@click.command("run", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--spec", "spec_file", required=True, metavar="FILE", help="Spec as YAML or JSON: a file, a URL or `-`.")
@spec_options(ReorderOptions)
def command(spec_file: str, **values: Any) -> None:
    """Run the job that a spec file describes."""
    run_command(lambda: _run(spec_file, ReorderOptions(**split_values(ReorderOptions, values))), values["log_format"])


def _run(spec_file: str, options: RunOptions) -> None:
    spec = spec_from_manifest(read_manifest_text(spec_file))
    if isinstance(spec, MapSpec):
        from tarmill.jobs.map import run as run_map

        map_spec = spec
        finish_job(lambda console: run_map(map_spec, options, console), options, "ShardMap")
    elif isinstance(spec, ExtractSpec):
        from tarmill.cli.htextract import run_extract

        run_extract(spec, options)
    elif isinstance(spec, ReorderSpec):
        from tarmill.cli.htshuffle import run_reorder

        run_reorder(spec, options, kind_of(spec).name)
    elif isinstance(spec, UploadSpec):
        from tarmill.cli.htupload import run_upload

        run_upload(spec, options, kind_of(spec).name)


def read_manifest_text(url: str) -> dict[str, Any]:
    """Read a spec file, YAML or JSON.

    Raises:
        SpecError: it is neither, or no mapping.
    """
    from tarmill import storage

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
