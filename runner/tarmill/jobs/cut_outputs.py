"""The outputs of jobs that decide themselves how many there are: their names, and those of the data set before."""

from __future__ import annotations

import re

from tarmill import storage
from tarmill.errors import SpecError, TarmillError
from tarmill.formats.codec_write import check_level
from tarmill.formats.compression import codec_for
from tarmill.formats.shards import ShardPattern
from tarmill.jobs.manifests import read_manifest
from tarmill.spec import ReorderSpec, UploadSpec


def check_output(spec: ReorderSpec | UploadSpec, out: ShardPattern) -> None:
    """Refuse an output pattern that names no shards, or another number of them than the options do.

    Raises:
        SpecError: says which, and what to write.
    """
    shown = storage.mask(spec.output)
    if spec.output == "-" or out.needs_listing or out.list_files:
        raise SpecError(
            f"output {shown!r} names no shards; write 'out-@.tar', or a count as in 'out-@0100.tar'",
            field="output",
            value=shown,
        )
    if not out.is_open:
        chosen = next((name for name in ("samples_per_shard", "shard_size") if getattr(spec, name)), "")
        if chosen or spec.num_shards not in (0, out.count):
            chosen = chosen or "num_shards"
            raise SpecError(
                f"output {shown!r} has {out.count} shards, and --{chosen.replace('_', '-')} decides about their number "
                "too; leave the count open, as in 'out-@.tar'",
                field="output",
                value=shown,
            )
    example = out.with_count(1).expand()[0] if out.is_open else out.format(0)
    check_level(codec_for(example), spec.level if spec.level >= 0 else None)
    if not out.is_open and len(set(names := out.expand())) < len(names):
        raise SpecError(
            f"output {shown!r} names one shard twice; expected another name for each", field="output", value=shown
        )


def named(out: ShardPattern, count: int) -> list[str]:
    """Name the shards of an output pattern, which may have none."""
    return (out.with_count(count) if out.is_open else out).expand() if count else []


def numbered(out: ShardPattern) -> str:
    """Give a regular expression for the names of an open pattern's shards, without folder; its group is the number."""
    first, second = (out.with_count(2).format(index).rpartition("/")[2] for index in range(2))
    at = next(index for index in range(len(first)) if first[index] != second[index]) + 1
    front, back = first[:at].removesuffix("000000"), first[at:]
    return f"(?s){re.escape(front)}([0-9]+){re.escape(back)}"


def shards_before(manifest: str) -> set[str]:
    """Name the shards of the data set that is overwritten; only plain names, whatever a manifest says."""
    try:
        names = {shard["name"] for shard in read_manifest(manifest)["shards"]}
    except (TarmillError, KeyError, TypeError):
        return set()
    return {name for name in names if isinstance(name, str) and "/" not in name and name.strip(".")}
