"""Which Kubernetes cluster the tests run on, from boot to removal.

TARMILL_E2E_CLUSTER chooses: `current` (the context of $KUBECONFIG), `kind`, or `node` (tests/e2e/node, on this
machine). Without it: kind where it and a Docker engine answer, else the node.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Protocol

from support import images

NODE = images.ROOT / "tests" / "e2e" / "node" / "node"
NODE_CACHE = Path(os.environ.get("NODE_CACHE") or images.CACHE.parent / "tarmill-node")
CHOICE = "TARMILL_E2E_CLUSTER"


class Cluster(Protocol):
    """What the tests need to know of a cluster."""

    kubeconfig: Path
    kubectl: str
    environment: Mapping[str, str]  # of kubectl and helm

    def load(self, image: images.Image) -> None:
        """Bring an image to where the cluster finds it."""

    def story(self, lines: int) -> str:
        """The last lines of what the cluster itself has to say to a test that failed."""


class CurrentCluster:
    """The context of $KUBECONFIG. Its images are there already: see `image_reference`."""

    def __init__(self) -> None:
        self.kubeconfig = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
        self.kubectl = "kubectl"
        self.environment: Mapping[str, str] = {}

    def load(self, image: images.Image) -> None:
        """Nothing: they were pushed or loaded by hand."""

    def story(self, lines: int) -> str:
        return ""


class KindCluster:
    """A cluster of kind's, in a Docker engine."""

    def __init__(self, name: str, kubeconfig: Path) -> None:
        self.name = name
        self.kubeconfig = kubeconfig
        self.kubectl = "kubectl"
        self.environment: Mapping[str, str] = {"KUBECACHEDIR": str(kubeconfig.parent / "kubectl")}

    def load(self, image: images.Image) -> None:
        run("kind", "load", "image-archive", str(image.archive), "--name", self.name)

    def story(self, lines: int) -> str:
        return ""


class NodeCluster:
    """The node of tests/e2e/node; the only one whose parts can be stopped."""

    def __init__(self, number: int, **more: str) -> None:
        # Which kinds there are kubectl remembers by the server's address: of this boot, not of one before.
        cache = NODE_CACHE / f"run-{number}" / "kubectl"
        self.environment: Mapping[str, str] = {"NODE_ID": str(number), "KUBECACHEDIR": str(cache), **more}
        self.host_address = f"10.231.{number}.1"  # of this machine, as the node sees it
        self.kubectl = str(NODE_CACHE / "bin" / "kubectl")

    def boot(self) -> None:
        """Remove what a test run before may have left, and boot."""
        self.command("down")
        self.kubeconfig = Path(self.command("up").strip())

    def command(self, *arguments: str) -> str:
        return run(str(NODE), *arguments, environment=self.environment)

    def load(self, image: images.Image) -> None:
        self.command("load", str(image.archive))

    def story(self, lines: int) -> str:
        """What became of NetworkPolicy, which on this node is the tests' own work."""
        log = NODE_CACHE / f"run-{self.environment['NODE_ID']}" / "log" / "netpol.log"
        text = log.read_text().splitlines()[-lines:] if log.exists() else ["not started"]
        return "\n".join(["--- NetworkPolicy", *text])


def find_helm() -> str | None:
    """Where helm is; the node's build has one, other clusters need it on the PATH."""
    return shutil.which("helm", path=f"{NODE_CACHE / 'bin'}:{os.environ['PATH']}")


def choose() -> str:
    """One of current, kind, node."""
    asked = os.environ.get(CHOICE, "")
    if asked:
        assert asked in ("current", "kind", "node"), f"{CHOICE}={asked}, expected current, kind or node"
        return asked
    return "kind" if shutil.which("kind") and images.docker_answers() else "node"


def lacking() -> str:
    """What keeps this machine from having the cluster of its choice; empty when nothing does."""
    if choose() != "node":
        return ""
    done = subprocess.run([NODE, "check"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return "" if done.returncode == 0 else done.stderr.strip()


def booted() -> AbstractContextManager[Cluster]:
    """The chosen cluster, up for as long as the context lasts."""
    return {"current": _current, "kind": _kind, "node": _enforcing_node}[choose()]()


@contextmanager
def _current() -> Iterator[Cluster]:
    yield CurrentCluster()


@contextmanager
def _kind() -> Iterator[Cluster]:
    name = f"tarmill-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory() as folder:
        kubeconfig = Path(folder) / "kubeconfig"
        try:
            run("kind", "create", "cluster", "--name", name, "--kubeconfig", str(kubeconfig), "--wait", "120s")
            yield KindCluster(name, kubeconfig)
        finally:
            run("kind", "delete", "cluster", "--name", name)


@contextmanager
def _enforcing_node() -> Iterator[Cluster]:
    with own_node() as node:
        node.command("start", "netpol")
        yield node


@contextmanager
def own_node(**environment: str) -> Iterator[NodeCluster]:
    """A node that nobody else uses, without NetworkPolicy; `environment` as tests/e2e/node/node takes it."""
    with _own_number() as (number, lock):
        node = NodeCluster(number, **environment)
        # When pytest is killed its lock goes with it: then this process has its turn, and takes the node down.
        subprocess.Popen(
            ["flock", lock.name, NODE, "down"],
            env={**os.environ, **node.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ).returncode = 0  # it outlives us, and nobody waits for it
        try:
            node.boot()
            yield node
        finally:
            node.command("down")


@contextmanager
def _own_number() -> Iterator[tuple[int, IO[str]]]:
    """A number of a node that no other test run uses; 0 is left to people."""
    NODE_CACHE.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10):
        with (NODE_CACHE / f"tests-{number}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield number, lock
            return
    raise RuntimeError("nine test runs have a node each: no number is left")


def run(*command: str, environment: Mapping[str, str] | None = None, timeout_s: float = 300) -> str:
    """Run a program; what it wrote to standard error is in the error."""
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=variables, timeout=timeout_s
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-8000:]}")
    return done.stdout


def image_reference(cluster: Cluster, name: str) -> str:
    """The name of the runner's or operator's image on a cluster, built and loaded when it has to be.

    On the current context: $TARMILL_E2E_RUNNER_IMAGE and $TARMILL_E2E_OPERATOR_IMAGE, or what `images.py` built from
    these sources and somebody loaded by hand.
    """
    if isinstance(cluster, CurrentCluster):
        return os.environ.get(f"TARMILL_E2E_{name.upper()}_IMAGE") or images.named(name).reference
    [image] = images.build([name])
    cluster.load(image)
    return image.reference
