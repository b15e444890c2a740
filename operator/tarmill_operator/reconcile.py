"""What to do about one resource: everything that was seen in, one `Decision` out, nothing else touched (pure).

Level-triggered: it asks how things are, never what has happened, so that any event may be missed or seen twice.
Planned first, then done: a new run, attempt or end is stored in the status before anything follows from it; so a
decision that changes these holds nothing but the status, and what follows is decided when it has been stored.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from tarmill_operator.attempt import Attempt
from tarmill_operator.children import Children
from tarmill_operator.cluster_spec import RunPolicy, policy
from tarmill_operator.conditions import REFUSALS, TERMINAL, conditions
from tarmill_operator.failures import note_failure, note_workers
from tarmill_operator.inputs import Input, look_at_input
from tarmill_operator.model import Cause, Decision, Notice, Observed, Ref, Resource
from tarmill_operator.names import ATTEMPT_LABEL, ROLE_LABEL, RUN_LABEL, RUNNER
from tarmill_operator.times import to_seconds, to_text

_RETRY_REFUSED_S = 30.0
MAX_UNCOUNTED = 50
"""Disruptions that one run survives: a pod that something takes away each time is not tried for ever."""
_LEAVING_S = 60.0
"""How long past its grace period a pod is waited for."""


def reconcile(observed: Observed, now: float) -> Decision:
    """Decide about a resource.

    Args:
        observed: the resource and what was seen of it.
        now: seconds since 1970.
    """
    run = _Run(observed, now)
    if observed.resource["metadata"].get("deletionTimestamp"):
        return Decision(run.before)  # its children go with it, by their owner references
    decision = run.decide()
    if decision.status == run.before:
        return decision
    notices = (*decision.notices, *run.notices())
    return Decision(**{**_as_dict(decision), "notices": notices})


def _as_dict(decision: Decision) -> dict[str, Any]:
    return {name: getattr(decision, name) for name in decision.__slots__}


class _Run:
    """One decision in the making: the stored status, and the new one."""

    def __init__(self, observed: Observed, now: float) -> None:
        self.observed = observed
        self.now = now
        self.resource = observed.resource
        self.before: dict[str, Any] = copy.deepcopy(self.resource.get("status") or {})
        self.status = copy.deepcopy(self.before)
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
        if status["phase"] in TERMINAL:
            return self._after_end()
        if self.policy.suspend:
            return self._suspend()
        if status["phase"] == "Suspended":
            return self._say("Pending", "Planned", "resumed: another attempt does what is missing")
        if refusal := self._refusal():
            return self._refused(refusal)
        if "attemptStartTime" in status:
            return self._attempt()
        if not status["attempt"] and self.input.state != "ready":
            return self._wait_for_input()
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
        return self._say("Pending", "Planned", "the run is planned")

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
        """Wait until the pause before a retry is over, and plan it."""
        left = (to_seconds(self.status.get("retryTime")) or 0.0) - self.now
        if left <= 0:
            return self._plan_attempt("Planned", "an attempt begins")
        job = self.children.job_ref(self.status["attempt"])
        there = [job] if self.observed.child(job.kind, job.name) else []
        return self._stay(requeue_s=left, delete=there, logs=self._failed_pods() if there else ())

    def _attempt(self) -> Decision:
        """Make what an attempt needs, look how it goes, end it when it is time."""
        attempt = Attempt(self.observed, self.children, self.status, self.policy, self.now)
        verdict = attempt.look()
        if verdict.succeeded:
            self._end_attempt()
            self.status["completionTime"] = to_text(self.now)
            return self._say("Succeeded", "Completed", attempt.success_message())
        if verdict.failed is not None:
            return self._failed_attempt(verdict.failed)
        if verdict.over is not None:
            return self._fail(verdict.over, verdict.cause)
        if earlier := self._earlier_runners():
            decision = self._say("Starting", "StartingPods", f"waiting for the end of {earlier[0]}")
            return Decision(decision.status, delete=tuple(self._refs_of_others()), requeue_s=verdict.requeue_s)
        decision = self._say(verdict.phase, verdict.reason, verdict.message)
        return Decision(
            decision.status,
            apply=tuple(attempt.wanted()),
            certificates=attempt.missing_certificates(),
            delete=tuple(self._refs_of_others()),
            requeue_s=verdict.requeue_s,
        )

    def _failed_attempt(self, cause: Cause) -> Decision:
        """Try again, or end the run."""
        self._end_attempt()
        note_failure(self.status, cause, self.now)
        restarts = self.status.setdefault("restarts", {"counted": 0, "uncounted": 0})
        if cause.final:
            return self._fail(cause.reason, cause, noted=True)
        if cause.disruption and restarts["uncounted"] < MAX_UNCOUNTED:
            restarts["uncounted"] += 1
            return self._plan_attempt(cause.reason, f"{cause.message}; the next attempt begins")
        if restarts["counted"] >= self.policy.backoff_limit:
            return self._fail("BackoffLimitExceeded", cause, noted=True)
        pause = min(
            self.policy.backoff_base_seconds * 2 ** min(restarts["counted"], 30), self.policy.backoff_max_seconds
        )
        restarts["counted"] += 1
        self.status["retryTime"] = to_text(self.now + pause)
        left = self.policy.backoff_limit - restarts["counted"]
        message = f"attempt {self.status['attempt']} failed ({cause.message}); {left} more may follow the next"
        return self._say("Retrying", "BackingOff", message)

    # ---- waiting, refusing, suspending ------------------------------------------------------------------------------

    def _wait_for_input(self) -> Decision:
        if self.input.state == "failed":
            cause = Cause("InputFailed", self.input.message, component="input", final=True)
            note_failure(self.status, cause, self.now)
            return self._fail("InputFailed", cause, noted=True)
        return self._say("WaitingForInput", "WaitingForInput", self.input.message)

    def _refusal(self) -> Cause | None:
        if self.children.engine != "native" and self.children.replicas and not self.observed.settings.dask_operator:
            return Cause(
                "BackendMissing",
                "cluster.engine is dask-kubernetes, but there is no DaskCluster kind (kubernetes.dask.org/v1) in this "
                "cluster; install the Dask operator, or choose cluster.engine: native with a new run.runId",
            )
        return None

    def _refused(self, cause: Cause) -> Decision:
        note_failure(self.status, cause, self.now)
        decision = self._say("Pending", cause.reason, cause.message)
        return Decision(decision.status, requeue_s=_RETRY_REFUSED_S)

    def _suspend(self) -> Decision:
        if self.status["phase"] != "Suspended":
            self._end_attempt()
            self.status["suspendTime"] = to_text(self.now)
            return self._say("Suspended", "SuspendedByUser", "run.suspend is true; what is finished stays")
        return self._stay(
            delete=[
                self._ref(child) for child in self.observed.children if child["kind"] not in ("ConfigMap", "Secret")
            ]
        )

    # ---- the end ----------------------------------------------------------------------------------------------------

    def _fail(self, reason: str, cause: Cause | None, *, noted: bool = False) -> Decision:
        """End the run for good."""
        if "attemptStartTime" in self.status:
            self._end_attempt()
        if cause is not None and not noted:
            note_failure(self.status, cause, self.now)
        self.status["completionTime"] = to_text(self.now)
        message = cause.message if cause is not None else _meaning(reason)
        if cause is not None and cause.reason != reason:
            message = f"{_meaning(reason)} The last failure ({cause.reason}): {cause.message}"
        return self._say("Failed", reason, message)

    def _after_end(self) -> Decision:
        """Remove what an ended run no longer needs; the end is stored already."""
        ended = to_seconds(self.status.get("completionTime")) or self.now
        ttl = self.policy.ttl_seconds_after_finished
        expired = 0 <= ttl <= self.now - ended
        gone = [child for child in self.observed.children if expired or not _is_record(child)]
        refs = [self._ref(child) for child in gone]
        logs = self._failed_pods() if self.status["phase"] == "Failed" and not expired else ()
        if expired and not gone:
            self.status.setdefault("cleanedTime", to_text(self.now))
            return Decision(self._unchanged(), delete_resource=self.policy.delete_when_expired)
        wait = None if ttl < 0 or expired else max(1.0, ended + ttl - self.now)
        return Decision(
            self._unchanged(), delete=tuple(refs), logs=logs, logs_name=self.children.logs_name(), requeue_s=wait
        )

    def _unchanged(self) -> dict[str, Any]:
        """Keep the status as it stands, for another generation of the spec if there is one."""
        status = self.status
        return self._say(status["phase"], status["reason"], status.get("message", "")).status

    # ---- pieces -----------------------------------------------------------------------------------------------------

    def _say(self, phase: str, reason: str, message: str) -> Decision:
        """Set phase, reason and conditions; look again at once where that changes what follows."""
        status, generation = self.status, self.resource["metadata"].get("generation", 0)
        status |= {"observedGeneration": generation, "phase": phase, "reason": reason, "message": message}
        known = status.get("conditions", [])
        status["conditions"] = conditions(known, phase, reason, message, generation, self.now)
        changed = any(status.get(name) != self.before.get(name) for name in ("run", "attempt", "phase"))
        return Decision(status, requeue_s=0.0 if changed else None)

    def _stay(
        self, *, requeue_s: float | None = None, delete: list[Ref] | None = None, logs: tuple[str, ...] = ()
    ) -> Decision:
        return Decision(
            self._unchanged(),
            delete=tuple(delete or ()),
            logs=logs,
            logs_name=self.children.logs_name(),
            requeue_s=requeue_s,
        )

    def _refs_of_others(self) -> list[Ref]:
        """Name the children that are not of this attempt: of earlier runs, and Jobs of earlier attempts."""
        found = []
        job = self.children.job_ref(self.status["attempt"]).name
        for child in self.observed.children:
            other_run = child["metadata"].get("labels", {}).get(RUN_LABEL) != str(self.number)
            if other_run or (child["kind"] == "Job" and child["metadata"]["name"] != job):
                found.append(self._ref(child))
        return found

    def _earlier_runners(self) -> list[str]:
        """Name the runners of earlier attempts that may still write: two at once would do the same work twice."""
        ours = (str(self.number), str(self.status["attempt"]))
        found = []
        for pod in self.observed.pods:
            labels = pod["metadata"].get("labels", {})
            if labels.get(ROLE_LABEL) != RUNNER or (labels.get(RUN_LABEL), labels.get(ATTEMPT_LABEL)) == ours:
                continue
            ended = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
            leaving = to_seconds(pod["metadata"].get("deletionTimestamp"))
            # a node that is gone never tells of the end of its pods
            if not ended and (leaving is None or self.now < leaving + _LEAVING_S):
                found.append(pod["metadata"]["name"])
        return found

    def _ref(self, child: dict[str, Any]) -> Ref:
        return Ref(child["apiVersion"], child["kind"], child["metadata"]["name"])

    def _failed_pods(self) -> tuple[str, ...]:
        """Name the pods whose last lines people will ask for, if they are not kept yet."""
        name = self.children.logs_name()
        kept = set((self.observed.child("ConfigMap", name) or {}).get("data") or {})
        failed = []
        for pod in self.observed.pods:
            ends = pod.get("status", {}).get("containerStatuses") or []
            states = [state for item in ends for state in (item.get("state"), item.get("lastState")) if state]
            if any((state.get("terminated") or {}).get("exitCode") for state in states):
                failed.append(pod["metadata"]["name"])
        return tuple(sorted(name for name in failed if f"{name}.log" not in kept))

    def notices(self) -> list[Notice]:
        """Tell of what has changed, as Events."""
        old, new = self.before, self.status
        found = []
        if new.get("phase") != old.get("phase") or new.get("reason") != old.get("reason"):
            warning = new.get("phase") in ("Failed", "Retrying") or new.get("reason") in REFUSALS
            found.append(Notice(new.get("reason", ""), new.get("message", ""), warning))
        failure = new.get("lastFailure")
        if failure and failure != old.get("lastFailure") and failure["reason"] != new.get("reason"):
            found.append(Notice(failure["reason"], failure["message"], warning=True))
        return found


def _is_record(child: Resource) -> bool:
    """Tell whether a child of an ended run is worth a look: its spec, kept logs, and a Job whose pod has ended."""
    ended = {one["type"] for one in child.get("status", {}).get("conditions") or [] if one.get("status") == "True"}
    return child["kind"] == "ConfigMap" or (child["kind"] == "Job" and bool(ended & {"Complete", "Failed"}))


def _meaning(reason: str) -> str:
    from tarmill_operator.reasons import REASONS

    return REASONS[reason].means
