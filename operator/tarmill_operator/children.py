"""The objects that a run consists of, as they are to be: for server-side apply (pure)."""

from __future__ import annotations

import json
from typing import Any

from tarmill.spec import API_VERSION
from tarmill_operator.changes import Part, hash_of
from tarmill_operator.cluster_spec import FailurePolicy, policy
from tarmill_operator.crds import CLUSTER_FIELDS
from tarmill_operator.model import Ref, Resource, Settings
from tarmill_operator.names import (
    ATTEMPT_LABEL,
    DASK_PORT,
    HASH_ANNOTATION,
    HOSTS_ANNOTATION,
    ROLE_LABEL,
    RUN_LABEL,
    RUNNER,
    SCRIPTS_ANNOTATION,
    STATUS_PORT,
    UID_LABEL,
    WORKER,
    base_name,
    job_name,
    labels_of,
    owner_reference,
    run_name,
    tls_name,
    workers_name,
)
from tarmill_operator.pods import DASK_TLS, runner_template, script_path, script_sources, worker_template

DASK_API = "kubernetes.dask.org/v1"


class Children:
    """Makes the objects of one run of a resource.

    Args:
        resource: ours.
        settings: of the operator.
        run: number of the run.
        shards_input: the shard pattern that `inputFrom` stands for; "" where the spec names its input.
    """

    def __init__(self, resource: Resource, settings: Settings, run: int, shards_input: str = "") -> None:
        self._resource = resource
        self._settings = settings
        self._run = run
        self._input = shards_input
        metadata = resource["metadata"]
        self._namespace = metadata["namespace"]
        self._base = base_name(metadata["name"], metadata["uid"])
        self._labels = labels_of(resource["kind"], metadata["name"], metadata["uid"], run)
        self.replicas = int(resource["spec"].get("workers", {}).get("replicas", 0))
        self.engine = resource["spec"].get("cluster", {}).get("engine", "native")
        self.max_worker_restarts = policy(FailurePolicy, resource["spec"], "failure").max_worker_restarts
        self._tls = tls_name(self._base, run) if self.replicas else ""

    def certificate_names(self) -> list[str]:
        """Name the hosts that the certificate is for."""
        service = run_name(self._base, self._run)
        full = f"{service}.{self._namespace}.svc"
        return [service, full, f"{full}.{self._settings.cluster_domain}"]

    def parts(self, attempt: int) -> list[Part]:
        """Give what an attempt needs, in order: spec, policy, certificates, Service, the runner's Job, workers."""
        name, job, workers = run_name(self._base, self._run), self.job_ref(attempt), self.workers_ref()
        runner = Part(job.kind, job.name, lambda: self._job(attempt))
        if not self.replicas:
            return [Part("ConfigMap", name, self._config_map), runner]
        return [
            Part("ConfigMap", name, self._config_map),
            # the policy tells later that there is a Secret, see `leftovers.refs_of`
            Part("NetworkPolicy", name, self._network_policy),
            Part("Secret", self._tls, self._secret),
            *([Part("Service", name, self._service)] if self.engine == "native" else []),
            runner,
            Part(workers.kind, workers.name, self._workers, self.replicas),
        ]

    def workers_ref(self) -> Ref:
        """Name the workers' object."""
        api, kind = ("apps/v1", "Deployment") if self.engine == "native" else (DASK_API, "DaskCluster")
        return Ref(api, kind, self.workers_name())

    def job_ref(self, number: int) -> Ref:
        """Name the Job of an attempt."""
        return Ref("batch/v1", "Job", job_name(self._base, self._run, number))

    def logs_name(self) -> str:
        """Name the ConfigMap with the last lines of pods that failed."""
        return f"{run_name(self._base, self._run)}-logs"

    def logs(self, lines: dict[str, str]) -> Resource:
        """Make that ConfigMap."""
        return self._object("v1", "ConfigMap", self.logs_name(), {"data": lines})

    def _secret(self) -> Resource:
        """Make the Secret for the run's certificates; whoever creates it fills it."""
        made = self._object("v1", "Secret", self._tls, {"type": "kubernetes.io/tls"})
        made["metadata"]["annotations"][HOSTS_ANNOTATION] = ",".join(self.certificate_names())
        return made

    def _object(self, api: str, kind: str, name: str, body: dict[str, Any], **labels: str) -> Resource:
        metadata = {
            "name": name,
            "namespace": self._namespace,
            "labels": {**self._labels, **labels},
            "ownerReferences": [owner_reference(self._resource)],
        }
        made = {"apiVersion": api, "kind": kind, "metadata": metadata, **body}
        metadata["annotations"] = {HASH_ANNOTATION: hash_of(made)}
        return made

    def _config_map(self) -> Resource:
        text = json.dumps(job_document(self._resource, self._input), indent=1, sort_keys=True)
        made = self._object("v1", "ConfigMap", run_name(self._base, self._run), {"data": {"job.json": text}})
        sources = script_sources(self._resource).items()
        if scripts := {name: source["configMap"] for name, source in sources if "configMap" in source}:
            made["metadata"]["annotations"][SCRIPTS_ANNOTATION] = json.dumps(scripts, sort_keys=True)
        return made

    def _pod_selector(self, **labels: str) -> dict[str, str]:
        return {UID_LABEL: self._labels[UID_LABEL], RUN_LABEL: self._labels[RUN_LABEL], **labels}

    def _service(self) -> Resource:
        spec = {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # workers look for the scheduler while its pod is still starting
            "selector": self._pod_selector(**{ROLE_LABEL: RUNNER}),
            "ports": [{"name": "dask", "port": DASK_PORT}, {"name": "status", "port": STATUS_PORT}],
        }
        return self._object("v1", "Service", run_name(self._base, self._run), {"spec": spec})

    def _network_policy(self) -> Resource:
        """Close the run's pods to all but each other; a Dask port runs whatever code it is sent."""
        status: dict[str, Any] = {"ports": [{"port": STATUS_PORT}]}
        if self._settings.namespace:
            status["from"] = [
                {
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self._settings.namespace}},
                    "podSelector": {"matchLabels": {"app.kubernetes.io/name": "tarmill"}},
                },
                {"namespaceSelector": {"matchLabels": {"tarmill.dev/metrics": "true"}}},
            ]
        peers = [{"podSelector": {"matchLabels": self._pod_selector()}}]
        if self.engine != "native":
            peers.append({"podSelector": {"matchLabels": {"dask.org/cluster-name": self.workers_name()}}})
        spec = {
            "podSelector": {"matchLabels": self._pod_selector()},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": peers}, status],
        }
        return self._object("networking.k8s.io/v1", "NetworkPolicy", run_name(self._base, self._run), {"spec": spec})

    def _job(self, number: int) -> Resource:
        labels = {**self._labels, ATTEMPT_LABEL: str(number)}
        template = runner_template(
            self._resource,
            self._settings,
            labels,
            spec_name=run_name(self._base, self._run),
            tls_name=self._tls,
            scheduler=self._outer_scheduler(),
        )
        spec = {"backoffLimit": 0, "completions": 1, "parallelism": 1, "template": template}
        name = job_name(self._base, self._run, number)
        return self._object("batch/v1", "Job", name, {"spec": spec}, **{ATTEMPT_LABEL: str(number)})

    def workers_name(self) -> str:
        """Name the workers' object; its pods' names begin with it."""
        if self.engine == "native":
            return workers_name(self._base, self._run)
        # the Dask operator makes DNS names of 18 characters more out of it
        return f"tarmill-{self._labels[UID_LABEL].replace('-', '')[:12]}-r{self._run}"

    def _outer_scheduler(self) -> str:
        if self.engine == "native" or not self.replicas:
            return ""
        return (
            f"tls://{self.workers_name()}-scheduler.{self._namespace}.svc.{self._settings.cluster_domain}:{DASK_PORT}"
        )

    def _workers(self) -> Resource:
        return self._deployment() if self.engine == "native" else self._dask_cluster()

    def _deployment(self) -> Resource:
        address = f"tls://{run_name(self._base, self._run)}:{DASK_PORT}"
        template = worker_template(self._resource, self._settings, self._labels, address=address, tls_name=self._tls)
        spec = {
            "replicas": self.replicas,
            "selector": {"matchLabels": self._pod_selector(**{ROLE_LABEL: WORKER})},
            "strategy": {"type": "RollingUpdate"},
            "template": template,
        }
        return self._object("apps/v1", "Deployment", self.workers_name(), {"spec": spec})

    def _dask_cluster(self) -> Resource:
        """Make a DaskCluster with commands of our own: its defaults name scripts that Dask no longer has."""
        name = self.workers_name()
        worker = worker_template(
            self._resource,
            self._settings,
            self._labels,
            address=f"tls://{name}-scheduler.{self._namespace}.svc.{self._settings.cluster_domain}:{DASK_PORT}",
            tls_name=self._tls,
            name="$(DASK_WORKER_NAME)",
        )
        scheduler = worker_template(self._resource, self._settings, self._labels, address="", tls_name=self._tls)
        container = scheduler["spec"]["containers"][0]
        container |= {
            "name": "scheduler",
            "command": ["dask", "scheduler", "--protocol", "tls", "--no-dashboard", "--no-show", *DASK_TLS],
            "ports": [{"name": "tcp-comm", "containerPort": DASK_PORT}],
            "env": [],
            "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        }
        service = {
            "type": "ClusterIP",
            "selector": {"dask.org/cluster-name": name, "dask.org/component": "scheduler"},
            "ports": [{"name": "tcp-comm", "protocol": "TCP", "port": DASK_PORT, "targetPort": "tcp-comm"}],
        }
        pods = {"replicas": self.replicas, "spec": worker["spec"]}
        spec = {"worker": pods, "scheduler": {"spec": scheduler["spec"], "service": service}}
        # the Dask operator copies these labels to the pods, by which we find them
        return self._object(DASK_API, "DaskCluster", name, {"spec": spec}, **{ROLE_LABEL: WORKER})


def job_document(resource: Resource, shards_input: str = "") -> dict[str, Any]:
    """Make what `tarmill run --spec` reads: the kind's own fields, options, and where scripts are."""
    spec = {name: value for name, value in resource["spec"].items() if name not in CLUSTER_FIELDS}
    for name, source in script_sources(resource).items():
        spec[f"{name}Path"] = script_path(name, source)
    for name in ("scriptFrom", "reduceScriptFrom", "inputFrom"):
        spec.pop(name, None)
    if shards_input:
        spec["input"] = shards_input
    return {"apiVersion": API_VERSION, "kind": resource["kind"], "spec": spec}
