"""A thousand jobs at a time: what the operator costs, on a real control plane with simulated pods.

Boots the node of the tests, lets every pod run on a simulated one (`kubelet`), starts the operator as a process of
this machine, makes resources of all kinds at a steady rate, and waits until all have succeeded. The API server's audit
log tells what was written by whom, /proc what the operator's process cost.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import aiohttp
from support.kube import Kube
from support.kube_clusters import NodeCluster, own_node

from cluster.client import USER_AGENT, Client, Object
from cluster.kubelet import SimulatedNode
from tarmill.spec import API_VERSION
from tarmill_operator.conditions import TERMINAL
from tarmill_operator.names import GROUP, NAME_LABEL, UID_LABEL, plural

ROOT = Path(__file__).parents[2]
SPACE = "jobs"
IDLE_S = 30.0
END_S = 600.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PROGRESS = {"shards", "shardsText", "samples", "bytes", "percent", "etaSeconds", "eta", "lastProgressTime"}
_CHILDREN = {
    **dict.fromkeys(("ConfigMap", "Pod", "Secret", "Service"), "/api/v1"),
    "Job": "/apis/batch/v1",
    "Deployment": "/apis/apps/v1",
    "NetworkPolicy": "/apis/networking.k8s.io/v1",
}
_RECORDS = {"ConfigMap", "Job", "Pod"}
_SPECS: Mapping[str, Object] = {
    "ShardMap": {
        "input": "http://store/in-@10.tar",
        "output": "http://store/{name}/out-@.tar",
        "script": "def process_sample(sample):\n    return sample\n",
    },
    "ShardExtract": {
        "input": "http://store/in-@10.tar",
        "output": "http://store/{name}/rows.csv",
        "format": "csv",
        "columns": ["__key__", "cls"],
    },
    "ShardShuffle": {"input": "http://store/in-@10.tar", "output": "http://store/{name}/out-@.tar", "seed": 1},
    "ShardSort": {"input": "http://store/in-@10.tar", "output": "http://store/{name}/out-@.tar", "keys": ["__key__"]},
    "ShardUpload": {"sources": ["http://store/files/"], "output": "http://store/{name}/out-@.tar"},
}


@dataclass(slots=True)
class Story:
    """What was seen of one resource; times are of the event loop's clock."""

    created_s: float
    first_status_s: float | None = None
    first_job_s: float | None = None
    ended_s: float | None = None
    phase: str = ""
    status_writes: int = 0
    progress_writes: int = 0
    status: Object = field(default_factory=dict)


@dataclass(slots=True)
class Measured:
    """The outcome of a run."""

    stories: dict[str, Story]
    cpu_start_s: float
    cpu_s: float
    idle_cpu_share: float
    peak_rss_bytes: int
    seconds: float
    writes: Counter[str]
    left: list[str]


# -- the control plane and the operator --------------------------------------------------------------------------------


@contextmanager
def control_plane(folder: Path) -> Iterator[NodeCluster]:
    """Boot a node with the definitions and an audit log in `folder`, and take its own kubelet out of the game."""
    policy = folder / "policy.yaml"
    # of the jobs' namespace and the operator's user alone: the log is begun anew at 100 MB
    writes = {"verbs": ["create", "update", "patch", "delete"], "users": ["admin"], "namespaces": [SPACE]}
    rules = [{"level": "Metadata", **writes}, {"level": "None"}]
    policy.write_text(
        json.dumps(
            {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}
        )
    )
    flags = f"--audit-policy-file={policy} --audit-log-path={folder / 'audit.log'}"
    with own_node(NODE_ARGS_APISERVER=flags) as node:
        kube = Kube(node)
        kube.kubectl("cordon", "node")
        kube.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        kube.kubectl("wait", "--for=condition=Established", "-f", str(ROOT / "crds"), "--timeout=50s")
        kube.kubectl("create", "namespace", SPACE)
        yield node


@contextmanager
def operator(kubeconfig: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the operator with its default settings; it keeps a Lease, as it does in a cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TARMILL_")}
    environment = {**kept, "KUBECONFIG": str(kubeconfig), "TARMILL_IMAGE": "tarmill:1", "TARMILL_PORT": "0"}
    environment["TARMILL_NAMESPACE"] = "default"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tarmill_operator"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cpu_s_of(pid: int) -> float:
    """Tell the CPU seconds of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_rss_bytes_of(pid: int) -> int:
    """Tell the most memory that a process has had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no VmHWM")


# -- one run -----------------------------------------------------------------------------------------------------------


def resource(number: int) -> Object:
    """Make the number-th resource: kinds take turns, and every fourth has two workers."""
    kind, spec = list(_SPECS.items())[number % len(_SPECS)]
    name = f"job-{number:04d}"
    filled = {key: value.replace("{name}", name) if isinstance(value, str) else value for key, value in spec.items()}
    filled["workers"] = {"replicas": 2 if number % 4 == 3 else 0}
    metadata = {"name": name, "namespace": SPACE}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": filled}


class Run:
    """Makes the resources, and watches what becomes of them."""

    def __init__(self, client: Client, count: int, per_second: float) -> None:
        self._client = client
        self._count = count
        self._per_second = per_second
        self.stories: dict[str, Story] = {}
        self._over = asyncio.Event()

    async def make(self) -> None:
        """Create all resources, each at its time."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for number in range(self._count):
            await asyncio.sleep(max(0.0, began_s + number / self._per_second - loop.time()))
            body = resource(number)
            name = body["metadata"]["name"]
            self.stories[name] = Story(loop.time())
            await self._client.call("POST", f"/apis/{API_VERSION}/namespaces/{SPACE}/{plural(body['kind'])}", body)

    async def wait(self) -> None:
        """Wait until every resource has come to its end."""
        async with asyncio.timeout(self._count / self._per_second + END_S):
            await self._over.wait()

    async def follow_resources(self, kind: str) -> None:
        """Take note of every status that is written to resources of a kind."""
        loop = asyncio.get_running_loop()
        async for _, item in self._client.watch(f"/apis/{API_VERSION}/{plural(kind)}"):
            story = self.stories.get(item["metadata"]["name"])
            if story is None:
                continue
            status = {key: value for key, value in item.get("status", {}).items() if key != "observedGeneration"}
            if status == story.status or not status.get("phase"):
                continue
            if story.first_status_s is None:
                story.first_status_s = loop.time()
            story.status_writes += 1
            story.progress_writes += is_progress(story.status, status)
            story.status, story.phase = status, status["phase"]
            if story.phase in TERMINAL:
                story.ended_s = loop.time()
                ended = sum(1 for one in self.stories.values() if one.ended_s is not None)
                if ended == self._count:
                    self._over.set()

    async def follow_jobs(self) -> None:
        """Take note of the first Job of each resource."""
        loop = asyncio.get_running_loop()
        async for _, job in self._client.watch("/apis/batch/v1/jobs"):
            name = job["metadata"].get("labels", {}).get(NAME_LABEL, "")
            story = self.stories.get(name)
            if story is not None and story.first_job_s is None:
                story.first_job_s = loop.time()


def is_progress(before: Object, after: Object) -> bool:
    """Tell whether one status differs from the one before it in nothing but what the runner tells of its work."""
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    return bool(before) and changed <= _PROGRESS


async def measure(node: NodeCluster, folder: Path, count: int, per_second: float, run_s: float) -> Measured:
    """Run it all once.

    Args:
        node: of `control_plane`.
        folder: takes the operator's log; the audit log is there.
        count, per_second: resources, and how fast they are made.
        run_s: how long a runner takes.
    """
    loop = asyncio.get_running_loop()
    async with Client(node.kubeconfig) as client:
        with operator(node.kubeconfig, folder / "operator.log") as process:
            run = Run(client, count, per_second)
            background = [SimulatedNode(client, node.host_address, run_s).run(), run.follow_jobs()]
            background += [run.follow_resources(kind) for kind in _SPECS]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one) for one in background]
                await _ready(folder / "operator.log", process)
                start_cpu_s, began_s = cpu_s_of(process.pid), loop.time()
                await run.make()
                await run.wait()
                seconds = loop.time() - began_s
                await _settled(process.pid)
                cpu_s = cpu_s_of(process.pid) - start_cpu_s
                before_s, at_s = cpu_s_of(process.pid), loop.time()
                await asyncio.sleep(IDLE_S)
                idle = (cpu_s_of(process.pid) - before_s) / (loop.time() - at_s)
                left = await _left(client)
                peak = peak_rss_bytes_of(process.pid)
                for task in tasks:
                    task.cancel()
            if process.poll() is not None:
                raise RuntimeError(f"the operator has ended with {process.returncode}: {folder / 'operator.log'}")
    return Measured(run.stories, start_cpu_s, cpu_s, idle, peak, seconds, writes_in(folder / "audit.log"), left)


async def _ready(log: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the operator has listed all and acts: before that it may rest while it looks like one at work."""
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"the operator has ended:\n{log.read_text()[-4000:]}")
            if found := re.search(r"metrics are on port (\d+)", log.read_text()):
                async with session.get(f"http://127.0.0.1:{found[1]}/metrics") as answer:
                    if "tarmill_operator_leader 1.0" in await answer.text():
                        break
            await asyncio.sleep(0.1)
    await _settled(process.pid)


async def _settled(pid: int) -> None:
    """Wait until a process does next to nothing."""
    async with asyncio.timeout(120):
        while True:
            before_s = cpu_s_of(pid)
            await asyncio.sleep(2.0)
            if cpu_s_of(pid) - before_s <= 0.04:
                return


async def _left(client: Client) -> list[str]:
    """Name what should have been removed."""
    found = {}
    for kind, api in _CHILDREN.items():
        listed = await client.call("GET", f"{api}/namespaces/{SPACE}/{plural(kind)}?labelSelector={quote(UID_LABEL)}")
        found[kind] = listed["items"]
    return too_many(found)


def too_many(found: Mapping[str, list[Object]]) -> list[str]:
    """Name what is left of ended jobs besides the record of each: a ConfigMap, an ended Job and its ended pod.

    Args:
        found: all children and pods, by kind.
    """
    left, records = [], set()
    for kind, items in found.items():
        for item in items:
            record = kind, item["metadata"]["labels"][UID_LABEL]
            if kind not in _RECORDS or record in records or not _has_ended(kind, item):
                left.append(f"{kind} {item['metadata']['name']}")
            records.add(record)
    return left


def _has_ended(kind: str, item: Object) -> bool:
    status = item.get("status", {})
    if kind == "Job":
        return any((one["type"], one["status"]) == ("Complete", "True") for one in status.get("conditions", []))
    return kind != "Pod" or status.get("phase") == "Succeeded"


def writes_in(audit: Path) -> Counter[str]:
    """Count the operator's writes, by what was written; those that were refused too."""
    counts: Counter[str] = Counter()
    with audit.open() as lines:
        for line in lines:
            event = json.loads(line)
            agent, what = event.get("userAgent", ""), event.get("objectRef", {})
            if what.get("namespace") != SPACE or not is_operator(agent):
                continue
            name = "/".join(filter(None, (what.get("resource"), what.get("subresource"))))
            if what.get("apiGroup") == GROUP:
                name = "/".join(filter(None, ("resource", what.get("subresource"))))
            counts[f"{event['verb']} {name}"] += 1
    return counts


def is_operator(agent: str) -> bool:
    """Tell the operator's calls from those of Kubernetes itself and from ours."""
    return agent != USER_AGENT and not agent.startswith(("kube", "kubectl", "Go-http"))
