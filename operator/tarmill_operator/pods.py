"""Pod templates of runner and workers: what `restricted` asks for, and what the resource says of them (pure)."""

from __future__ import annotations

from typing import Any

from tarmill_operator.merge import merged
from tarmill_operator.model import Resource, Settings
from tarmill_operator.names import (
    DASK_PORT,
    ROLE_LABEL,
    RUNNER,
    SCRIPTS_FOLDER,
    SPEC_FOLDER,
    STATUS_PORT,
    TLS_FOLDER,
    WORKER,
)

_UID = 65532
_POD_FIELDS = ("nodeSelector", "tolerations", "affinity", "priorityClassName", "serviceAccountName", "volumes")
_CONTAINER_FIELDS = ("resources", "env", "envFrom", "volumeMounts")
TLS_FILES = {"ca": "ca.crt", "cert": "tls.crt", "key": "tls.key"}
DASK_TLS = [
    part
    for option, file in {"ca-file": "ca.crt", "cert": "tls.crt", "key": "tls.key"}.items()
    for part in (f"--tls-{option}", f"{TLS_FOLDER}/{file}")
]
"""Options of Dask's own commands."""

# A worker that Dask pauses or empties by memory would stand still without telling why; the kernel's verdict is plain.
_WORKER_ENV = [
    {"name": f"DASK_DISTRIBUTED__WORKER__MEMORY__{name}", "value": "False"}
    for name in ("TARGET", "SPILL", "PAUSE", "TERMINATE")
]


def runner_template(
    resource: Resource,
    settings: Settings,
    labels: dict[str, str],
    *,
    spec_name: str,
    tls_name: str,
    scheduler: str = "",
) -> Resource:
    """Make the pod template of a runner.

    Args:
        resource: ours.
        settings: of the operator.
        labels: of the run and attempt.
        spec_name: the ConfigMap with job.json.
        tls_name: the Secret with certificates; "" where the runner does the work by itself.
        scheduler: address of an outer Dask scheduler; "" to start one in the runner, if there is a `tls_name`.
    """
    arguments = ["run", "--spec", f"{SPEC_FOLDER}/job.json", "--serve", "--status-port", str(STATUS_PORT)]
    arguments += ["--log-format", "json", "--report", "auto"]
    ports = [{"name": "status", "containerPort": STATUS_PORT}]
    if tls_name:
        for option, file in TLS_FILES.items():
            arguments += [f"--tls-{option}", f"{TLS_FOLDER}/{file}"]
        if scheduler:
            arguments += ["-c", scheduler]
        else:
            arguments += ["--dask-port", str(DASK_PORT)]
            ports.append({"name": "dask", "containerPort": DASK_PORT})
    if resource["spec"].get("failure", {}).get("onPoisonShard") == "Fail":
        arguments.append("--fail-fast")
    container = {
        "name": RUNNER,
        "args": arguments,
        "ports": ports,
        "terminationMessagePolicy": "File",
        "volumeMounts": [{"name": "job", "mountPath": SPEC_FOLDER, "readOnly": True}, *_script_mounts(resource)],
    }
    volumes = [{"name": "job", "configMap": {"name": spec_name}}, *_script_volumes(resource, spec_name)]
    return _template(resource, settings, RUNNER, labels, container, volumes, tls_name)


def worker_template(
    resource: Resource, settings: Settings, labels: dict[str, str], *, address: str, tls_name: str, name: str = ""
) -> Resource:
    """Make the pod template of workers.

    No nanny, so that a worker that runs out of memory is a container that Kubernetes saw being killed; no death
    timeout, so that it waits for a runner that is being replaced.

    Args:
        resource, settings, labels: as for the runner.
        address: of the scheduler.
        tls_name: the Secret with certificates.
        name: what a worker calls itself; by default its own address, which no later container has again.
    """
    threads = resource["spec"].get("workers", {}).get("threads", 1)
    command = ["dask", "worker", address, "--no-nanny", "--no-dashboard", "--nthreads", str(threads)]
    command += ["--memory-limit", "$(MEMORY_LIMIT)", "--local-directory", "/tmp"]
    command += DASK_TLS
    if name:
        command += ["--name", name]
    limit = {"resourceFieldRef": {"containerName": WORKER, "resource": "limits.memory"}}
    container = {
        "name": WORKER,
        "command": command,
        "env": [{"name": "MEMORY_LIMIT", "valueFrom": limit}, *_WORKER_ENV],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [],
    }
    return _template(resource, settings, WORKER, labels, container, [], tls_name)


def _template(
    resource: Resource,
    settings: Settings,
    role: str,
    labels: dict[str, str],
    container: dict[str, Any],
    volumes: list[dict[str, Any]],
    tls_name: str,
) -> Resource:
    spec = resource["spec"]
    asked = spec.get("runner" if role == RUNNER else "workers", {})
    mounts = [*container["volumeMounts"], {"name": "tmp", "mountPath": "/tmp"}]
    volumes = [*volumes, {"name": "tmp", "emptyDir": {}}]
    if tls_name:
        mounts.append({"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True})
        volumes.append({"name": "tls", "secret": {"secretName": tls_name, "defaultMode": 0o440}})
    container = {
        **container,
        "image": spec.get("image") or settings.image,
        "imagePullPolicy": spec.get("imagePullPolicy") or settings.image_pull_policy,
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    container = merged(container, {name: asked[name] for name in _CONTAINER_FIELDS if asked.get(name)})
    pod: dict[str, Any] = {
        "restartPolicy": "Never" if role == RUNNER else "Always",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _UID,
            "runAsGroup": _UID,
            "fsGroup": _UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    if spec.get("imagePullSecrets"):
        pod["imagePullSecrets"] = spec["imagePullSecrets"]
    pod = merged(pod, {name: asked[name] for name in _POD_FIELDS if asked.get(name)})
    metadata: dict[str, Any] = {"labels": {**(asked.get("labels") or {}), **labels, ROLE_LABEL: role}}
    if asked.get("annotations"):
        metadata["annotations"] = asked["annotations"]
    template = {"metadata": metadata, "spec": pod}
    wanted = asked.get("podTemplate") or {}
    made = dict(merged(template, {part: wanted[part] for part in ("metadata", "spec") if wanted.get(part)}))
    # by these the operator finds its pods; no template takes them away
    made["metadata"] = {**made["metadata"], "labels": {**(made["metadata"].get("labels") or {}), **labels}}
    made["metadata"]["labels"][ROLE_LABEL] = role
    return made


def script_sources(resource: Resource) -> dict[str, dict[str, Any]]:
    """Find the scripts that are not in the spec itself, by field: {"configMap": ...} or {"path": ...}."""
    spec = resource["spec"]
    return {name: spec[f"{name}From"] for name in ("script", "reduceScript") if spec.get(f"{name}From")}


def script_path(name: str, source: dict[str, Any]) -> str:
    """Tell where the runner finds a script."""
    return str(source["path"]) if "path" in source else f"{SCRIPTS_FOLDER}/{name}/{source['configMap']['key']}"


def _script_mounts(resource: Resource) -> list[dict[str, Any]]:
    return [
        {"name": f"script-{place}", "mountPath": f"{SCRIPTS_FOLDER}/{name}", "readOnly": True}
        for place, (name, source) in enumerate(script_sources(resource).items())
        if "configMap" in source
    ]


def _script_volumes(resource: Resource, spec_name: str) -> list[dict[str, Any]]:
    """Mount scripts as they were when the run began, not as somebody may have changed them since."""
    return [
        {
            "name": f"script-{place}",
            "configMap": {"name": spec_name, "items": [{"key": name, "path": source["configMap"]["key"]}]},
        }
        for place, (name, source) in enumerate(script_sources(resource).items())
        if "configMap" in source
    ]
