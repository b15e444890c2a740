"""The operator's process, with kopf, against an API server over HTTP."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.fakeserver import FakeServer

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("operator process")]
SECONDS = 60


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    # an address of its own, since runners are asked at a port that is always the same
    parts = [random.randint(1, 254) for _ in range(3)]
    with FakeServer(tmp_path, "127." + ".".join(map(str, parts))) as made:
        yield made


class Operator:
    """A process, its log, and where its probes are."""

    def __init__(self, server: FakeServer, log: Path, **variables: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TARMILL_")}
        environment |= {
            "KUBECONFIG": str(server.kubeconfig),
            "TARMILL_IMAGE": "tarmill:1",
            "TARMILL_PORT": "0",
            "TARMILL_PROGRESS_SECONDS": "0.5",
            **variables,
        }
        self.log = log
        with log.open("w") as file:
            command = [sys.executable, "-m", "tarmill_operator"]
            self.process = subprocess.Popen(command, env=environment, stderr=file, stdout=file)

    def text(self) -> str:
        return self.log.read_text()

    def ask(self, path: str) -> str:
        until(lambda: "probes and metrics" in self.text(), self)
        found = re.search(r"metrics are on port (\d+)", self.text())
        assert found is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}{path}", timeout=10) as answer:
            return str(answer.read().decode())


@contextmanager
def operator(server: FakeServer, log: Path, **variables: str) -> Iterator[Operator]:
    running = Operator(server, log, **variables)
    try:
        yield running
    finally:
        running.process.terminate()
        try:
            running.process.wait(20)
        except subprocess.TimeoutExpired:
            running.process.kill()
            running.process.wait(20)


def until(condition: Callable[[], Any], operator: Operator) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert operator.process.poll() is None, operator.text()
        assert time.monotonic() < end, operator.text()
        time.sleep(0.02)


def phase(server: FakeServer, resource: dict[str, Any]) -> str:
    with server.lock:
        return str(resource["status"].get("phase", ""))


def reason(server: FakeServer, resource: dict[str, Any]) -> str:
    with server.lock:
        return str(resource["status"].get("reason", ""))


def kinds(server: FakeServer) -> set[str]:
    with server.lock:
        return {kind for kind, _, _ in server.cluster.api.objects}


def test_a_job_runs_from_its_resource_to_its_end_and_the_operator_tells_of_itself(
    server: FakeServer, tmp_path: Path
) -> None:
    with operator(server, tmp_path / "log", TARMILL_LOG_LEVEL="DEBUG") as running:
        with server.lock:
            server.cluster.last_shard_takes_long = True
            resource = server.cluster.make(run={"ttlSecondsAfterFinished": 0})
        until(lambda: phase(server, resource) == "Running", running)
        server.cluster.last_shard_takes_long = False
        until(lambda: phase(server, resource) == "Succeeded", running)
        until(lambda: kinds(server) == {"ShardMap"}, running)
        assert server.phases(resource) == ["Pending", "Starting", "Running", "Succeeded"]
        assert running.ask("/healthz") == "ok\n"
        assert running.ask("/readyz") == "ok\n"
        metrics = running.ask("/metrics")
        assert 'tarmill_resources{kind="ShardMap",phase="Succeeded"} 1.0' in metrics
        assert "tarmill_operator_leader 1.0" in metrics
        assert 'tarmill_operator_api_calls_total{status="201",verb="create"}' in metrics
        assert 'tarmill_operator_progress_pulls_total{answered="yes"}' in metrics
    assert running.process.returncode == 0
    assert "secret-token" not in running.text()
    assert "Traceback" not in running.text()
    watches = [path for method, path in server.requests if "watch=true" in path]
    assert any(
        "/pods?" in path and "labelSelector=tarmill.dev%2Fuid" in path.replace("/uid", "%2Fuid") for path in watches
    )
    assert any(
        "/events?" in path and "fieldSelector=type%3DWarning" in path.replace("type=W", "type%3DW") for path in watches
    )
    assert not any("secrets" in path and method != "POST" and method != "DELETE" for method, path in server.requests)
    assert not any("finalizers" in str(item["metadata"]) for item in server.cluster.api.objects.values())


def test_in_namespaced_mode_nothing_of_the_whole_cluster_is_asked_for(server: FakeServer, tmp_path: Path) -> None:
    with operator(server, tmp_path / "log", TARMILL_WATCH_NAMESPACES="team", TARMILL_LOG_FORMAT="json") as running:
        with server.lock:
            resource = server.cluster.make(workers={"replicas": 0})
        until(lambda: phase(server, resource) == "Succeeded", running)
    paths = {path.partition("?")[0] for _, path in server.requests}
    discovery = re.compile(r"/api(/v1)?|/apis(/[\w.-]+/[\w]+)?")
    assert [path for path in paths if "/namespaces/team/" not in path and not discovery.fullmatch(path)] == []
    assert running.text().startswith('{"time": ')


@pytest.mark.long
@pytest.mark.parametrize("namespace", ["", "tarmill-system"], ids=["alone", "with a Lease"])
def test_an_outage_is_survived_and_what_happened_meanwhile_is_found_out(
    server: FakeServer, tmp_path: Path, namespace: str
) -> None:
    with operator(server, tmp_path / "log", TARMILL_NAMESPACE=namespace) as running:
        with server.lock:
            gone = server.cluster.make("gone", run={"suspend": True})
            kept = server.cluster.make("kept", run={"suspend": True})
        until(lambda: phase(server, gone) == phase(server, kept) == "Suspended", running)
        server.away = True
        with server.lock:
            server.cluster.api.remove(gone)
            server.cluster.api.told["ShardMap"].clear()  # nobody will ever tell
            server.cluster.edit(kept, "run", suspend=False)
        # a connection that breaks once is none: aiohttp asks again before it tells
        until(lambda: 'api_calls_total{status="0"' in running.ask("/metrics"), running)
        server.away = False
        until(lambda: phase(server, kept) == "Succeeded", running)
        until(lambda: 'phase="Suspended"' not in running.ask("/metrics"), running)


def test_a_dask_operator_that_is_installed_later_is_noticed_and_its_clusters_are_watched(
    server: FakeServer, tmp_path: Path
) -> None:
    with operator(server, tmp_path / "log", TARMILL_NAMESPACE="tarmill-system") as running:
        with server.lock:
            resource = server.cluster.make(cluster={"engine": "dask-kubernetes"})
        until(lambda: reason(server, resource) == "BackendMissing", running)
        server.missing.clear()
        until(lambda: phase(server, resource) == "Succeeded", running)
        assert any("/daskclusters?" in path and "watch=true" in path for _, path in server.requests)
        with server.lock:
            other = server.cluster.make("other")
        until(lambda: phase(server, other) == "Succeeded", running)
    assert running.process.returncode == 0
    assert "Traceback" not in running.text()


def test_of_two_operators_one_acts_and_the_other_takes_over_when_it_stops(server: FakeServer, tmp_path: Path) -> None:
    variables = {"TARMILL_NAMESPACE": "tarmill-system"}
    with operator(server, tmp_path / "one", TARMILL_POD_NAME="one", **variables) as one:
        until(lambda: "one_" in one.text() and "leads" in one.text(), one)
        with operator(server, tmp_path / "two", TARMILL_POD_NAME="two", **variables) as two:
            until(lambda: "waiting for the Lease" in two.text(), two)
            assert two.ask("/readyz") == "ok\n"
            assert "tarmill_operator_leader 0.0" in two.ask("/metrics")
            one.process.terminate()
            assert one.process.wait(20) == 0
            until(lambda: "leads" in two.text(), two)
            with server.lock:
                resource = server.cluster.make()
            until(lambda: phase(server, resource) == "Succeeded", two)


def test_an_operator_that_loses_its_lease_stops(server: FakeServer, tmp_path: Path) -> None:
    with operator(server, tmp_path / "log", TARMILL_NAMESPACE="tarmill-system") as running:
        until(lambda: "leads" in running.text(), running)
        with server.lock:
            (lease,) = server.cluster.api.of("Lease")
            server.cluster.api.change(lease, lambda item: item["spec"].update(holderIdentity="another"))
        assert running.process.wait(30) == 1
    assert "another holds the Lease now" in running.text()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"TARMILL_IMAGE": ""}, "TARMILL_IMAGE is not set"),
        ({"TARMILL_WORKERS": "many"}, "TARMILL_WORKERS is 'many'; expected a number of at least 1"),
        ({"TARMILL_LOG_FORMAT": "xml"}, "TARMILL_LOG_FORMAT is 'xml'; expected one of text, json"),
    ],
)
def test_bad_settings_are_told_and_end_it(
    server: FakeServer, tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    running = Operator(server, tmp_path / "log", **variables)
    assert running.process.wait(30) == 2
    assert message in running.text()
    assert "Traceback" not in running.text()
