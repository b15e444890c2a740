"""Root causes, from what pods and Events say (pure).

How each cause shows was seen on real nodes: a reason in a container's `waiting` or `terminated` state, a condition of
the pod, or, where no pod comes to be, only an Event about what should have made it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tarmill_operator.model import Cause, Observed, Resource
from tarmill_operator.names import ATTEMPT_LABEL, DASK_COMPONENT, ROLE_LABEL, RUN_LABEL, RUNNER, WORKER
from tarmill_operator.reasons import reason_of_error

_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "RegistryUnavailable"})
_REFUSED = frozenset({"CreateContainerError", "RunContainerError", "StartError", "CreateContainerConfigError"})
LAGGING = re.compile(
    r"failed to sync (configmap|secret) cache|object \S+ not registered|services have not yet been read at least once"
)
"""So a kubelet that has yet to hear from the API server, as after an outage; it tries again by itself."""
_MAX_MESSAGE = 1024
EXIT_USAGE = 2


def pods_of(observed: Observed, role: str, run: int, attempt: int | None = None) -> list[Resource]:
    """Find the pods of a role in a run (and attempt), the newest last."""
    found = []
    for pod in observed.pods:
        labels = pod["metadata"].get("labels", {})
        of_run = labels.get(ROLE_LABEL) == role and labels.get(RUN_LABEL) == str(run)
        # the Dask operator gives its scheduler's pod the labels of the workers
        if (
            of_run
            and labels.get(DASK_COMPONENT) != "scheduler"
            and (attempt is None or labels.get(ATTEMPT_LABEL) == str(attempt))
        ):
            found.append(pod)
    return sorted(found, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]))


def last_words(pod: Resource) -> dict[str, Any] | None:
    """Read the termination message of a runner's pod: what it says of its end; None where it said nothing."""
    for container in statuses_of(pod):
        ended = (container.get("state") or {}).get("terminated") or {}
        try:
            words = json.loads(ended.get("message") or "")
        except ValueError:
            continue
        if isinstance(words, dict) and words.get("format") == 1:
            return words
    return None


def cause_of_end(pod: Resource | None) -> Cause:
    """Tell why a runner that has not succeeded ended.

    Args:
        pod: of the runner; None where it is gone.
    """
    if pod is None:
        return Cause(
            "RunnerLost",
            "the runner's pod is gone and left no word; another attempt does what is missing",
            disruption=True,
        )
    name = pod["metadata"]["name"]
    if disruption := disruption_of(pod):
        return disruption
    ended = _terminated(pod)
    code = ended.get("exitCode")
    if ended.get("reason") == "OOMKilled":
        limit = memory_limit_of(pod)
        return Cause(
            "RunnerOOMKilled",
            f"the runner used more memory than its limit{limit}; raise runner.resources.limits.memory",
            pod=name,
            exit_code=code,
        )
    words = last_words(pod)
    if words is not None:
        usage = words.get("outcome") == "usage" or code == EXIT_USAGE
        reason = "UsageError" if usage else reason_of_error(str(words.get("reason", "")))
        message = shorten(str(words.get("message") or "the runner ended without a message"))
        # it was told to stop, by whoever: what it had finished stays, and nothing was wrong with it
        stopped = words.get("outcome") == "interrupted"
        return Cause("Disrupted" if stopped else reason, message, "runner", name, code, stopped, usage)
    if pod["metadata"].get("deletionTimestamp"):
        return Cause("Disrupted", "someone deleted the runner's pod", pod=name, exit_code=code, disruption=True)
    if ended.get("reason") == "StartError":
        return Cause(
            "ContainerRefused", shorten(ended.get("message") or "the command cannot be run"), pod=name, exit_code=code
        )
    if not ended:
        return Cause("RunnerLost", "the runner's pod ended before its container did", pod=name, disruption=True)
    return Cause(
        "RunnerFailed",
        f"the runner ended with exit code {code} ({ended.get('reason', 'no reason')}) and no message; see its log",
        pod=name,
        exit_code=code,
    )


def obstacle(observed: Observed, run: int, attempt: int, *, job: str, workers_name: str) -> Cause | None:
    """Tell what keeps the pods of an attempt from starting; None where nothing is known to.

    Args:
        observed: what was seen.
        run, attempt: numbers of these.
        job: name of the runner's Job.
        workers_name: name of the workers' object.
    """
    runner = pods_of(observed, RUNNER, run, attempt)
    workers = pods_of(observed, WORKER, run)
    for pod in [*runner[-1:], *workers]:
        component = pod["metadata"]["labels"][ROLE_LABEL]
        if cause := _obstacle_of_pod(pod, component, observed.events):
            return cause
    if not runner and (cause := _not_created(observed.events, RUNNER, job)):
        return cause
    if not workers:
        return _not_created(observed.events, WORKER, workers_name)
    return None


def _obstacle_of_pod(pod: Resource, component: str, events: Sequence[Resource]) -> Cause | None:
    name = pod["metadata"]["name"]
    for condition in pod.get("status", {}).get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return Cause("Unschedulable", shorten(condition.get("message", "")), component, name)
    for container in statuses_of(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), shorten(waiting.get("message", ""))
        if reason in _IMAGE:
            return Cause("ImagePullFailed", f"{container.get('image', '')}: {message or reason}", component, name)
        if reason in _REFUSED and not LAGGING.search(message):
            return Cause(_missing_kind(message) or "ContainerRefused", message or reason, component, name)
        if reason in ("ContainerCreating", "PodInitializing") and (cause := _mount(events, component, name)):
            return cause
    return None


def _mount(events: Iterable[Resource], component: str, pod: str) -> Cause | None:
    for event in events:
        about = event.get("involvedObject") or event.get("regarding") or {}
        if about.get("name") == pod and event.get("reason") in ("FailedMount", "FailedAttachVolume"):
            message = shorten(_text_of(event))
            if LAGGING.search(message):
                continue
            return Cause(_missing_kind(message) or "VolumeMissing", message, component, pod)
    return None


def _not_created(events: Iterable[Resource], component: str, maker: str) -> Cause | None:
    """A Job, or a Deployment's ReplicaSet, that may not make its pods says so in Events only."""
    for event in events:
        about = event.get("involvedObject") or event.get("regarding") or {}
        name = about.get("name", "")
        if event.get("reason") != "FailedCreate" or not (name == maker or name.startswith(f"{maker}-")):
            continue
        message = shorten(_text_of(event))
        return Cause("QuotaExceeded" if "exceeded quota" in message else "PodRefused", message, component)
    return None


def _missing_kind(message: str) -> str | None:
    if "not found" not in message and "couldn't find key" not in message:
        return None
    if "secret" in message.lower():
        return "SecretMissing"
    return "ConfigMapMissing" if "configmap" in message.lower() else None


def disruption_of(pod: Resource) -> Cause | None:
    """Tell what of the cluster took a pod away; None where nothing did."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    code = _terminated(pod).get("exitCode")
    for condition in status.get("conditions") or []:
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            message = f"{condition.get('reason', '')}: {condition.get('message', '')}"
            return Cause("Disrupted", shorten(message), "runner", name, code, disruption=True)
    if status.get("reason") == "Evicted":
        # a pod that outgrew its own volume or storage limit does so each time: that is a failure like others
        own = "limit" in status.get("message", "")
        return Cause("Evicted", shorten(status.get("message", "")), "runner", name, code, disruption=not own)
    if status.get("reason") in ("NodeLost", "Shutdown", "NodeShutdown", "Terminated", "Preempting"):
        return Cause("Disrupted", shorten(status.get("message", "")), "runner", name, code, disruption=True)
    return None


def _terminated(pod: Resource) -> dict[str, Any]:
    for container in statuses_of(pod):
        ended = (container.get("state") or {}).get("terminated")
        if ended:
            return dict(ended)
    return {}


def statuses_of(pod: Resource) -> list[dict[str, Any]]:
    """Give what the kubelet says of a pod's containers."""
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def memory_limit_of(pod: Resource) -> str:
    """Write a pod's limit as the end of a message; "" for none."""
    for container in pod.get("spec", {}).get("containers", []):
        limit = (container.get("resources", {}).get("limits") or {}).get("memory")
        if limit:
            return f" of {limit}"
    return ""


def _text_of(event: Resource) -> str:
    return str(event.get("message") or event.get("note") or "")


def shorten(text: str) -> str:
    """Make one line of a text, no longer than a status may hold."""
    line = " ".join(str(text).split())
    return line if len(line) <= _MAX_MESSAGE else line[: _MAX_MESSAGE - 3] + "..."
