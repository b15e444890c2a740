"""What the Helm chart renders, without a cluster."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.kube_clusters import find_helm

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "tarmill"
HELM = find_helm()
needs_helm = pytest.mark.skipif(HELM is None, reason="there is no helm: 'make kube-node' builds one")

Values = Mapping[str, Any]
EVERYTHING: Values = {
    "storage": {"enabled": True, "usersSecret": "users"},
    "networkPolicy": {"enabled": True},
    "metrics": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}, "dashboard": {"enabled": True}},
    "imagePullSecrets": [{"name": "registry"}],
    "priorityClassName": "high",
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"operator": "Exists"}],
    "podLabels": {"team": "data"},
    "operator": {"extraEnv": [{"name": "TZ", "value": "UTC"}]},
}
NAMESPACED: Values = {"watchNamespaces": ["one", "two"]}
_RENDERED: dict[str, str] = {}


def helm(folder: Path, values: Values, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm with values, on no cluster; a file with them is left in the folder."""
    (folder / "values.json").write_text(json.dumps(values))
    command = [str(HELM), *arguments, "--values", str(folder / "values.json"), "--namespace", "system"]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)


def rendered(folder: Path, values: Values) -> list[dict[str, Any]]:
    """The chart's objects, as release `mill` in the namespace `system`."""
    text = json.dumps(values)
    if text not in _RENDERED:
        done = helm(folder, values, "template", "mill", str(CHART))
        assert done.returncode == 0, done.stderr
        _RENDERED[text] = done.stdout
    return [document for document in yaml.load_all(_RENDERED[text], yaml.CSafeLoader) if document]


def one(objects: Sequence[dict[str, Any]], kind: str, name: str = "mill") -> dict[str, Any]:
    [found] = [item for item in objects if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return found
