"""A cluster in which the operator runs, installed by its chart, with web storage beside it.

    with operated(kube) as system, system.namespace() as space:
        system.put("in-0.tar", body)
        space.apply(system.resource("ShardMap", "upper", input=..., output=..., script=...))
        done = space.wait("shardmap", "upper", is_over)

Jobs name the storage by its Service; tests reach it by a forwarded port.
"""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from support.helm import CHART, ROOT
from support.kube import Kube, KubectlError
from support.pods import Object
from tarmill.spec import KINDS

RELEASE = "tarmill"
USER, PASSWORD = "jobs", "pa55w0rd-of-the-jobs"
CREDENTIALS = "store"
"""The Secret with the store's user and password, in each namespace with jobs."""
OPERATORS = "app.kubernetes.io/name=tarmill"
"""Selects the operator's pods."""
FINISHED = ("Succeeded", "Failed")


class System:
    """The operator, its storage, and what tests do with both.

    Args:
        home: the namespace that they are in.
    """

    def __init__(self, home: Kube) -> None:
        self.home = home
        self._forwarded = ExitStack()
        self._address = ""
        self.url = f"http://{RELEASE}-store.{home.space}.svc.cluster.local"
        """Of the storage, for jobs."""

    @contextmanager
    def namespace(self, level: str = "restricted", name: str = "") -> Iterator[Kube]:
        """A new namespace that holds the storage's credentials; whatever jobs are left in it go with it."""
        with self.home.namespace(level, name) as space:
            space.apply(self.credentials())
            try:
                yield space
            except Exception as error:
                for pod in self.pods():
                    error.add_note(f"--- {pod}\n{self.home.logs(pod, '--tail=40')}")
                error.add_note(space.kubectl("get", "shards", "-o", "yaml"))
                raise

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The operator is not there in the block, and is there again after it."""
        self._scale(0)
        try:
            yield
        finally:
            self._scale(1)

    def _scale(self, replicas: int) -> None:
        self.home.kubectl("scale", f"deployment/{RELEASE}", f"--replicas={replicas}")
        self.home.kubectl("rollout", "status", f"deployment/{RELEASE}", "--timeout=90s", timeout_s=100)
        self.home.wait_for(lambda: len(self.pods()) == replicas, what=f"{replicas} operators")

    def pods(self) -> list[str]:
        """The operator's own pods."""
        return list(self.home.names("pod", OPERATORS))

    def credentials(self) -> Object:
        """The Secret that jobs take into their environment."""
        data = {"TARMILL_HTTP_USER": USER, "TARMILL_HTTP_PASSWORD": PASSWORD}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": CREDENTIALS}, "stringData": data}

    def resource(self, kind: str, name: str, **spec: Any) -> dict[str, Any]:
        """A resource whose pods know the storage, are small, and are given up soon; `spec` goes over that."""
        pod = {
            "envFrom": [{"secretRef": {"name": CREDENTIALS}}],
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "400Mi"}},
        }
        run = {"backoffBaseSeconds": 1, "backoffMaxSeconds": 2, "pendingDeadlineSeconds": 120}
        whole = {
            **spec,
            "runner": {**pod, **spec.get("runner", {})},
            "workers": {"replicas": 0, **pod, **spec.get("workers", {})},
            "run": {**run, **spec.get("run", {})},
        }
        return {"apiVersion": "tarmill.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": whole}

    # The storage, as a test sees it

    def put(self, path: str, body: bytes) -> None:
        assert self._ask("PUT", path, body)[0] in (201, 204)

    def get(self, path: str) -> bytes:
        status, body = self._ask("GET", path)
        assert status == 200, f"{path}: {status}"
        return body

    def names(self, folder: str) -> list[str]:
        """The files below a folder, as paths within it; [] where it is not there."""
        status, body = self._ask("GET", f"{folder}/")
        if status == 404:
            return []
        found = []
        for entry in json.loads(body):
            name = entry["name"]
            found += [f"{name}/{one}" for one in self.names(f"{folder}/{name}")] if entry["type"] != "file" else [name]
        return sorted(found)

    def bytes_of(self, folder: str) -> dict[str, bytes]:
        """The shards in a folder."""
        return {name: self.get(f"{folder}/{name}") for name in self.names(folder) if ".tar" in name}

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Ask the storage; anew by another forwarded port when the API server, which forwards, has been away.

        All that is asked can be asked twice.
        """

        def ask() -> tuple[int, bytes] | None:
            try:
                return self._ask_once(method, path, body)
            except (OSError, http.client.HTTPException, KubectlError):
                self.leave()
                return None

        answer = self.home.wait_for(ask, what=f"an answer of the storage to {method} {path}")
        assert answer is not None
        return answer

    def leave(self) -> None:
        """Forward no port any more."""
        self._forwarded.close()
        self._address = ""

    def _ask_once(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        if not self._address:
            forward = self.home.port_forward(f"service/{RELEASE}-store", 80)
            self._address = self._forwarded.enter_context(forward)
        connection = http.client.HTTPConnection(self._address, timeout=20)
        try:
            login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            connection.request(method, f"/{path}", body, {"Authorization": f"Basic {login}"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@contextmanager
def operated(kube: Kube, name: str = "", **values: Any) -> Iterator[System]:
    """Install the chart into a namespace of its own, `restricted`; remove it in the end, the definitions too.

    Args:
        kube: the cluster.
        name: of that namespace; a new one of its own by default.
        values: of the chart, over those that the tests need.
    """
    with kube.namespace(name=name) as home:
        install(home, **values)
        system = System(home)
        try:
            yield system
        finally:
            system.leave()
            home.helm("uninstall", RELEASE, "--wait")
            kinds = [name for name in kube.names("crd") if name.endswith(".tarmill.dev")]
            assert len(kinds) == len(KINDS), "the definitions stay, and with them what was made by them"
            kube.kubectl("delete", "-f", str(ROOT / "crds"), "--ignore-not-found", timeout_s=120)


def install(home: Kube, **values: Any) -> None:
    """Install or upgrade the chart in a namespace, and wait until it works."""
    entry = f"{USER}:{_hashed(PASSWORD)}\n"
    home.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "users"}, "stringData": {"htpasswd": entry}})
    whole = {
        "image": _image(home, "operator"),
        "runnerImage": _image(home, "runner"),
        "operator": {"progressSeconds": 0.5, "logFormat": "text"},
        "replicas": 1,
        "storage": {
            "enabled": True,
            "image": _image(home, "store"),
            "usersSecret": "users",
            "persistence": {"enabled": False},
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        },
        **values,
    }
    settings = home.cluster.kubeconfig.parent / f"values-{home.space}.json"
    settings.write_text(json.dumps(whole))
    home.helm("upgrade", "--install", RELEASE, str(CHART), "--values", str(settings), "--wait", "--timeout", "120s")


def _image(kube: Kube, name: str) -> Mapping[str, str]:
    repository, _, tag = kube.image(name).rpartition(":")
    return {"repository": repository, "tag": tag}


def _hashed(password: str) -> str:
    done = subprocess.run(["openssl", "passwd", "-apr1", "-stdin"], input=password, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def phase(resource: Object) -> str:
    return str(resource.get("status", {}).get("phase", ""))


def reason(resource: Object) -> str:
    return str(resource.get("status", {}).get("reason", ""))


def is_over(resource: Object) -> Object | None:
    """A resource that has come to an end, for `wait`."""
    return resource if phase(resource) in FINISHED else None


def condition(resource: Object, kind: str) -> str:
    """The status of a condition, "" where there is none of that type."""
    conditions = resource.get("status", {}).get("conditions", [])
    return next((str(one["status"]) for one in conditions if one["type"] == kind), "")
