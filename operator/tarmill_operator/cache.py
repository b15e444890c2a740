"""What the operator remembers of the cluster: resources, and children, pods and Events by the resource they belong to.

It is told by watches, by lists, and by the answers to the operator's own calls, in any order: of an object the highest
resourceVersion holds, and what is gone stays gone, since a uid never comes back.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from tarmill_operator.conditions import TERMINAL
from tarmill_operator.inputs import cycle_from
from tarmill_operator.model import Observed, Ref, Resource, Settings
from tarmill_operator.names import ROLE_LABEL, RUNNER, UID_LABEL, base_name, is_owned_by
from tarmill_operator.outputs import Place, first_writer, place_of
from tarmill_operator.watches import OUR_KINDS, TOLD_BY_EVENTS, slim

_MAX_GONE = 20_000
_MAX_EVENTS = 20
_BASE = re.compile(r"(?P<base>tarmill-[0-9a-f]{12}|.+-[0-9a-f]{8})-r\d+(?:-|$)")
Name = tuple[str, str, str]
"""Kind, namespace and name of a resource."""


class Cache:
    """Remembers objects; each change tells the uids of the resources that it is about."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[str, Resource]] = defaultdict(dict)
        self._owned: dict[str, dict[str, Resource]] = defaultdict(dict)
        """Uid of a resource -> uid -> child, pod or Event."""
        self._names: dict[Name, str] = {}
        self._bases: dict[tuple[str, str], str] = {}
        self._readers: dict[Name, set[str]] = defaultdict(set)
        """Resource -> uids of those that name it in `inputFrom`."""
        self._writers: dict[Place, set[str]] = defaultdict(set)
        """Output -> uids of those that write there."""
        self._kinds: dict[str, str] = {}
        """Uid of a resource -> its kind."""
        self._gone_runners: dict[str, Resource] = {}
        """Uid of a resource whose run goes on -> its runner's pod that was removed last."""
        self._running: dict[str, Resource] = {}
        """Uid of a pod -> itself, of runners that run."""
        self._gone: OrderedDict[str, None] = OrderedDict()

    # ---- being told -------------------------------------------------------------------------------------------------

    def put(self, item: Resource) -> set[str]:
        """Remember an object, unless a later state of it is known; tells whom it is about, no one if nothing is new.

        What differs in nothing that is remembered is not new: most of what Kubernetes tells of Jobs is not.
        """
        metadata = item["metadata"]
        uid, kind = metadata["uid"], item["kind"]
        known = self._objects[kind].get(uid)
        if uid in self._gone or not _is_later(item, known):
            return set()
        if kind == "Event" and item.get("reason") not in TOLD_BY_EVENTS:
            return set()
        item = slim(item)
        concerned = self._put_resource(uid, item) if kind in OUR_KINDS else self._put_owned(uid, item)
        return set() if known is not None and _is_same(item, known) else concerned

    def remove(self, item: Resource) -> set[str]:
        """Forget an object for good."""
        metadata = item["metadata"]
        uid, kind = metadata["uid"], item["kind"]
        self._gone[uid] = None
        if len(self._gone) > _MAX_GONE:
            self._gone.popitem(last=False)
        self._running.pop(uid, None)
        known = self._objects[kind].pop(uid, None)
        if known is None:
            return set()
        if kind in OUR_KINDS:
            return self._remove_resource(uid, known)
        owner = self._owner_of(known)
        if owner is None:
            return set()
        self._keep_gone_runner(owner, slim(item) if "status" in item else known)
        owned = self._owned.get(owner, {})
        owned.pop(uid, None)
        if not owned:
            self._owned.pop(owner, None)
        return {owner} if owner in self._kinds else set()

    def forget(self, ref: Ref) -> set[str]:
        """Forget an object that is known to be gone by its uid."""
        return self.remove(self._objects[ref.kind].get(ref.uid, {"kind": ref.kind, "metadata": {"uid": ref.uid}}))

    def correct(
        self, kind: str, items: Iterable[Resource], version: str, within: Callable[[Resource], bool] = lambda item: True
    ) -> tuple[set[str], set[str]]:
        """Take over a complete list.

        Args:
            kind: of what was listed.
            items: all there is.
            version: resourceVersion at which that was so; what is known from later stays.
            within: which of the remembered objects the list was about.

        Returns:
            Uids of the resources that something changed about; uids of objects that no watch had told of.
        """
        woken: set[str] = set()
        untold, listed = set(), set()
        for item in items:
            uid = item["metadata"]["uid"]
            listed.add(uid)
            known = self._objects[kind].get(uid)
            woken |= self.put(item)
            if self._objects[kind].get(uid) is not known:
                untold.add(uid)
        for uid, known in list(self._objects[kind].items()):
            if uid not in listed and within(known) and not _is_after(known, version):
                woken |= self.remove(known)
        return woken, untold

    # ---- being asked ------------------------------------------------------------------------------------------------

    def observe(self, uid: str, settings: Settings) -> Observed | None:
        """Give what is known about a resource; None where it is not there."""
        resource = self.resource(uid)
        if resource is None:
            return None
        groups: dict[str, list[Resource]] = {"Pod": [], "Event": []}
        children = []
        for item in self._owned.get(uid, {}).values():
            if item["kind"] in groups:
                groups[item["kind"]].append(item)
            elif is_owned_by(item, uid):
                children.append(item)
        return Observed(
            resource,
            tuple(children),
            tuple(groups["Pod"]),
            tuple(groups["Event"]),
            gone_runner=self._gone_runners.get(uid),
            input=self._read_by(resource),
            input_cycle=cycle_from(resource, self._read_by),
            first_writer=first_writer(resource, self._writers_with(resource)),
            settings=settings,
        )

    def resource(self, uid: str) -> Resource | None:
        """Give a resource of ours."""
        kind = self._kinds.get(uid)
        return None if kind is None else self._objects[kind][uid]

    def _writers_with(self, resource: Resource) -> Iterator[Resource]:
        for uid in self._writers[place_of(resource)]:
            if (other := self.resource(uid)) is not None:
                yield other

    def _read_by(self, resource: Resource) -> Resource | None:
        name = _input_of(resource)
        return self.resource(self._names.get(name, "")) if name else None

    def knows(self, kind: str, uid: str) -> bool:
        """Tell whether an object is remembered."""
        return uid in self._objects[kind]

    def uids(self) -> list[str]:
        """Give the uids of all resources."""
        return list(self._kinds)

    def running_runners(self) -> Mapping[str, Resource]:
        """Give the runners' pods that run and have an address, by uid."""
        return self._running

    def count(self) -> Counter[tuple[str, str]]:
        """Count resources by kind and phase."""
        return Counter(
            (kind, str((item.get("status") or {}).get("phase", "Pending")))
            for kind in OUR_KINDS
            for item in self._objects[kind].values()
        )

    # ---- pieces -----------------------------------------------------------------------------------------------------

    def _put_resource(self, uid: str, item: Resource) -> set[str]:
        before = self._objects[item["kind"]].get(uid)
        concerned = set() if before is None else self._concerned(uid, before)
        if before is not None:
            self._unlink(uid, before)
        self._objects[item["kind"]][uid] = item
        self._kinds[uid] = item["kind"]
        if _has_ended(item):
            self._gone_runners.pop(uid, None)
        name = _name_of(item)
        self._names[name] = uid
        for base in _bases_of(item):
            self._bases[base] = uid
        if source := _input_of(item):
            self._readers[source].add(uid)
        self._writers[place_of(item)].add(uid)
        return concerned | self._concerned(uid, item)

    def _put_owned(self, uid: str, item: Resource) -> set[str]:
        owner = self._owner_of(item)
        if owner is None:
            return set()
        self._objects[item["kind"]][uid] = item
        self._owned[owner][uid] = item
        if item["kind"] == "Event":
            self._forget_old_events(owner)
        if _is_running_runner(item):
            self._running[uid] = item
        else:
            self._running.pop(uid, None)
        return {owner} if owner in self._kinds else set()

    def _remove_resource(self, uid: str, item: Resource) -> set[str]:
        self._kinds.pop(uid, None)
        self._gone_runners.pop(uid, None)
        concerned = self._concerned(uid, item)
        self._unlink(uid, item)
        for other in [other for other in self._owned.get(uid, {}).values() if other["kind"] == "Event"]:
            self._objects["Event"].pop(other["metadata"]["uid"], None)
            self._owned[uid].pop(other["metadata"]["uid"], None)
        if not self._owned.get(uid):
            self._owned.pop(uid, None)
        return concerned

    def _concerned(self, uid: str, item: Resource) -> set[str]:
        """Name those who wait for a resource, and itself."""
        return {uid, *self._readers.get(_name_of(item), ()), *self._writers.get(place_of(item), ())}

    def _unlink(self, uid: str, item: Resource) -> None:
        name = _name_of(item)
        if self._names.get(name) == uid:
            del self._names[name]
        for base in _bases_of(item):
            self._bases.pop(base, None)
        if source := _input_of(item):
            readers = self._readers.get(source, set())
            readers.discard(uid)
            if not readers:
                self._readers.pop(source, None)
        writers = self._writers.get(place_of(item), set())
        writers.discard(uid)
        if not writers:
            self._writers.pop(place_of(item), None)

    def _keep_gone_runner(self, owner: str, item: Resource) -> None:
        """Remember how a runner went: a pod that was evicted is removed at once, and with it what it said."""
        resource = self.resource(owner)
        if _is_runner(item) and resource is not None and not _has_ended(resource):
            self._gone_runners[owner] = item

    def _owner_of(self, item: Resource) -> str | None:
        if item["kind"] != "Event":
            return (item["metadata"].get("labels") or {}).get(UID_LABEL)
        about = item.get("involvedObject") or {}
        match = _BASE.match(about.get("name") or "")
        return self._bases.get((about.get("namespace", ""), match["base"])) if match else None

    def _forget_old_events(self, owner: str) -> None:
        events = [item for item in self._owned[owner].values() if item["kind"] == "Event"]
        for old in events[:-_MAX_EVENTS]:
            uid = old["metadata"]["uid"]
            self._owned[owner].pop(uid, None)
            self._objects["Event"].pop(uid, None)


def _name_of(item: Resource) -> Name:
    return item["kind"], item["metadata"]["namespace"], item["metadata"]["name"]


def _bases_of(item: Resource) -> list[tuple[str, str]]:
    namespace, name, uid = item["metadata"]["namespace"], item["metadata"]["name"], item["metadata"]["uid"]
    return [(namespace, base_name(name, uid)), (namespace, f"tarmill-{uid.replace('-', '')[:12]}")]


def _input_of(item: Resource) -> Name | None:
    reference = (item.get("spec") or {}).get("inputFrom")
    return (reference["kind"], item["metadata"]["namespace"], reference["name"]) if reference else None


def _has_ended(resource: Resource) -> bool:
    return (resource.get("status") or {}).get("phase") in TERMINAL


def _is_runner(item: Resource) -> bool:
    return item["kind"] == "Pod" and (item["metadata"].get("labels") or {}).get(ROLE_LABEL) == RUNNER


def _is_running_runner(item: Resource) -> bool:
    status = item.get("status") or {}
    return _is_runner(item) and status.get("phase") == "Running" and bool(status.get("podIP"))


def _number(version: str) -> int | None:
    return int(version) if version.isdigit() else None


def _is_later(item: Resource, known: Resource | None) -> bool:
    """Compare two states of an object; an API server whose versions are no numbers is taken at its word."""
    if known is None:
        return True
    new, old = (one["metadata"].get("resourceVersion", "") for one in (item, known))
    numbers = _number(new), _number(old)
    if numbers[0] is None or numbers[1] is None:
        return bool(new != old)
    return numbers[0] > numbers[1]


def _is_same(item: Resource, known: Resource) -> bool:
    """Tell whether two states that are remembered differ in nothing but the resourceVersion."""
    one, other = ({**state, "metadata": {**state["metadata"], "resourceVersion": ""}} for state in (item, known))
    return one == other


def _is_after(item: Resource, version: str) -> bool:
    mine, listed = _number(item["metadata"].get("resourceVersion", "")), _number(version)
    return mine is not None and listed is not None and mine > listed
