"""What `reconcile` sees and decides, as plain values (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

Resource = dict[str, Any]
"""An object of Kubernetes as JSON."""


class Ref(NamedTuple):
    """An object in the resource's namespace."""

    api_version: str
    kind: str
    name: str
    uid: str = ""
    """Of what was seen, so that nothing else of that name is removed; "" where it cannot be known."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator was installed with.

    Attributes:
        image: of runner and workers, where a resource names none.
        image_pull_policy: likewise.
        namespace: where the operator runs; its pods alone may ask runners for their progress.
        cluster_domain: suffix of Service names.
        dask_operator: whether DaskCluster is a kind of this cluster.
    """

    image: str
    image_pull_policy: str = "IfNotPresent"
    namespace: str = ""
    cluster_domain: str = "cluster.local"
    dask_operator: bool = False


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something went wrong, at its root.

    Attributes:
        reason: one of `reasons.REASONS`.
        message: what was found, and the cure.
        component: "runner", "worker" or "input".
        pod: its name, "" where it is not a pod's fault.
        exit_code: of the container, None where it has not ended.
        disruption: whether the cluster took the pod away, so that it costs no retry.
        final: whether trying again cannot help.
    """

    reason: str
    message: str
    component: str = "runner"
    pod: str = ""
    exit_code: int | None = None
    disruption: bool = False
    final: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    """One resource and all that was seen of it.

    Attributes:
        resource: as the API server holds it.
        children: what it controls (others are never looked at), pods not among them.
        pods: of its runs.
        events: warnings about its children and pods.
        gone_runner: the runner's pod that was removed last, as it was then, as far as that was seen.
        progress: what the runner of the current attempt said last, None before it said anything.
        asked_every_s: how often runners are asked; so old may be what one said last.
        input: the resource that `inputFrom` names, None where there is none.
        input_cycle: names of resources that wait for each other in this order, ours first and last; () where ours may
            come to its turn.
        first_writer: another resource that writes to the same output and comes before ours, None where there is none.
        refusal: why the API server refused what the last decision applied, None where it did not.
        fresh: whether children and pods were read from the API server for this decision, not from watches, each of
            which may be late.
        settings: of the operator.
    """

    resource: Resource
    children: tuple[Resource, ...] = ()
    pods: tuple[Resource, ...] = ()
    events: tuple[Resource, ...] = ()
    gone_runner: Resource | None = None
    progress: dict[str, Any] | None = None
    asked_every_s: float = 0.0
    input: Resource | None = None
    input_cycle: tuple[str, ...] = ()
    first_writer: Resource | None = None
    refusal: Cause | None = None
    fresh: bool = False
    settings: Settings = field(default_factory=lambda: Settings("tarmill"))

    def child(self, kind: str, name: str) -> Resource | None:
        """Find a child by kind and name."""
        for child in self.children:
            if child["kind"] == kind and child["metadata"]["name"] == name:
                return child
        return None


@dataclass(frozen=True, slots=True)
class Notice:
    """An Event about a resource, in Kubernetes' style."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, in this order: store `status`; keep `logs`; apply; delete. Each can be repeated.

    Where the status changes what the rest depends on, the rest is empty: it follows once the status is stored.

    Attributes:
        status: the whole new status.
        apply: objects to make or change, in order; a Secret among them gets certificates, if there is none yet.
        logs: pods whose last lines are to be kept, before they go.
        logs_name: the ConfigMap that keeps them.
        delete: what to remove.
        delete_resource: whether the resource itself goes.
        notices: Events to post, once the status is stored.
        requeue_s: look again after so long; None to wait for a change.
        look_closer: nothing is to be done before Jobs and pods were read from the API server, and decided on again.
    """

    status: dict[str, Any]
    apply: tuple[Resource, ...] = ()
    logs: tuple[str, ...] = ()
    logs_name: str = ""
    delete: tuple[Ref, ...] = ()
    delete_resource: bool = False
    notices: tuple[Notice, ...] = ()
    requeue_s: float | None = None
    look_closer: bool = False
