"""How long a job takes from `kubectl apply` to its first sample, on the real node of the tests."""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support import kube_clusters
from support.kube import Kube
from support.operated import System, is_over, operated
from support.shards_in_store import Data

WORKERS = (0, 2)
SCRIPT = """
import time

def process_sample(sample):
    return {**sample, "began": str(time.time())}
"""


@dataclass(frozen=True, slots=True)
class Start:
    """One job's start.

    Attributes:
        workers: of the job; 0 is the runner's pod alone.
        cold: whether it is the first on a node that has the image but has never started it.
        first_sample_s: from `kubectl apply` to the first sample of the work, the trial before it not counted.
    """

    workers: int
    cold: bool
    first_sample_s: float

    def to_dict(self) -> dict[str, Any]:
        """Give JSON-able values."""
        return asdict(self)


def measure_starts(warm: int) -> list[Start]:
    """Boot a node, install the chart, and start one job cold and some warm, with and without workers."""
    found = []
    with (
        kube_clusters.booted() as cluster,
        tempfile.TemporaryDirectory() as folder,
        operated(Kube(cluster)) as system,
        system.namespace() as space,
    ):
        data = Data(system, Path(folder) / "starts")
        for workers in WORKERS:
            for number in range(warm + 1):
                seconds = _start(system, space, data, workers, number)
                found.append(Start(workers, number == 0 and workers == WORKERS[0], seconds))
    return found


def _start(system: System, space: Kube, data: Data, workers: int, number: int) -> float:
    name = f"start-{workers}-{number}"
    output = f"{data.url}/{name}/out-@.tar"
    job = system.resource("ShardMap", name, input=data.input, output=output, script=SCRIPT)
    job["spec"]["workers"]["replicas"] = workers
    began_s = time.time()
    space.apply(job)
    done = space.wait("shardmap", name, is_over, 180, "the end")
    if done["status"]["phase"] != "Succeeded":
        raise RuntimeError(f"{name}: {done['status']}")
    shards = system.bytes_of(f"{data.name}/{name}").values()
    return min(time_s for shard in shards for time_s in _times(shard)) - began_s


def _times(shard: bytes) -> list[float]:
    """Read from a shard when each of its samples was worked on: the nodes' clock is this machine's."""
    with tarfile.open(fileobj=io.BytesIO(shard)) as archive:
        fields = [archive.extractfile(member) for member in archive if member.name.endswith(".began")]
        return [float(field.read()) for field in fields if field is not None]
