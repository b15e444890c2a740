"""A Kubernetes cluster in the hands of a test.

    with kube.namespace() as space:
        space.apply(pod)
        done = space.wait("pod", "hello", lambda pod: pod["status"].get("phase") == "Succeeded")
        assert space.logs("hello") == "hi\\n"

Everything goes through kubectl, so that tests see what people see. What a failing test saw in its namespace (pods,
events, ends of logs) is added to its error.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import secrets
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import pytest

from support.kube_clusters import Cluster, NodeCluster, find_helm, image_reference, run

T = TypeVar("T")
Object = Mapping[str, Any]


WAIT_S = 150
"""A busy machine may stand still for half a minute, and a pod that is told to go may take as long."""
PASSING_S = 30
_REPEATABLE = frozenset({"get", "apply", "patch", "scale"})
_PASSING = re.compile(
    "etcdserver: |TLS handshake timeout|unexpected EOF|currently unable to handle|the server has received too many"
)


class KubectlError(AssertionError):
    """kubectl ended with an error; its text is the server's message."""


class Kube:
    """A cluster, or (from `namespace`) one namespace of it: every call then stays within."""

    def __init__(self, cluster: Cluster, space: str = "") -> None:
        self.cluster = cluster
        self.space = space
        self._images: dict[str, str] = {}

    # Calls

    def kubectl(self, *arguments: str, input: str = "", timeout_s: float = 60) -> str:
        """What kubectl prints; a KubectlError with its complaint when it fails.

        What can be asked twice is, while a server that was kept waiting by its own machine says that it could not.
        """
        deadline_s = time.monotonic() + PASSING_S
        while True:
            try:
                return self._kubectl_once(arguments, input, timeout_s)
            except KubectlError as error:
                again = arguments[0] in _REPEATABLE and _PASSING.search(str(error))
                if not again or time.monotonic() > deadline_s:
                    raise
            time.sleep(0.5)

    def _kubectl_once(self, arguments: Sequence[str], input: str, timeout_s: float) -> str:
        named, command = f"kubectl {' '.join(arguments)}", self._command(arguments)
        try:
            done = subprocess.run(
                command, input=input, capture_output=True, text=True, timeout=timeout_s, env=self._environment()
            )
        except subprocess.TimeoutExpired:
            raise KubectlError(f"{named}: no answer within {timeout_s:g} s") from None
        if done.returncode != 0:
            raise KubectlError(f"{named}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *objects: Object) -> None:
        """Server-side apply."""
        whole = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=json.dumps(whole))

    def get(self, kind: str, name: str) -> Any:
        return json.loads(self.kubectl("get", kind, name, "-o", "json"))

    def all(self, kind: str, selector: str = "") -> Sequence[Any]:
        """The objects of a kind."""
        items: Sequence[Any] = json.loads(self.kubectl("get", kind, "-l", selector, "-o", "json"))["items"]
        return items

    def delete(self, kind: str, name: str, *, force: bool = False, wait: bool = True) -> None:
        """Delete one object; by force a pod is gone at once, its processes by SIGKILL."""
        flags = ["--force", "--grace-period=0"] if force else []
        self.kubectl("delete", kind, name, f"--wait={str(wait).lower()}", *flags)

    def logs(self, pod: str, *flags: str) -> str:
        return self.kubectl("logs", pod, *flags)

    def exec(self, pod: str, *command: str) -> str:
        """What a command prints that runs in a pod's container."""
        return self.kubectl("exec", pod, "--", *command)

    def image(self, name: str) -> str:
        """The reference of the image of the `runner` or `operator`; built and loaded at the first call."""
        if name not in self._images:
            self._images[name] = image_reference(self.cluster, name)
        return self._images[name]

    def helm(self, *arguments: str, timeout_s: float = 120) -> str:
        """What helm prints."""
        command = find_helm()
        assert command, "there is no helm: 'make kube-node' builds one"
        return run(command, *self._where(), *arguments, environment=self.cluster.environment, timeout_s=timeout_s)

    @contextmanager
    def port_forward(self, target: str, port: int) -> Iterator[str]:
        """host:port on this machine that leads to a pod's or Service's port, past every NetworkPolicy."""
        with self._process("port-forward", target, f":{port}") as (process, complaint):
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            found = re.search(r"127\.0\.0\.1:\d+", line)
            if not found:
                raise KubectlError(f"kubectl port-forward {target} said: {line!r} {complaint()}")
            yield found.group()

    # Waiting

    def wait(
        self,
        kind: str,
        name: str,
        condition: Callable[[Any], T],
        timeout_s: float = WAIT_S,
        what: str = "the condition",
    ) -> T:
        """The first true value of a condition on an object, which need not exist yet; sees every change, does not poll.

        The condition is asked with {} when the object has been deleted.
        """
        deadline_s = time.monotonic() + timeout_s
        last: Object = {}
        complaint = ""
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                for last in self._watch(kind, name, left_s):
                    if value := condition(last):
                        return value
            except KubectlError as error:  # the server may be away
                complaint = f"\n{error}"
                time.sleep(0.1)
        raise AssertionError(
            f"waited {timeout_s:g} s in vain for {what} of {kind} {name}; last: {_shown(last)}{complaint}"
        )

    def wait_gone(self, kind: str, name: str, timeout_s: float = WAIT_S) -> None:
        self.wait_for(lambda: name not in self.names(kind), timeout_s, f"the end of {kind} {name}")

    def wait_for(self, condition: Callable[[], T], timeout_s: float = WAIT_S, what: str = "the condition") -> T:
        """The first true value of any condition, asked four times a second; the server may be away meanwhile."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            complaint = ""
            try:
                if value := condition():
                    return value
            except KubectlError as error:
                complaint = f"; {error}"
            if time.monotonic() > deadline_s:
                raise AssertionError(f"waited {timeout_s:g} s in vain for {what}{complaint}")
            time.sleep(0.25)

    def names(self, kind: str, selector: str = "") -> Sequence[str]:
        return [found["metadata"]["name"] for found in self.all(kind, selector)]

    def _watch(self, kind: str, name: str, timeout_s: float) -> Iterator[Object]:
        """The object now and after each change, until the server ends the watch or time is up."""
        flags = ["--watch", "--output-watch-events", "-o", "json", "--field-selector", f"metadata.name={name}"]
        with self._process("get", kind, *flags) as (process, complaint):
            assert process.stdout is not None
            for event in _documents(process.stdout, timeout_s):
                yield {} if event["type"] == "DELETED" else event["object"]
            if text := complaint():
                raise KubectlError(text)

    # Namespaces

    @contextmanager
    def namespace(self, level: str = "restricted", name: str = "") -> Iterator[Kube]:
        """A new namespace with a Pod Security level, deleted in the end; failures in it tell what it held."""
        name = name or f"test-{secrets.token_hex(4)}"
        labels = {"pod-security.kubernetes.io/enforce": level}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        space = Kube(self.cluster, name)
        space._images = self._images
        try:
            # Pods are refused until it is there.
            # After an outage the controllers take their time to come back.
            space.wait("serviceaccount", "default", bool, 120, "existence")
            yield space
        except Exception as error:
            error.add_note(space.story())
            raise
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")

    def story(self, lines: int = 25) -> str:
        """Pods, events and the ends of all logs, of the cluster's own too, as far as they can be had."""

        def asked(*arguments: str) -> str:
            try:
                return self.kubectl("--request-timeout=5s", *arguments).rstrip()
            except (KubectlError, subprocess.TimeoutExpired) as error:
                return str(error)

        parts = [asked("get", "pods,jobs,deployments,services", "-o", "wide")]
        parts.append(asked("get", "events", "--sort-by=.lastTimestamp"))
        pods = [name for name in asked("get", "pods", "-o", "name").split() if name.startswith("pod/")]
        parts += [f"--- {pod}\n" + asked("logs", pod, "--all-containers", f"--tail={lines}") for pod in pods]
        parts.append(self.cluster.story(lines))
        return f"namespace {self.space}:\n" + "\n\n".join(parts)

    # Outages

    def local_node(self) -> NodeCluster:
        """The local node; a test that takes its parts away is skipped on any other cluster."""
        if not isinstance(self.cluster, NodeCluster):
            pytest.skip("only the local node's parts can be stopped")
        return self.cluster

    def stop(self, part: str) -> None:
        """Stop apiserver, etcd, kubelet, ... in order; see tests/e2e/node."""
        self.local_node().command("stop", part)

    def kill(self, part: str) -> None:
        """End a part by SIGKILL."""
        self.local_node().command("kill", part)

    def start(self, part: str) -> None:
        self.local_node().command("start", part)

    @contextmanager
    def without(self, part: str) -> Iterator[None]:
        """Run the block while a part of the node is away, killed; ends when the server is ready again."""
        self.kill(part)
        try:
            yield
        finally:
            self.start(part)
            self.wait_for(lambda: self.kubectl("get", "--raw", "/readyz") == "ok", what="a ready API server")

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [self.cluster.kubectl, *self._where(), *arguments]

    def _environment(self) -> Mapping[str, str]:
        return {**os.environ, **self.cluster.environment}

    @contextmanager
    def _process(self, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
        """kubectl for as long as the context lasts, and what tells its complaint so far."""

        def complaint() -> str:
            complaints.seek(0)
            return complaints.read().decode(errors="replace").strip()

        with (
            tempfile.TemporaryFile() as complaints,
            subprocess.Popen(
                self._command(arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=self._environment(),
            ) as process,
        ):
            try:
                yield process, complaint
            finally:
                process.kill()

    def _where(self) -> list[str]:
        within = ["--namespace", self.space] if self.space else []
        return ["--kubeconfig", str(self.cluster.kubeconfig), *within]


def _documents(stream: IO[bytes], timeout_s: float) -> Iterator[Any]:
    """JSON documents one after the other, as they come."""
    deadline_s = time.monotonic() + timeout_s
    text, characters, decoder = "", codecs.getincrementaldecoder("utf-8")(), json.JSONDecoder()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while selector.select(max(0, deadline_s - time.monotonic())):
            piece = os.read(stream.fileno(), 1 << 20)
            if not piece:
                return
            text += characters.decode(piece)
            while text := text.lstrip():
                try:
                    document, end = decoder.raw_decode(text)
                except json.JSONDecodeError:
                    break
                yield document
                text = text[end:]


def _shown(thing: Object) -> str:
    status = thing.get("status")
    return json.dumps(status, indent=1)[:3000] if status else "nothing of it seen"
