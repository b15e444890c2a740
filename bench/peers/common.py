"""What the peers' scripts share: arguments, and the digest that proves that a peer read every byte."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Pairs = Iterable[tuple[str, dict[str, bytes]]]


def arguments(about: str, **more: dict[str, Any]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--digest", action="store_true", help="hash what was read (not timed)")
    for name, settings in more.items():
        parser.add_argument(f"--{name}", **settings)
    return parser.parse_args()


def drain(samples: Iterable[Any], digest: bool, as_pair: Callable[[Any], tuple[str, dict[str, bytes]]]) -> None:
    """Go through samples as a training loop would, and print how many there were (and their digest)."""
    count = total = 0
    if digest:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from sets import sample_digest, shown

        for sample in samples:
            count += 1
            total += sample_digest(*as_pair(sample))
        print(count, shown(total))
        return
    for _ in samples:
        count += 1
    print(count)


def without_dunders(sample: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """Key and fields of a webdataset or tarmill record."""
    return sample["__key__"], {name: body for name, body in sample.items() if name[:2] != "__" and name != "key"}


def outputs(folder: str, shards: list[str]) -> Iterator[tuple[str, str]]:
    """Pair each input shard with a file of the same name in the output folder."""
    for shard in shards:
        yield shard, str(Path(folder) / Path(shard).name)
