"""What a resource says besides its kind's fields: image, roles, engine, run and failure policy, as specs (pure).

They are declared as the runner's specs are, so that one function makes the schema of both.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from tarmill.spec_base import Spec, camel, option
from tarmill.values import fields, valueclass

ENGINES = ("native", "dask-kubernetes")


@valueclass(kw_only=True)
class RunPolicy(Spec):
    """When a job runs, how often it is tried, how long it may take, and how long it is kept."""

    suspend: bool = option(
        False, help="Stop the pods and keep what is finished; false goes on from there. Costs no retry."
    )
    run_id: str = option(
        "", help="Any text. Another one starts a new run, and is the only way to change what is immutable."
    )
    backoff_limit: int = option(3, help="How often a failed attempt is tried again. Disruptions are not counted.")
    backoff_base_seconds: int = option(10, help="Pause before the first retry; doubled before each further one.")
    backoff_max_seconds: int = option(300, help="Longest pause before a retry.")
    pending_deadline_seconds: int = option(
        1800,
        help="Fail when an attempt has not begun to work after so long: image, quota, room on the nodes. 0: never.",
    )
    progress_deadline_seconds: int = option(
        0, help="End an attempt without any progress for so long, as a counted failure. 0: never."
    )
    active_deadline_seconds: int = option(
        0, help="Fail when the run has been active for so long, all attempts together. 0: never."
    )
    ttl_seconds_after_finished: int = option(
        3600, help="Remove the children of a finished run after so long; the resource stays. -1: keep them."
    )
    delete_when_expired: bool = option(
        False, help="Remove the resource itself too, then. Not with GitOps, which would apply it again."
    )


@valueclass(kw_only=True)
class FailurePolicy(Spec):
    """What to do about shards and workers that fail."""

    on_poison_shard: str = option(
        "Continue",
        choices=("Continue", "Fail"),
        help="A shard that fails for good: finish the others before the attempt fails, or stop at once. Either way the "
        "data set gets no manifest, and a retry does only what is missing.",
    )
    max_worker_restarts: int = option(
        50,
        help="End an attempt, as a counted failure, when one worker pod has failed and begun again more often than "
        "this in its place. What the cluster takes away is not counted. -1: never.",
    )


@valueclass(kw_only=True)
class ClusterPolicy(Spec):
    """What the workers run on."""

    engine: str = option(
        "native",
        choices=ENGINES,
        help="Workers as a Deployment of our own, or as a DaskCluster of the Dask operator, which must be installed.",
    )


@valueclass(kw_only=True)
class WorkerCount(Spec):
    """How many workers, and what each does."""

    replicas: int = option(
        2, help="Worker pods; may be changed while the job runs. 0: the runner's pod does the work by itself."
    )
    threads: int = option(1, help="Shards that one worker works on at a time, each in a thread.")


def policy(kind: Any, spec: dict[str, Any], name: str) -> Any:
    """Read one of these policies out of a resource's spec, defaults where it says nothing.

    Args:
        kind: the class above.
        spec: of a resource, as the API server gives it.
        name: the field that holds it.
    """
    known = {camel(field.name) for field in fields(kind)}
    given = {key: value for key, value in (spec.get(name) or {}).items() if key in known}
    return _read(kind, json.dumps(given))


@lru_cache(maxsize=4096)  # each resource is looked at some twenty times, and most say the same
def _read(kind: Any, given: str) -> Any:
    return kind.from_dict(json.loads(given))
