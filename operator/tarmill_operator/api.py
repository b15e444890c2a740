"""What the operator asks of a Kubernetes API server, and how that fails; `kube.py` does it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from tarmill_operator.model import Ref, Resource


class ApiError(Exception):
    """The API server refused or failed, or could not be reached.

    Attributes:
        status: of HTTP; 0 where no answer came, in which case the request may have been carried out.
        reason: the server's word for it, `AlreadyExists` for instance.
        message: the server's, for people.
        retry_after_s: how long the server asks to be left alone; None where it does not.
    """

    def __init__(self, status: int, message: str, reason: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(f"HTTP {status} {reason}: {message}" if status else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed a moment later, so that it says nothing about what was asked."""
        invalid = "typed patch object" in self.message or "field not declared in schema" in self.message
        return self.status in (0, 401, 408, 429) or (self.status >= 500 and not invalid)

    @property
    def is_farewell(self) -> bool:
        """Whether nothing can be made any more in a namespace that is being deleted, with all that is in it."""
        return self.status == 403 and "because it is being terminated" in self.message


class Listed(NamedTuple):
    """Answer to a list."""

    items: list[Resource]
    version: str
    """resourceVersion at which the list was complete."""


class Api(Protocol):
    """Calls to an API server; each raises ApiError, and ends within its timeout."""

    async def get(self, namespace: str, ref: Ref) -> Resource:
        """Read one object."""

    async def list(
        self, api_version: str, kind: str, namespace: str = "", *, labels: str = "", fields: str = ""
    ) -> Listed:
        """Read all objects of a kind; of all namespaces where none is named."""

    async def create(self, resource: Resource) -> Resource:
        """Create an object; 409 where there is one of that name."""

    async def apply(self, resource: Resource) -> Resource:
        """Apply the fields given, on the server, as ours; `metadata.uid` keeps it from making or changing another."""

    async def replace(self, resource: Resource) -> Resource:
        """Replace an object if it is still at the resourceVersion given; 409 where it is not."""

    async def put_status(self, resource: Resource) -> Resource:
        """Replace an object's status if it is still at the resourceVersion given; 409 where it is not."""

    async def delete(self, namespace: str, ref: Ref) -> Resource | None:
        """Delete an object, and what it owns in the background; 409 where the uid is another's.

        Returns:
            What is left of it while something holds it back; None where it is gone.
        """

    async def pod_log(self, namespace: str, pod: str, container: str, *, previous: bool = False) -> str:
        """Read the last lines of a container."""

    async def kinds(self, api_version: str) -> set[str]:
        """Name the kinds of an API group's version; none where the group is not there."""


def status_of(body: Any) -> tuple[str, str]:
    """Read reason and message out of the body of a refusal."""
    if isinstance(body, dict):
        return str(body.get("reason") or ""), str(body.get("message") or "")
    return "", str(body)[:500]
