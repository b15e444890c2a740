"""What Argo CD (by its Lua) and Flux (by its CEL) make of resources, on statuses as the operator writes them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cel_expr_python import cel
from lupa import lua51
from support.helm import CHART, helm, needs_helm
from support.kube_clusters import NODE_CACHE

from tarmill.spec import KINDS
from tarmill_operator.conditions import conditions
from tarmill_operator.status_schema import PHASES

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
JUDGE = shutil.which("gitops-health", path=str(NODE_CACHE / "bin"))
HEALTH = yaml.safe_load((DEPLOY / "argocd" / "health.yaml").read_text())["data"]
RULES = yaml.safe_load((DEPLOY / "flux" / "jobs.yaml").read_text())["spec"]["healthCheckExprs"]
NOW = 1_800_000_000.0


def resource(phase: str, reason: str = "Working", *, generation: int = 1, **status: Any) -> dict[str, Any]:
    """A resource as the operator leaves it in a phase, its spec of a generation; the status is about the first."""
    told = {
        "observedGeneration": 1,
        "phase": phase,
        "reason": reason,
        "message": "what was found",
        "conditions": conditions([], phase, reason, "what was found", 1, NOW),
    }
    return {
        "apiVersion": "tarmill.dev/v1alpha1",
        "kind": "ShardMap",
        "metadata": {"name": "digits", "generation": generation},
        "spec": {},
        "status": told | status,
    }


def new() -> dict[str, Any]:
    """A resource as the API server makes it, before the operator has seen it."""
    return {**resource("Pending"), "status": {"observedGeneration": -1}}


STATES = {
    "new": (new(), "Progressing", "InProgress"),
    "changed since": (resource("Succeeded", generation=2), "Progressing", "InProgress"),
    "refused": (resource("Pending", "InvalidSpec"), "Degraded", "Failed"),
} | {phase: (resource(phase), "Progressing", "InProgress") for phase in PHASES}
STATES["Suspended"] = (resource("Suspended"), "Suspended", "Current")
STATES["Succeeded"] = (resource("Succeeded"), "Healthy", "Current")
STATES["Failed"] = (resource("Failed"), "Degraded", "Failed")


def argo(item: dict[str, Any], script: str) -> tuple[str, str]:
    """Health and message by an interpreter that has opened no more libraries than Argo CD does: base and table."""
    lua = lua51.LuaRuntime(register_eval=False, register_builtins=False)
    lua.execute("getmetatable('').__index = nil; string, io, os, math, debug, require = nil")
    lua.globals().obj = lua.table_from(item, recursive=True)
    health = lua.execute(script)
    return health["status"], health["message"]


def flux(item: dict[str, Any], rules: dict[str, str]) -> str:
    """As Flux' controller asks: is it in progress, has it failed, is it current; if nothing, then in progress."""
    types = dict.fromkeys(item, cel.Type.DYN)
    environment = cel.NewEnv(variables=types)
    for state in ("inProgress", "failed", "current"):
        answer = environment.compile(rules[state]).eval(data=item).value()
        assert isinstance(answer, bool), f"{state}: {answer}"
        if answer:
            return state[0].upper() + state[1:]
    return "InProgress"


@pytest.mark.parametrize("state", STATES)
def test_argo_cd_tells_the_health_of_each_state(state: str) -> None:
    item, health, _ = STATES[state]
    found, message = argo(item, HEALTH["resource.customizations.health.tarmill.dev_ShardMap"])
    assert found == health
    assert message == ("waiting for the operator" if state in ("new", "changed since") else "what was found")


def test_argo_cd_shows_how_far_a_job_is_and_what_it_failed_of() -> None:
    script = HEALTH["resource.customizations.health.tarmill.dev_ShardSort"]
    assert argo(resource("Running", shardsText="3/10"), script)[1] == "what was found (3/10 shards)"
    failure = {"reason": "WorkerOOMKilled", "message": "the worker used more than 1Gi"}
    told = argo(resource("Failed", lastFailure=failure), script)[1]
    assert told == "what was found (WorkerOOMKilled: the worker used more than 1Gi)"
    assert argo(resource("Failed", lastFailure={**failure, "message": "what was found"}), script)[1] == "what was found"


@pytest.mark.parametrize("state", STATES)
def test_flux_tells_the_health_of_each_state(state: str) -> None:
    item, _, health = STATES[state]
    assert flux(item, RULES[0]) == health


@pytest.mark.skipif(JUDGE is None, reason="there is no gitops-health: 'make kube-node' builds it")
def test_the_code_of_argo_cd_and_of_kstatus_say_the_same() -> None:
    """kstatus is what `kubectl wait`, Flux without expressions and kpt go by; to it a suspended job is on its way."""
    objects = "".join(json.dumps(item) for item, _, _ in STATES.values())
    script = DEPLOY / "argocd" / "health.lua"
    done = subprocess.run([str(JUDGE), str(script)], input=objects, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    found = dict(zip(STATES, map(json.loads, done.stdout.splitlines()), strict=True))
    assert {state: told["argo"] for state, told in found.items()} == {state: x[1] for state, x in STATES.items()}
    flux_says = {state: "InProgress" if state == "Suspended" else x[2] for state, x in STATES.items()}
    assert {state: told["kstatus"] for state, told in found.items()} == flux_says
    for state, told in found.items():
        assert told["message"] == argo(STATES[state][0], script.read_text())[1]


def test_both_know_all_kinds() -> None:
    names = [kind.name for kind in KINDS]
    assert [key.rpartition("_")[2] for key in HEALTH] == names
    assert [rule["kind"] for rule in RULES] == names
    assert len(set(HEALTH.values())) == 1


@needs_helm
def test_the_generated_files_are_current() -> None:
    done = subprocess.run([sys.executable, str(DEPLOY / "render.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


INSTALL = (ROOT / "docs" / "kubernetes" / "install.md").read_text().replace("\\\n", "")


@needs_helm
@pytest.mark.parametrize("flags", re.findall(r"^helm (?:upgrade --)?install tarmill oci://\S+ (.*)$", INSTALL, re.M))
def test_the_values_in_the_install_page_are_values_of_the_chart(tmp_path: Path, flags: str) -> None:
    words = [word for word in shlex.split(flags) if word != "--create-namespace"]
    done = helm(tmp_path, {}, "template", "tarmill", str(CHART), *words)
    assert done.returncode == 0, done.stderr


def test_each_value_that_the_install_page_names_is_there() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = INSTALL.partition("| value |")[2].partition("\n\n")[0]
    names = re.findall(r"`([a-zA-Z]+(?:\.[a-zA-Z]+)*)(?:: [^`]*)?`(?= \||,)", rows)
    assert len(names) > 8
    for name in names:
        found: Any = values
        for part in name.split("."):
            assert part in found, name
            found = found[part]


def test_examples_of_jobs_name_fields_that_there_are() -> None:
    for item in yaml.safe_load_all((DEPLOY / "argocd" / "jobs.yaml").read_text()):
        crd = yaml.safe_load((ROOT / "crds" / f"tarmill.dev_{item['kind'].lower()}s.yaml").read_text())
        known = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        assert item["spec"].keys() <= known["properties"].keys()
        assert set(known["required"]) <= item["spec"].keys()
        for role in ("runner", "workers"):
            assert item["spec"][role].keys() <= known["properties"][role]["properties"].keys()
