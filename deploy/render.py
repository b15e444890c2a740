"""Write the generated files of deploy/ again: plain manifests from the chart, health rules from one source each.

usage: render.py [--check]      (--check writes nothing and fails when a file is out of date)

helm is looked for on the PATH and where `make kube-node` builds one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tarmill.spec import API_VERSION, KINDS

DEPLOY = Path(__file__).resolve().parent
CHART = DEPLOY.parent / "charts" / "tarmill"
NODE_CACHE = os.environ.get("NODE_CACHE") or Path.home() / ".cache" / "tarmill-node"
NAMESPACE = "tarmill-system"
MADE = "# Made by `make manifests`; change {}.\n"
OF_HELM = ("helm.sh/chart", "app.kubernetes.io/managed-by")

_IS = "has(status.conditions) && status.conditions.exists(c, c.type in [{}] && c.status == 'True')"
FLUX_HEALTH = {
    "current": _IS.format("'Ready', 'Suspended'"),
    "inProgress": "status.observedGeneration != metadata.generation || " + _IS.format("'Reconciling'"),
    "failed": _IS.format("'Stalled'"),
}
"""A job that is suspended is as Git says, so that it does not hold up what is applied with it."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def dump(*documents: dict[str, Any]) -> str:
    """Write objects as people read them."""
    return "---\n".join(yaml.dump(item, Dumper=_Dumper, sort_keys=False, width=200) for item in documents)


def manifests() -> str:
    """Render the chart with its defaults, without the definitions, as one that knows no helm would write it."""
    helm = shutil.which("helm", path=os.pathsep.join([str(Path(NODE_CACHE, "bin")), os.environ.get("PATH", "")]))
    if helm is None:
        raise SystemExit("there is no helm: 'make kube-node' builds one")
    command = [helm, "template", "tarmill", str(CHART), "--namespace", NAMESPACE, "--set", "crds.install=false"]
    done = subprocess.run([*command, "--no-hooks", "--skip-tests"], capture_output=True, text=True, check=True)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    for item in objects:
        for metadata in (item["metadata"], item.get("spec", {}).get("template", {}).get("metadata", {})):
            for label in OF_HELM:
                metadata.get("labels", {}).pop(label, None)
    how = f"#   kubectl apply --server-side -f crds/ -f deploy/tarmill.yaml\n#\n{MADE.format('charts/tarmill')}"
    return f"# The operator for all namespaces, with the chart's defaults:\n#\n{how}{dump(space, *objects)}"


def argocd_health() -> str:
    """Make the patch of Argo CD's ConfigMap: in its keys a kind may not be `*`, hence the same script five times."""
    script = (DEPLOY / "argocd" / "health.lua").read_text()
    group = API_VERSION.partition("/")[0]
    data = {f"resource.customizations.health.{group}_{kind.name}": script for kind in KINDS}
    return MADE.format("health.lua") + dump({"data": data})


def flux_jobs() -> str:
    """Make the example of a Kustomization with jobs, whose health Flux can tell."""
    spec = {
        "interval": "10m",
        "sourceRef": {"kind": "GitRepository", "name": "training"},
        "path": "./jobs",
        "prune": True,
        "wait": True,
        "timeout": "24h",
        "dependsOn": [{"name": "tarmill"}],
        "healthCheckExprs": [{"apiVersion": API_VERSION, "kind": kind.name, **FLUX_HEALTH} for kind in KINDS],
    }
    item = {
        "apiVersion": "kustomize.toolkit.fluxcd.io/v1",
        "kind": "Kustomization",
        "metadata": {"name": "training-jobs", "namespace": "flux-system"},
        "spec": spec,
    }
    head = (
        "# Jobs by Flux: the Kustomization is ready when each of its data sets is complete, and what names it in\n"
        "# dependsOn waits for that. `timeout` is how long the jobs may take; `tarmill` here is the Kustomization\n"
        "# that applies operator.yaml.\n"
    )
    return head + MADE.format("render.py") + dump(item)


FILES = {"tarmill.yaml": manifests, "argocd/health.yaml": argocd_health, "flux/jobs.yaml": flux_jobs}


def main(check: bool) -> int:
    """Write all files, or compare them; the exit code is 1 when one differs."""
    stale = 0
    for name, make in FILES.items():
        path, after = DEPLOY / name, make()
        if path.exists() and path.read_text() == after:
            continue
        if check:
            stale = 1
            print(f"deploy/{name} is out of date; write it again: make manifests")
        else:
            path.write_text(after)
            print(f"wrote deploy/{name}")
    return stale


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
