"""`tarmill cat`: shards read and written again sample by sample, or only read to check that they are whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from tarmill.cli.options import store_options, use_stores
from tarmill.cli.output import run_command, say

if TYPE_CHECKING:
    from tarmill.formats.samples import Record, Tally

EPILOG = """\b
Example: join two shards into one, and check a whole data set.
  $ tarmill cat 'train-{000,001}.tar' -o both.tar.gz
  $ tarmill cat --check 'train-@0100.tar'
"""


@click.command("cat", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("inputs", metavar="IN")
@click.option(
    "-o", "--output", default="-", show_default=True, metavar="URL", help="One output shard; `-` for standard output."
)
@click.option("--check", is_flag=True, help="Write nothing: read everything, verify, and print counts and the digest.")
@click.option(
    "-k", "--key-function", default="base_plus_ext", show_default=True, help="How names split into key and field."
)
@store_options
def command(inputs: str, output: str, check: bool, key_function: str, **stores: Any) -> None:
    """Read every sample of the IN shards, in order, and write them to one shard."""
    run_command(lambda: _run(inputs, output, check, key_function, stores))


def _run(inputs: str, output: str, check: bool, key_function: str, stores: dict[str, Any]) -> None:
    from tarmill.engine.meter import Meter
    from tarmill.formats.digest import to_hex
    from tarmill.formats.samples import Tally
    from tarmill.formats.tar_write import TarSink, check_key
    from tarmill.jobs.shard_io import ShardOutput

    use_stores(stores)
    tally = Tally()

    def fill(sink: TarSink) -> None:
        for record in _samples(inputs, key_function, tally):
            if key_function != "base_plus_ext":
                check_key(record["__key__"])
            sink.add(record)

    if check:
        sink = TarSink(lambda block: None)
        fill(sink)
        click.echo(f"{sink.samples} samples, {sink.members} members, digest {to_hex(sink.digest)}")
        _say_left_out(tally)
        return
    with ShardOutput(output, output, "cat", -1, Meter()) as shard:
        fill(shard.sink)
        done = shard.commit()
    say(f"{done.samples} samples, {done.members} members, {done.size_bytes} bytes, digest {done.digest}")
    _say_left_out(tally)


def _say_left_out(tally: Tally) -> None:
    for kind, count in sorted(tally.skipped.items()):
        say(f"{count} members belong to no sample and were left out: {kind}")


def _samples(inputs: str, key_function: str, tally: Tally) -> Iterator[Record]:
    from tarmill.engine.meter import Meter
    from tarmill.formats.samples import ReadOptions
    from tarmill.formats.shards import ShardPattern
    from tarmill.jobs.inputs import find_shards
    from tarmill.jobs.shard_io import open_samples

    for shard in find_shards(ShardPattern.parse(inputs)):
        with open_samples(shard, ReadOptions(key_function), tally, Meter()) as samples, closing(samples):  # type: ignore[type-var]
            yield from samples
