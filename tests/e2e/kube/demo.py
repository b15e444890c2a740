"""`make demo-kube`: the chart, its storage and five jobs on the handwritten digits, on a cluster that goes again.

The cluster is chosen as for the tests (TARMILL_E2E_CLUSTER=current takes that of $KUBECONFIG).
"""

from __future__ import annotations

import json
import shlex
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from support import kube_clusters
from support.kube import Kube
from support.operated import RELEASE, System, is_over, operated
from support.pods import has_ended, pod

ROOT = Path(__file__).parents[3]
CHAIN = ROOT / "examples" / "kubernetes" / "digits.yaml"
NAMES = {
    "digits": "shardupload",
    "inverted": "shardmap",
    "shuffled": "shardshuffle",
    "counts": "shardsort",
    "table": "shardextract",
}
SPACE = "digits"


def main(shards: list[str]) -> int:
    """Run the demo on the digits in `shards`; the exit code."""
    if lacking := kube_clusters.lacking():
        print(f"no cluster: {lacking}", file=sys.stderr)
        return 1
    say("booting a cluster")
    with kube_clusters.booted() as cluster, operated(Kube(cluster), name=RELEASE) as system:
        say(f"installed: helm upgrade --install {RELEASE} charts/tarmill --namespace {RELEASE}")
        with system.namespace(name=SPACE) as space:
            count = sum(upload(system, shard) for shard in shards)
            say(f"{count} files of handwritten digits are in the storage: kubectl apply -f {CHAIN.relative_to(ROOT)}")
            began_s = time.monotonic()
            space.kubectl("apply", "--server-side", "-f", str(CHAIN))
            for name, kind in NAMES.items():
                done = space.wait(kind, name, is_over, 300, "the end")
                say(f"{done['kind']} {name}: {told(done)}")
            say(f"{time.monotonic() - began_s:.0f} s from apply to the end of the last\n")
            print(space.kubectl("get", "shards", "-o", "wide"), flush=True)
            print(system.get("digits/counts.csv").decode(), flush=True)
            return verify(space, [space.get(kind, name) for name, kind in NAMES.items()])


def upload(system: System, shard: str) -> int:
    """Put the files of a shard into the storage, one by one, as if they came from a disk; their number."""
    count = 0
    for name, body in files_of(shard):
        system.put(f"digits/files/{name}", body)
        count += 1
    return count


def files_of(shard: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(shard) as archive:
        for member in archive:
            contents = archive.extractfile(member)
            assert contents is not None
            yield member.name, contents.read()


def verify(space: Kube, resources: list[Any]) -> int:
    """Hold the data sets against their manifests, and what was shuffled against what it was made of, in a pod."""
    uploaded, inverted, shuffled = (found["status"]["output"] for found in resources[:3])
    checks = [[uploaded], [inverted], [inverted, shuffled]]
    script = "\n".join(f"tarmill verify --quiet {' '.join(map(shlex.quote, names))} || exit 1" for names in checks)
    space.apply(pod("verify", space.image("runner"), ["sh", "-c", script]))
    phase = space.wait("pod", "verify", has_ended, 120, "the end")
    print(space.logs("verify"), end="", flush=True)
    say(f"tarmill verify: {phase}")
    return 0 if phase == "Succeeded" else 1


def told(resource: Any) -> str:
    status = resource["status"]
    samples = status.get("samples", {})
    return f"{status['phase']}, {status['message']} ({json.dumps(samples)})"


def say(text: str) -> None:
    print(f"demo-kube: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
