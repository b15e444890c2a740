"""An API server in memory for tests of the operator: versions, conflicts, preconditions, watches that are late, faults.

Its calls never wait, so that a test can drive them without an event loop; see `drive`.
"""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine
from typing import Any

from tarmill_operator.api import ApiError, Listed
from tarmill_operator.model import Ref, Resource
from tarmill_operator.times import to_text

GRACEFUL = frozenset({"Pod"})
FAULTS: dict[str, Callable[[], ApiError]] = {
    "conflict": lambda: ApiError(409, "the object has been modified", "Conflict"),
    "invalid": lambda: ApiError(422, "spec.x: Invalid value", "Invalid"),
    "too many requests": lambda: ApiError(429, "try again", "TooManyRequests", 1.0),
    "server error": lambda: ApiError(500, "etcdserver: request timed out", "InternalError"),
    "time-out": lambda: ApiError(0, "no answer"),
    "lost reply": lambda: ApiError(0, "no answer"),
}
"""How a call fails; with a lost reply it is carried out all the same."""


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waited")


class FakeApi:
    """Implements `tarmill_operator.api.Api`; `clock` gives seconds since 1970."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.objects: dict[tuple[str, str, str], Resource] = {}
        self.told: dict[str, deque[tuple[str, Resource]]] = defaultdict(deque)
        """Kind -> what its watch has still to tell."""
        self.calls: list[str] = []
        self.fault: Callable[[int], str | None] = lambda number: None
        self.refuse: Callable[[Resource], ApiError | None] = lambda resource: None
        self.events: list[Resource] = []
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)

    # ---- calls of the operator --------------------------------------------------------------------------------------

    async def get(self, namespace: str, ref: Ref) -> Resource:
        return self._call(
            f"get {ref.kind} {ref.name}", lambda: copy.deepcopy(self._there(ref.kind, namespace, ref.name))
        )

    async def list(
        self, api_version: str, kind: str, namespace: str = "", *, labels: str = "", fields: str = ""
    ) -> Listed:
        name, _, value = labels.partition("=")

        def select() -> Listed:
            found = []
            for item in self.of(kind):
                have = item["metadata"].get("labels") or {}
                fits = not name or (have.get(name) == value if value else name in have)
                if fits and namespace in ("", item["metadata"]["namespace"]):
                    found.append(copy.deepcopy(item))
            return Listed(found, str(next(self._versions)))

        return self._call(f"list {kind}", select)

    async def create(self, resource: Resource) -> Resource:
        def make() -> Resource:
            if refusal := self.refuse(resource):
                raise refusal
            return copy.deepcopy(self.add(resource))

        return self._call(f"create {resource['kind']} {resource['metadata']['name']}", make)

    async def apply(self, resource: Resource) -> Resource:
        metadata = resource["metadata"]

        def merge() -> Resource:
            there = self.objects.get((resource["kind"], metadata["namespace"], metadata["name"]))
            if there is None or there["metadata"]["uid"] != metadata["uid"]:
                raise ApiError(409, "the uid is another's", "Conflict")
            body = {name: value for name, value in resource.items() if name != "metadata"}
            body["metadata"] = {"annotations": metadata.get("annotations", {})}
            return copy.deepcopy(self.change(there, lambda item: _lay_over(item, copy.deepcopy(body))))

        return self._call(f"apply {resource['kind']} {metadata['name']}", merge)

    async def replace(self, resource: Resource) -> Resource:
        return self._call(f"replace {resource['kind']}", lambda: self._replace(resource, ("metadata", "status")))

    async def put_status(self, resource: Resource) -> Resource:
        keep = tuple(name for name in resource if name != "status")
        return self._call("put status", lambda: self._replace(resource, keep))

    async def delete(self, namespace: str, ref: Ref) -> Resource | None:
        def remove() -> Resource | None:
            there = self._there(ref.kind, namespace, ref.name)
            if ref.uid and there["metadata"]["uid"] != ref.uid:
                raise ApiError(409, "the uid is another's", "Conflict")
            return copy.deepcopy(self.remove(there))

        return self._call(f"delete {ref.kind} {ref.name}", remove)

    async def pod_log(self, namespace: str, pod: str, container: str, *, previous: bool = False) -> str:
        return self._call("log", lambda: f"last lines of {self._there('Pod', namespace, pod)['metadata']['name']}\n")

    async def kinds(self, api_version: str) -> set[str]:
        return self._call("discover", lambda: set())

    # ---- what others do in the cluster ------------------------------------------------------------------------------

    def of(self, kind: str) -> list[Resource]:
        return [item for (known, _, _), item in self.objects.items() if known == kind]

    def add(self, resource: Resource) -> Resource:
        if resource["kind"] == "Event":
            self.events.append(resource)
            return resource
        metadata = resource["metadata"]
        key = (resource["kind"], metadata["namespace"], metadata["name"])
        if key in self.objects:
            raise ApiError(409, f"{key} already exists", "AlreadyExists")
        made = copy.deepcopy(resource)
        made.pop("stringData", None)
        made["metadata"] |= {
            "uid": f"{next(self._uids):08x}-0000-4000-8000-000000000000",
            "resourceVersion": str(next(self._versions)),
            "creationTimestamp": to_text(self.clock()),
            "generation": 1,
        }
        self.objects[key] = made
        self._tell("ADDED", made)
        return made

    def change(self, item: Resource, how: Callable[[Resource], object]) -> Resource:
        """Change an object in place; its watch tells if it is another then."""
        before = copy.deepcopy(item)
        how(item)
        if item != before:
            if item.get("spec") != before.get("spec"):
                item["metadata"]["generation"] = before["metadata"].get("generation", 1) + 1
            item["metadata"]["resourceVersion"] = str(next(self._versions))
            self._tell("MODIFIED", item)
        return item

    def remove(self, item: Resource, *, by_force: bool = False) -> Resource | None:
        """Remove an object; a pod that runs is told to go, and goes when its kubelet says so."""
        metadata = item["metadata"]
        runs = item.get("status", {}).get("phase") == "Running"
        if item["kind"] in GRACEFUL and runs and not by_force:
            self.change(item, lambda pod: pod["metadata"].setdefault("deletionTimestamp", to_text(self.clock() + 30)))
            return item
        del self.objects[item["kind"], metadata["namespace"], metadata["name"]]
        metadata["resourceVersion"] = str(next(self._versions))
        self._tell("DELETED", item)
        return None

    # ---- pieces -----------------------------------------------------------------------------------------------------

    def _tell(self, type_: str, item: Resource) -> None:
        self.told[item["kind"]].append((type_, copy.deepcopy(item)))

    def _there(self, kind: str, namespace: str, name: str) -> Resource:
        try:
            return self.objects[kind, namespace, name]
        except KeyError:
            raise ApiError(404, f"{kind} {name} not found", "NotFound") from None

    def _replace(self, resource: Resource, keep: tuple[str, ...]) -> Resource:
        metadata = resource["metadata"]
        there = self._there(resource["kind"], metadata["namespace"], metadata["name"])
        if there["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            raise ApiError(409, "the object has been modified", "Conflict")
        new = {name: copy.deepcopy(value) for name, value in resource.items() if name not in keep}
        return copy.deepcopy(self.change(there, lambda item: item.update(new)))

    def _call(self, what: str, do: Callable[[], Any]) -> Any:
        self.calls.append(what)
        fault = self.fault(len(self.calls))
        if fault is not None and fault != "lost reply":
            raise FAULTS[fault]()
        answer = do()
        if fault is not None:
            raise FAULTS[fault]()
        return answer


def _lay_over(below: Resource, above: Resource) -> None:
    for name, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(name), dict):
            _lay_over(below[name], value)
        else:
            below[name] = value
