"""What to do about one resource: everything that was seen in, one `Decision` out, nothing else touched (pure).

Level-triggered: it asks how things are, never what has happened, so that any event may be missed or seen twice.
Planned first, then done: a new run, attempt or end is stored in the status before anything follows from it; so a
decision that changes these holds nothing but the status, and what follows is decided when it has been stored.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

from tarmill_operator.attempt import Attempt, Verdict
from tarmill_operator.causes import pods_of
from tarmill_operator.children import Children
from tarmill_operator.cluster_spec import RunPolicy, policy
from tarmill_operator.conditions import REFUSALS, TERMINAL, conditions
from tarmill_operator.failures import note_failure, note_workers
from tarmill_operator.inputs import Input, look_at_input
from tarmill_operator.leftovers import (
    WORKLOADS,
    earlier_runners,
    is_record,
    pods_to_keep,
    refs_of,
    run_of,
    waited_for_until,
)
from tarmill_operator.model import Cause, Decision, Notice, Observed, Ref, Resource
from tarmill_operator.names import WORKER
from tarmill_operator.reasons import REASONS
from tarmill_operator.times import to_seconds, to_text
from tarmill_operator.workers import is_worn_out

RETRY_REFUSED_S = 30.0
"""How long after a refusal the same is tried again."""
MAX_UNCOUNTED = 50
"""Disruptions that one run survives: a pod that something takes away each time is not tried for ever."""
_AT_ONCE = 3
"""Disruptions of a run after which the next attempt begins at once; later ones wait as failures do."""
_UNTOLD = frozenset({"Planned", "StartingPods", "WaitingForWorkers"})
"""Reasons that are no news: an Event for each would double what a run writes."""


def reconcile(observed: Observed, now: float) -> Decision:
    """Decide about a resource.

    Args:
        observed: the resource and what was seen of it.
        now: seconds since 1970.
    """
    run = _Run(observed, now)
    if observed.resource["metadata"].get("deletionTimestamp"):
        # Its children go with it, by their owner references; what runs does not wait for those who hold it back.
        workloads = [child for child in observed.children if child["kind"] in WORKLOADS]
        return Decision(run.before, delete=refs_of(workloads))
    decision = run.decide()
    if decision.look_closer or decision.status == run.before:
        return decision
    return replace(decision, notices=tuple(run.notices()))


class _Run:
    """One decision in the making: the stored status, and the new one."""

    def __init__(self, observed: Observed, now: float) -> None:
        self.observed = observed
        self.now = now
        self.resource = observed.resource
        self.before: dict[str, Any] = self.resource.get("status") or {}
        self.status = pickle.loads(pickle.dumps(self.before))  # a copy, at a quarter of deepcopy's price
        self.policy: RunPolicy = policy(RunPolicy, self.resource["spec"], "run")
        self.input: Input = look_at_input(observed)
        # a run keeps the image that it began with, also when the operator's own default changes
        settings = replace(observed.settings, image=self.status.get("image") or observed.settings.image)
        self.children = Children(self.resource, settings, self.number, self.status.get("input", ""))

    @property
    def number(self) -> int:
        """Number of the run in the status, 0 before the first."""
        return int(self.status.get("run", 0))

    def decide(self) -> Decision:
        status = self.status
        if not self.number or status.get("runId", "") != self.policy.run_id:
            return self._begin_run()
        if status.get("phase") in TERMINAL:
            return self._after_end()
        if self.policy.suspend:
            return self._suspend()
        if status.get("phase") == "Suspended":
            return self._say("Pending", "Planned", "resumed: another attempt does what is missing")
        if "attemptStartTime" in status:
            return self._attempt()
        if not status["attempt"] and self.input.state != "ready":
            return self._wait_for_input()
        if not status["attempt"] and self.observed.first_writer:
            return self._wait_for_output(self.observed.first_writer)
        if refusal := self._no_backend():
            return self._wait_for_backend(refusal)
        return self._next_attempt()

    # ---- runs and attempts ----------------------------------------------------------------------------------------

    def _begin_run(self) -> Decision:
        """Plan a run; what an earlier one left is removed once that is stored."""
        spec = self.resource["spec"]
        self.status = {
            "run": self.number + 1,
            "runId": self.policy.run_id,
            "attempt": 0,
            "startTime": to_text(self.now),
            "activeSeconds": 0,
            "restarts": {"counted": 0, "uncounted": 0},
            "image": spec.get("image") or self.observed.settings.image,
            "output": spec.get("output", ""),
            "conditions": self.before.get("conditions", []),
        }
        if self.policy.suspend or self.input.state != "ready" or self.observed.first_writer or self._no_backend():
            return self._say("Pending", "Planned", "the run is planned")
        return self._plan_attempt("Planned", "the run and its first attempt are planned")

    def _plan_attempt(self, reason: str, message: str) -> Decision:
        status = self.status
        if not status["attempt"]:  # what the run reads is settled here, whatever becomes of the other resource
            status["input"] = self.input.shards
        status["attempt"] += 1
        status["attemptStartTime"] = to_text(self.now)
        for name in ("runningTime", "retryTime", "lastProgressTime", "suspendTime", "etaSeconds", "eta"):
            status.pop(name, None)
        return self._say("Pending", reason, message)

    def _end_attempt(self) -> None:
        """Add the time of the attempt that ends to that of the run."""
        begun = to_seconds(self.status.pop("attemptStartTime", None))
        if begun is not None:
            self.status["activeSeconds"] = self.status.get("activeSeconds", 0) + max(0, int(self.now - begun))
        for name in ("etaSeconds", "eta", "runningTime"):
            self.status.pop(name, None)
        note_workers(self.status, 0, self.children.replicas)

    def _next_attempt(self) -> Decision:
        """Wait until the pause before a retry is over and workers that failed too often are gone, and plan it."""
        left = (to_seconds(self.status.get("retryTime")) or 0.0) - self.now
        worn_out = self._has_worn_out_workers()
        if left <= 0 and not worn_out:
            return self._plan_attempt("Planned", "an attempt begins")
        ended = self._others(with_jobs=True, with_workers=worn_out)
        return self._with_logs(self._stay(delete=ended, requeue_s=left if left > 0 else None))

    def _with_logs(self, decision: Decision) -> Decision:
        """Keep the last lines of this run's pods that failed, before a decision removes any."""
        name = self.children.logs_name()
        logs = pods_to_keep(self.observed, self.number, name) if decision.delete else ()
        return replace(decision, logs=logs, logs_name=name)

    def _has_worn_out_workers(self) -> bool:
        workers = pods_of(self.observed, WORKER, self.number)
        return any(is_worn_out(pod, self.status["attempt"], self.children.max_worker_restarts) for pod in workers)

    def _attempt(self) -> Decision:
        """Make what an attempt needs, look how it goes, end it when it is time."""
        attempt = Attempt(self.observed, self.children, self.status, self.policy, self.now)
        verdict = attempt.look()
        if verdict.look_closer:
            return self._look_closer()
        if verdict.succeeded:
            self._end_attempt()
            self.status["completionTime"] = to_text(self.now)
            self.status.pop("failures", None)
            return self._say("Succeeded", "Completed", attempt.success_message())
        if verdict.failed is not None:
            return self._failed_attempt(verdict.failed)
        if verdict.over is not None:
            return self._fail(verdict.over, verdict.cause)
        wanted = attempt.wanted()
        first = (self.number, self.status["attempt"], self.before.get("reason")) == (1, 1, "Planned")
        if any(one["kind"] == "Job" for one in wanted) and not first:
            if not self.observed.fresh:
                return self._look_closer()
            if waiting := self._wait_for_earlier_runner(verdict):
                return waiting
        if wanted and self.observed.refusal:
            verdict = self._refused(self.observed.refusal, verdict)
        decision = self._say(verdict.phase, verdict.reason, verdict.message)
        # the pause may have been over before anybody looked, and what failed is still there
        made = Decision(decision.status, apply=tuple(wanted), delete=self._others(), requeue_s=verdict.requeue_s)
        return self._with_logs(made)

    def _wait_for_earlier_runner(self, verdict: Verdict) -> Decision | None:
        pods = earlier_runners(self.observed.pods, self.number, self.status["attempt"])
        until = {pod["metadata"]["name"]: waited_for_until(pod) for pod in pods}
        waiting = {name: end for name, end in until.items() if end is None or self.now < end}
        if not waiting:
            return None
        decision = self._say("Starting", "StartingPods", f"waiting for the end of {min(waiting)}")
        ends = [end - self.now for end in waiting.values() if end is not None]
        soon = [seconds for seconds in (verdict.requeue_s, *ends) if seconds is not None]
        return self._with_logs(Decision(decision.status, delete=self._others(), requeue_s=min(soon, default=None)))

    def _refused(self, refusal: Cause, verdict: Verdict) -> Verdict:
        """Tell that something could not be made; it is tried again with every look."""
        note_failure(self.status, refusal, self.now)
        soon = min(RETRY_REFUSED_S, verdict.requeue_s or RETRY_REFUSED_S)
        if "runningTime" in self.status:
            return replace(verdict, requeue_s=soon)
        return Verdict("Pending", refusal.reason, refusal.message, requeue_s=soon)

    def _failed_attempt(self, cause: Cause) -> Decision:
        """Try again, or end the run."""
        self._end_attempt()
        note_failure(self.status, cause, self.now)
        restarts = self.status.setdefault("restarts", {"counted": 0, "uncounted": 0})
        if cause.final:
            return self._fail(cause.reason, cause, noted=True)
        if cause.disruption and restarts["uncounted"] < MAX_UNCOUNTED:
            restarts["uncounted"] += 1
            if restarts["uncounted"] <= _AT_ONCE:
                return self._plan_attempt(cause.reason, f"{cause.message}; the next attempt begins")
            return self._pause(restarts["uncounted"] - _AT_ONCE - 1, f"{cause.message}; this costs no retry")
        if restarts["counted"] >= self.policy.backoff_limit:
            return self._fail("BackoffLimitExceeded", cause, noted=True)
        restarts["counted"] += 1
        left = self.policy.backoff_limit - restarts["counted"]
        message = f"attempt {self.status['attempt']} failed ({cause.message}); {left} more may follow the next"
        return self._pause(restarts["counted"] - 1, message)

    def _pause(self, earlier: int, message: str) -> Decision:
        pause = min(self.policy.backoff_base_seconds * 2 ** min(earlier, 30), self.policy.backoff_max_seconds)
        self.status["retryTime"] = to_text(self.now + pause)
        return self._say("Retrying", "BackingOff", message)

    # ---- waiting, suspending ----------------------------------------------------------------------------------------

    def _wait_for_input(self) -> Decision:
        if self.input.state == "failed":
            cause = Cause("InputFailed", self.input.message, component="input", final=True)
            note_failure(self.status, cause, self.now)
            return self._fail("InputFailed", cause, noted=True)
        reason = "InvalidSpec" if self.input.state == "never" else "WaitingForInput"
        decision = self._say("WaitingForInput", reason, self.input.message)
        return Decision(decision.status, delete=self._others())

    def _wait_for_output(self, other: Resource) -> Decision:
        name = f"{other['kind']} {other['metadata']['name']}"
        message = f"{name} writes to the same output; this run begins when that one has ended or is removed"
        return Decision(self._say("Pending", "OutputInUse", message).status, delete=self._others())

    def _no_backend(self) -> Cause | None:
        if self.children.engine != "native" and self.children.replicas and not self.observed.settings.dask_operator:
            return Cause(
                "BackendMissing",
                "cluster.engine is dask-kubernetes, but there is no DaskCluster kind (kubernetes.dask.org/v1) in this "
                "cluster; install the Dask operator, or choose cluster.engine: native with a new run.runId",
            )
        return None

    def _wait_for_backend(self, cause: Cause) -> Decision:
        note_failure(self.status, cause, self.now)
        decision = self._say("Pending", cause.reason, cause.message)
        return Decision(decision.status, delete=self._others(), requeue_s=RETRY_REFUSED_S)

    def _suspend(self) -> Decision:
        if self.status["phase"] != "Suspended":
            self._end_attempt()
            self.status["suspendTime"] = to_text(self.now)
            return self._say("Suspended", "SuspendedByUser", "run.suspend is true; what is finished stays")
        return self._stay(delete=refs_of(child for child in self.observed.children if child["kind"] in WORKLOADS))

    # ---- the end ----------------------------------------------------------------------------------------------------

    def _fail(self, reason: str, cause: Cause | None, *, noted: bool = False) -> Decision:
        """End the run for good."""
        if "attemptStartTime" in self.status:
            self._end_attempt()
        if cause is not None and not noted:
            note_failure(self.status, cause, self.now)
        self.status["completionTime"] = to_text(self.now)
        message = cause.message if cause is not None else REASONS[reason].means
        if cause is not None and cause.reason != reason:
            message = f"{REASONS[reason].means} The last failure ({cause.reason}): {cause.message}"
        return self._say("Failed", reason, message)

    def _after_end(self) -> Decision:
        """Remove what an ended run no longer needs; the end is stored already."""
        ended = to_seconds(self.status.get("completionTime")) or self.now
        ttl = self.policy.ttl_seconds_after_finished
        expired = 0 <= ttl <= self.now - ended
        job = self.children.job_ref(self.status.get("attempt", 0)).name if self.status["phase"] == "Succeeded" else ""
        records = {
            id(child) for child in self.observed.children if is_record(child) or child["metadata"]["name"] == job
        }
        gone = [child for child in self.observed.children if expired or id(child) not in records]
        if expired and not gone:
            self.status.setdefault("cleanedTime", to_text(self.now))
            return Decision(self._unchanged(), delete_resource=self.policy.delete_when_expired)
        keep = self.status["phase"] == "Failed" and not expired
        logs_name = self.children.logs_name()
        return Decision(
            self._unchanged(),
            delete=refs_of(gone),
            logs=pods_to_keep(self.observed, self.number, logs_name) if keep else (),
            logs_name=logs_name,
            requeue_s=None if ttl < 0 or expired else max(1.0, ended + ttl - self.now),
        )

    # ---- pieces -----------------------------------------------------------------------------------------------------

    def _say(self, phase: str, reason: str, message: str) -> Decision:
        """Set phase, reason and conditions; look again at once where that changes what follows."""
        status, generation = self.status, self.resource["metadata"].get("generation", 0)
        status |= {"observedGeneration": generation, "phase": phase, "reason": reason, "message": message}
        known = status.get("conditions", [])
        status["conditions"] = conditions(known, phase, reason, message, generation, self.now)
        changed = any(status.get(name) != self.before.get(name) for name in ("run", "attempt", "phase"))
        return Decision(status, requeue_s=0.0 if changed else None)

    def _stay(self, *, delete: tuple[Ref, ...], requeue_s: float | None = None) -> Decision:
        return Decision(self._unchanged(), delete=delete, requeue_s=requeue_s)

    def _unchanged(self) -> dict[str, Any]:
        """Keep the status as it stands, for another generation of the spec if there is one."""
        status = self.status
        return self._say(status["phase"], status["reason"], status.get("message", "")).status

    def _look_closer(self) -> Decision:
        return Decision(self.before, look_closer=True)

    def _others(self, *, with_jobs: bool = False, with_workers: bool = False) -> tuple[Ref, ...]:
        """Name the children of earlier runs, and Jobs of earlier attempts; if told so also what is of the last one."""
        job = self.children.job_ref(self.status["attempt"]).name
        workers = self.children.workers_name() if with_workers else ""
        found = []
        for child in self.observed.children:
            other_run = run_of(child) != str(self.number)
            ended = child["kind"] == "Job" and (with_jobs or child["metadata"]["name"] != job)
            if other_run or ended or child["metadata"]["name"] == workers:
                found.append(child)
        return refs_of(found)

    def notices(self) -> list[Notice]:
        """Tell of what has changed, as Events."""
        old, new = self.before, self.status
        found = []
        changed = new.get("phase") != old.get("phase") or new.get("reason") != old.get("reason")
        if changed and new.get("reason") not in _UNTOLD:
            warning = new.get("phase") in ("Failed", "Retrying") or new.get("reason") in REFUSALS
            found.append(Notice(new.get("reason", ""), new.get("message", ""), warning))
        failure = new.get("lastFailure")
        if failure and failure != old.get("lastFailure") and failure["reason"] != new.get("reason"):
            found.append(Notice(failure["reason"], failure["message"], warning=True))
        return found
