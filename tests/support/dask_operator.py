"""The real Dask operator in a cluster, as the chart of its own package installs it.

with dask_operator(kube):
    ...  # DaskCluster is a kind of the cluster, and there is who makes them
"""

from __future__ import annotations

import base64
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.kube import Kube
from support.pods import has_ended, pod

CHART = "dask_kubernetes/operator/deployment/helm/dask-kubernetes-operator"
_PRINT_CHART = f"""
import base64, dask_kubernetes, io, pathlib, sys, tarfile
body = io.BytesIO()
with tarfile.open(fileobj=body, mode="w:xz") as archive:
    archive.add(pathlib.Path(dask_kubernetes.__file__).parent.parent / "{CHART}", "chart")
print(base64.b64encode(body.getvalue()).decode())
"""


@contextmanager
def dask_operator(kube: Kube) -> Iterator[Kube]:
    """Install it into a namespace of its own, which is given; remove it and its definitions in the end."""
    with kube.namespace() as home, tempfile.TemporaryDirectory() as folder:
        chart = _chart(home, Path(folder))
        repository, _, tag = kube.image("dask-operator").rpartition(":")
        values = {
            "image": {"name": repository, "tag": tag},
            "podSecurityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        }
        settings = Path(folder) / "values.json"
        settings.write_text(json.dumps(values))
        home.helm("install", "dask", str(chart), "--values", str(settings), "--wait", "--timeout", "120s")
        try:
            _wait_until_it_watches(home)
            yield home
        finally:
            home.helm("uninstall", "dask", "--wait")
            home.kubectl("delete", "--ignore-not-found", "-f", str(chart / "crds"), timeout_s=120)


def _wait_until_it_watches(home: Kube) -> None:
    """Wait until it has looked at a DaskCluster; helm waits for its container only, which has still to import Dask.

    The name is too long for it: it says so, and makes nothing.
    """
    name, nothing = "is-anybody-there-" + "x" * 40, {"containers": []}
    spec = {"worker": {"replicas": 0, "spec": nothing}, "scheduler": {"spec": nothing, "service": {}}}
    home.apply(
        {"apiVersion": "kubernetes.dask.org/v1", "kind": "DaskCluster", "metadata": {"name": name}, "spec": spec}
    )

    def is_refused(found: Any) -> bool:
        return bool(found.get("status", {}).get("phase") == "Error")

    home.wait("daskcluster", name, is_refused, 120, "a word of the Dask operator")
    home.delete("daskcluster", name)


def _chart(home: Kube, folder: Path) -> Path:
    """Bring the chart, which is in the image, to this machine."""
    home.apply(pod("chart", home.image("dask-operator"), ["python", "-c", _PRINT_CHART]))
    assert home.wait("pod", "chart", has_ended, what="the chart") == "Succeeded", home.logs("chart")
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(home.logs("chart")))) as archive:
        archive.extractall(folder, filter="data")
    return folder / "chart"
