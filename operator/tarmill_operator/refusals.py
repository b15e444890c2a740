"""What a refusal of the API server means to the person whose resource it is about (pure)."""

from __future__ import annotations

from tarmill_operator.api import ApiError
from tarmill_operator.model import Cause, Resource

_MAX_MESSAGE = 1024


def cause_of_refusal(error: ApiError, refused: Resource) -> Cause:
    """Give the cause that is shown for an object that could not be made or changed.

    Args:
        error: not a transient one.
        refused: the object.
    """
    kind, name = refused["kind"], refused["metadata"]["name"]
    message = f"{kind} {name}: {' '.join(error.message.split())}"[:_MAX_MESSAGE]
    if error.status == 403:
        return Cause("QuotaExceeded" if "exceeded quota" in error.message else "Forbidden", message)
    if error.status == 404 and kind == "DaskCluster":
        return Cause("BackendMissing", f"{message}; install the Dask operator, or choose cluster.engine: native")
    return Cause("InvalidSpec", message)


def name_conflict(wanted: Resource) -> Cause:
    """Give the cause for an object that is there, but is not ours."""
    kind, name = wanted["kind"], wanted["metadata"]["name"]
    return Cause("NameConflict", f"{kind} {name} is there, and this resource does not control it; remove it")
