"""`tarmill try`: a script on a few samples, before and after, without writing anything."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from tarmill.cli.options import split_pair, store_options, use_stores
from tarmill.cli.output import run_command
from tarmill.errors import ScriptError

if TYPE_CHECKING:
    from tarmill.formats.samples import Record
    from tarmill.jobs.script import Script

EPILOG = """\b
Example:
  $ tarmill try -p process.py 'train-@0100.tar' -n 2
"""


@click.command("try", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("inputs", metavar="IN")
@click.option("-p", "--script", required=True, metavar="FILE", help="The script, as for htmapper.")
@click.option(
    "-n",
    "--samples",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="How many samples of the first shard.",
)
@click.option("--param", "params", multiple=True, metavar="K=V", help="A parameter for the script's setup(params).")
@store_options
def command(inputs: str, script: str, samples: int, params: tuple[str, ...], **stores: Any) -> None:
    """Show what a script makes of the first samples: each field's size and beginning, before and after."""
    run_command(lambda: _run(inputs, script, samples, params, stores))


def _run(inputs: str, path: str, count: int, params: tuple[str, ...], stores: dict[str, Any]) -> None:
    import os

    from tarmill.cli.htmapper import read_script
    from tarmill.engine.meter import Meter
    from tarmill.formats.samples import ReadOptions, Tally
    from tarmill.formats.shards import ShardPattern
    from tarmill.jobs.inputs import find_shards
    from tarmill.jobs.script import prepared
    from tarmill.jobs.shard_io import open_samples

    use_stores(stores)
    name = os.path.basename(path)
    script = prepared(read_script(path), name, dict(split_pair(item, "params") for item in params))
    shard = find_shards(ShardPattern.parse(inputs))[0]
    with open_samples(shard, ReadOptions(), Tally(), Meter(), verify=False) as samples:
        first = list(islice(samples, count))
    _try_batch(script, first, shard.label) if script.process_samples else _try_each(script, first, shard.label)


def _try_each(script: Script, records: list[Record], shard: str) -> None:
    from tarmill.jobs.script import failure, key_of, results_of

    assert script.process_sample is not None
    for record in records:
        key = record["__key__"]
        _show("before", key, record)
        try:
            results = results_of(script.process_sample(record), script.name, key)
        except ScriptError:
            raise
        except (Exception, SystemExit) as error:
            raise failure(script.name, "process_sample failed", error, key, shard) from None
        for result in results:
            _show("after", key_of(result, key, script.name), result)
        if not results:
            click.echo(f"after   {key}: dropped")


def _try_batch(script: Script, records: list[Record], shard: str) -> None:
    from tarmill.jobs.script import batch_key_of, batch_results, failure, results_of

    assert script.process_samples is not None
    keys = {id(record["__key__"]): record["__key__"] for record in records}
    last = records[-1]["__key__"] if records else ""
    for record in records:
        _show("before", record["__key__"], record)
    try:
        for result in batch_results(script.process_samples(iter(records)), script.name):
            for record in results_of(result, script.name, last, "process_samples"):
                _show("after", batch_key_of(record, keys, script.name, last), record)
    except ScriptError:
        raise
    except (Exception, SystemExit) as error:
        raise failure(script.name, "process_samples failed", error, last, shard) from None


def _show(when: str, key: str, record: dict[str, Any]) -> None:
    click.echo(f"{when:<7} {key}")
    for field in sorted(record):
        value = record[field]
        if field.startswith("__") or (field == "key" and isinstance(value, str)):
            continue
        size = len(value) if hasattr(value, "__len__") else "?"
        shown = repr(bytes(value[:40]) if isinstance(value, bytes | bytearray) else value)
        click.echo(f"          {field:<12} {size:>10} bytes  {shown[:60]}")
