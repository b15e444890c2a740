"""`tarmill try`: a script on a few samples, before and after, without writing anything."""

from __future__ import annotations

from itertools import islice
from typing import Any

import click

from tarmill.cli.output import run_command, say

EPILOG = """\b
Example:
  $ tarmill try -p process.py 'train-@0100.tar' -n 2
"""


@click.command("try", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("inputs", metavar="IN")
@click.option("-p", "--script", required=True, metavar="FILE", help="The script, as for htmapper.")
@click.option("-n", "--samples", default=3, show_default=True, help="How many samples of the first shard.")
@click.option("--param", "params", multiple=True, metavar="K=V", help="A parameter for the script's setup(params).")
def command(inputs: str, script: str, samples: int, params: tuple[str, ...]) -> None:
    """Show what a script makes of the first samples: each field's size and beginning, before and after."""
    run_command(lambda: _run(inputs, script, samples, params))


def _run(inputs: str, path: str, count: int, params: tuple[str, ...]) -> None:
    import os

    from tarmill.cli.htmapper import read_script
    from tarmill.engine.meter import Meter
    from tarmill.formats.samples import ReadOptions, Tally
    from tarmill.formats.shards import ShardPattern
    from tarmill.jobs.inputs import find_shards
    from tarmill.jobs.script import failure, key_of, prepared, results_of
    from tarmill.jobs.shard_io import open_samples

    name = os.path.basename(path)
    script = prepared(read_script(path), name, dict(item.partition("=")[::2] for item in params))
    shard = find_shards(ShardPattern.parse(inputs))[0]
    with open_samples(shard, ReadOptions(), Tally(), Meter(), verify=False) as samples:
        first = list(islice(samples, count))
    if script.process_samples is not None:
        for record in first:
            _show("before", record["__key__"], record)
        for record in script.process_samples(iter([dict(record) for record in first])):
            _show("after", record.get("__key__", "?"), record)
        return
    assert script.process_sample is not None
    for record in first:
        key = record["__key__"]
        _show("before", key, record)
        try:
            results = results_of(script.process_sample(record), name, key)
        except Exception as error:
            if hasattr(error, "exit_code"):
                raise
            raise failure(name, "process_sample failed", error, key, shard.label) from None
        for result in results:
            _show("after", key_of(result, key, name), result)
        if not results:
            say(f"after   {key}: dropped")


def _show(when: str, key: str, record: dict[str, Any]) -> None:
    click.echo(f"{when:<7} {key}")
    for field in sorted(record):
        value = record[field]
        if field.startswith("__") or (field == "key" and isinstance(value, str)):
            continue
        size = len(value) if hasattr(value, "__len__") else "?"
        shown = repr(bytes(value[:40]) if isinstance(value, bytes | bytearray) else value)
        click.echo(f"          {field:<12} {size:>10} bytes  {shown[:60]}")
