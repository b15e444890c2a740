"""The files that bring the store to a machine or a cluster say only what start.sh knows, and keep it without rights."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.pods import assert_restricted
from support.webstore import FOLDER, IMAGE_USER, START

VARIABLES = set(re.findall(r"\$\{(STORE_[A-Z_]+):-", START.read_text()))


@pytest.fixture(scope="module")
def kubernetes() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def pod(kubernetes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return kubernetes["StatefulSet"]["spec"]["template"]["spec"]


def test_the_image_holds_all_that_start_needs_and_runs_without_rights() -> None:
    lines = [shlex.split(line) for line in (FOLDER / "Dockerfile").read_text().splitlines() if line and line[0] != "#"]
    copied = [Path(line[1]) for line in lines if line[0] == "COPY"]
    assert all((FOLDER / path).exists() for path in copied)
    assert {path.name for path in copied} == {"start.sh", "conf"}
    assert [line[1] for line in lines if line[0] == "USER"][-1] == f"{IMAGE_USER}:{IMAGE_USER}"
    kept = {line[1:] for line in (FOLDER / ".dockerignore").read_text().split() if line.startswith("!")}
    assert kept == {"start.sh", "conf"}
    assert START.stat().st_mode & 0o111 == 0o111


def test_the_pod_is_restricted(pod: dict[str, Any]) -> None:
    """The rules of the Pod Security Standard `restricted`, and a root file system that is read-only."""
    assert_restricted(pod)
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == IMAGE_USER
    assert pod["automountServiceAccountToken"] is False
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "emptyDir", "projected", "secret", "persistentVolumeClaim"}


def test_the_pod_is_ready_when_it_is_healthy_and_its_parts_find_each_other(
    kubernetes: dict[str, dict[str, Any]], pod: dict[str, Any]
) -> None:
    container = pod["containers"][0]
    assert {variable["name"] for variable in container["env"]} <= VARIABLES
    assert all(isinstance(variable["value"], str) for variable in container["env"])
    assert container["readinessProbe"]["httpGet"]["path"] == "/healthz"
    claims = kubernetes["StatefulSet"]["spec"]["volumeClaimTemplates"]
    volumes = {item["name"] for item in pod["volumes"]} | {claim["metadata"]["name"] for claim in claims}
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == {
        "sets": "/data",
        "secrets": "/etc/store",
        "tmp": "/tmp",
    }
    assert volumes == {"sets", "secrets", "tmp"}
    labels = kubernetes["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        kubernetes["StatefulSet"]["spec"]["selector"]["matchLabels"],
        kubernetes["Service"]["spec"]["selector"],
        kubernetes["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in kubernetes["Service"]["spec"]["ports"]} <= ports
    policy = kubernetes["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    assert all(rule["from"] for rule in policy["ingress"])


def test_no_secret_is_filled_in(kubernetes: dict[str, dict[str, Any]], pod: dict[str, Any]) -> None:
    assert "Secret" not in kubernetes
    secrets = next(volume for volume in pod["volumes"] if volume["name"] == "secrets")
    assert [source["secret"]["name"] for source in secrets["projected"]["sources"]] == [
        "training-sets-users",
        "training-sets-tls",
    ]


def test_compose_gives_no_rights_and_knows_the_variables() -> None:
    service = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["store"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["environment"]) <= VARIABLES
    assert "./secrets:/etc/store:ro" in service["volumes"]
    assert service["ports"][0].startswith("${STORE_PORT_ON_HOST:-127.0.0.1:")
