"""The data of the tests on Kubernetes: the same shards in a folder of this machine and in the cluster's storage."""

from __future__ import annotations

from pathlib import Path

from support.maps import UPPER, bytes_of, run_map
from support.operated import System
from support.reorders import put_records

SHARDS = 4
SAMPLES = 30


class Data:
    """Four shards of 30 samples, with keys k0-000 to k3-029, text `txt` and a class `cls`.

    Args:
        system: whose storage gets them.
        folder: of this machine, where they are made; its name is the folder's in the storage.
    """

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self.folder = folder
        self.name = folder.name
        self.url = f"{system.url}/{folder.name}"
        self.input = f"{self.url}/in-@{SHARDS}.tar"
        folder.mkdir()
        for shard in range(SHARDS):
            put_records(folder / f"in-{shard}.tar", [_record(shard, number) for number in range(SAMPLES)])
            system.put(f"{self.name}/in-{shard}.tar", (folder / f"in-{shard}.tar").read_bytes())

    def mapped(self) -> dict[str, bytes]:
        """What the command line, without any fault, makes of them by `maps.UPPER` as `out-@.tar.gz`."""
        there = self.folder / "mapped-here"
        run_map(f"{self.folder}/in-@{SHARDS}.tar", there / "out-@.tar.gz", UPPER)
        return {name: body for name, body in bytes_of(there).items() if ".tar" in name}


def _record(shard: int, number: int) -> dict[str, object]:
    return {"__key__": f"k{shard}-{number:03d}", "txt": f"text {number} ".encode() * 50, "cls": b"%d" % (number % 3)}
