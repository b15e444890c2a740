"""The operator without a process and without time: a fake cluster, the real cache, controller and executor, and a queue
whose clock the test moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.fakeapi import drive
from support.fakecluster import SHARDS, FakeCluster
from tarmill_operator.api import ApiError
from tarmill_operator.cache import Cache
from tarmill_operator.controller import Controller
from tarmill_operator.executor import LookAgain
from tarmill_operator.model import Observed, Resource, Settings
from tarmill_operator.relist import Relist
from tarmill_operator.watches import WATCHES
from tarmill_operator.work_queue import WorkQueue


class _Progress:
    """Stands for the client that asks runners."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self.every_s = 0.0

    def of(self, observed: Observed) -> dict[str, Any] | None:
        status, there = observed.resource.get("status", {}), self._cluster.running_runners()
        uids = {pod["metadata"]["uid"] for pod in there}
        for pod in observed.pods:
            labels = pod["metadata"]["labels"]
            ours = (labels.get("tarmill.dev/run"), labels.get("tarmill.dev/attempt"))
            if pod["metadata"]["uid"] in uids and ours == (str(status.get("run")), str(status.get("attempt"))):
                done = len(self._cluster.done_by(pod))
                return {"format": 1, "phase": "running", "shards": {"total": SHARDS, "done": done, "failed": 0}}
        return None


class World:
    """A cluster and an operator in it."""

    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.api = self.cluster.api
        self.due: dict[str, float] = {}
        self.failures: list[str] = []
        self.start_operator()

    def start_operator(self) -> None:
        """Start the operator, or start it again: it knows nothing but what it lists."""
        self.cache = Cache()
        settings = Settings("tarmill:1", namespace="tarmill-system")
        progress: Any = _Progress(self.cluster)
        self.controller = Controller(
            self.api, self.cache, WorkQueue(), settings, progress, clock=lambda: self.cluster.now, wake=self.wake
        )
        self.relist = Relist(self.api, self.cache, self.wake, watches=lambda: WATCHES)
        self.api.told.clear()
        self.due.clear()
        left = list(WATCHES)
        while left:
            left = drive(self.relist.each(left))
            self.cluster.now += 1
        for uid in self.cache.uids():
            self.wake(uid)

    def wake(self, uid: str) -> None:
        self.due[uid] = min(self.due.get(uid, self.cluster.now), self.cluster.now)

    def hear(self, kind: str | None = None, most: int | None = None) -> None:
        """Let watches tell what they have to tell, or a part of it."""
        for name in [kind] if kind else [watch.kind for watch in WATCHES]:
            told = self.api.told[name]
            for _ in range(len(told) if most is None else min(most, len(told))):
                type_, item = told.popleft()
                for uid in self.cache.remove(item) if type_ == "DELETED" else self.cache.put(item):
                    self.wake(uid)

    def operate(self, most: int = 50) -> None:
        """Let the operator deal with what is due."""
        for _ in range(most):
            uid = next((uid for uid, due in self.due.items() if due <= self.cluster.now), None)
            if uid is None:
                return
            del self.due[uid]
            try:
                again = drive(self.controller.look(uid))
            except LookAgain:
                again = 0.05
                self.cluster.now += 0.05
            except ApiError as error:
                self.failures.append(str(error))
                again = 1.0
            if again is not None:
                due = self.cluster.now + again
                self.due[uid] = min(self.due.get(uid, due), due)
        raise AssertionError(f"the operator finds no rest: {self.api.calls[-20:]}")

    def go_on(self, until: Callable[[], bool]) -> None:
        """Let a second after the other pass until something holds."""
        for _ in range(60):
            if until():
                return
            self.operate()
            self.cluster.step()
            self.hear()
            self.cluster.now += 1
            for uid in self.cache.uids():
                self.wake(uid)
        raise AssertionError("it never came to that")

    def settle(self, rounds: int = 120) -> None:
        """Let everything go on until nothing changes any more, time passing where all wait for it."""
        quiet = 0
        for _ in range(rounds):
            before = self.state()
            self.cluster.step()
            self.hear()
            self.operate()
            quiet = 0 if self.state() != before else quiet + 1
            if quiet >= 2:
                later = [due for due in self.due.values() if due > self.cluster.now]
                if not later and quiet > 3:
                    return
                self.cluster.now = min(later, default=self.cluster.now) + 0.01
            else:
                self.cluster.now += 1
            for uid in self.cache.uids():  # as progress would
                if self.cluster.running_runners():
                    self.wake(uid)
        raise AssertionError("the cluster finds no rest")

    def state(self) -> Any:
        return sorted((key, item["metadata"]["resourceVersion"]) for key, item in self.api.objects.items())

    def status(self, resource: Resource) -> dict[str, Any]:
        status: dict[str, Any] = self.api.objects[resource["kind"], "team", resource["metadata"]["name"]]["status"]
        return status

    def left(self) -> list[tuple[str, str]]:
        """Name all that is there besides resources."""
        ours = {"ShardMap", "ShardSort", "ShardShuffle", "ShardExtract", "ShardUpload"}
        return sorted((kind, name) for kind, _, name in self.api.objects if kind not in ours)
