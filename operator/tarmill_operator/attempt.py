"""One attempt of a run: what it needs, and how it goes (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tarmill_operator.causes import cause_of_end, last_words, obstacle, pods_of, worker_failure
from tarmill_operator.children import Children, needs_apply
from tarmill_operator.cluster_spec import RunPolicy
from tarmill_operator.failures import note_failure, note_workers
from tarmill_operator.model import Cause, Observed, Resource
from tarmill_operator.names import RUNNER, WORKER
from tarmill_operator.progress import AT_WORK, fold
from tarmill_operator.times import to_seconds, to_text


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an attempt stands.

    Attributes:
        phase, reason, message: while it goes on.
        succeeded: it is done.
        failed: why it has ended.
        over: reason for which the whole run ends, though the attempt may still run.
        cause: of that, as far as it is known.
        requeue_s: when a deadline may pass, or progress is due.
    """

    phase: str = "Starting"
    reason: str = "StartingPods"
    message: str = "the pods are being started"
    succeeded: bool = False
    failed: Cause | None = None
    over: str | None = None
    cause: Cause | None = None
    requeue_s: float | None = None


class Attempt:
    """Looks at the attempt that the status names; `status` is filled with what was seen."""

    def __init__(
        self, observed: Observed, children: Children, status: dict[str, Any], policy: RunPolicy, now: float
    ) -> None:
        self._observed = observed
        self._children = children
        self._status = status
        self._policy = policy
        self._now = now
        self._run, self._number = int(status["run"]), int(status["attempt"])
        reference = children.job_ref(self._number)
        self._job = observed.child(reference.kind, reference.name)
        pods = pods_of(observed, RUNNER, self._run, self._number)
        self._pod = pods[-1] if pods else None

    def wanted(self) -> list[Resource]:
        """Give the objects that are missing or not as they are to be, in order."""
        wanted = [*self._children.before_attempt(), *self._children.attempt(self._number)]
        there = self._observed.child
        return [one for one in wanted if needs_apply(one, there(one["kind"], one["metadata"]["name"]))]

    def missing_certificates(self) -> str:
        """Name the Secret that is still to be made."""
        name = self._children.certificates
        return name if name and self._observed.child("Secret", name) is None else ""

    def look(self) -> Verdict:
        """Judge the attempt: ended, past a deadline, or on its way."""
        words = last_words(self._pod) if self._pod else None
        told = words or self._observed.progress
        if told:
            fold(self._status, told)
        self._note_workers()
        if verdict := self._end(words):
            return verdict
        progress = self._observed.progress or {}
        working = progress.get("phase") in AT_WORK
        if working:
            self._status.setdefault("runningTime", to_text(self._now))
        blocked = None if "runningTime" in self._status else obstacle(self._observed, self._run, self._number)
        if late := self._deadline(blocked):
            return late
        return self._on_the_way(working, blocked)

    def success_message(self) -> str:
        """Tell what was made."""
        shards, samples = self._status.get("shards", {}), self._status.get("samples", {})
        return f"{shards.get('done', 0)} shards, {samples.get('written', 0)} samples written"

    def _end(self, words: dict[str, Any] | None) -> Verdict | None:
        """Tell how the Job has ended, if it has."""
        ended = {
            condition["type"]
            for condition in (self._job or {}).get("status", {}).get("conditions") or []
            if condition.get("status") == "True"
        }
        if "Complete" in ended or (words and words.get("outcome") == "succeeded"):
            return Verdict(succeeded=True)
        # the condition FailureTarget comes first, Failed only when the pod is gone
        if ended & {"Failed", "FailureTarget"}:
            return Verdict(failed=cause_of_end(self._pod))
        return None

    def _deadline(self, blocked: Cause | None) -> Verdict | None:
        policy, status, now = self._policy, self._status, self._now
        begun = to_seconds(status.get("attemptStartTime")) or now
        if (
            policy.active_deadline_seconds
            and status.get("activeSeconds", 0) + now - begun >= policy.active_deadline_seconds
        ):
            return Verdict(over="DeadlineExceeded", cause=blocked)
        if "runningTime" not in status:
            if policy.pending_deadline_seconds and now - begun >= policy.pending_deadline_seconds:
                return Verdict(over="PendingDeadline", cause=blocked)
            return None
        progressed = max(to_seconds(status.get("lastProgressTime")) or 0.0, to_seconds(status["runningTime"]) or 0.0)
        if policy.progress_deadline_seconds and now - progressed >= policy.progress_deadline_seconds:
            waited = f"nothing went on for {policy.progress_deadline_seconds} s"
            return Verdict(failed=Cause("ProgressDeadline", f"{waited}; look for a script that hangs, or a store"))
        return None

    def _on_the_way(self, working: bool, blocked: Cause | None) -> Verdict:
        requeue = self._next_look()
        if blocked is not None:
            note_failure(self._status, blocked, self._now)
            return Verdict("Starting", blocked.reason, blocked.message, requeue_s=requeue)
        if (failure := worker_failure(self._observed, self._run)) is not None:
            note_failure(self._status, failure, self._now)
        phase = (self._observed.progress or {}).get("phase", "")
        if working and phase == "publishing":
            return Verdict(
                "Running", "Publishing", "all shards are done; the manifest is being written", requeue_s=requeue
            )
        if "runningTime" in self._status:
            return Verdict("Running", "Working", "shards are being worked on", requeue_s=requeue)
        if self._pod is not None and self._pod.get("status", {}).get("phase") == "Running":
            return Verdict("Starting", "WaitingForWorkers", "the runner is up", requeue_s=requeue)
        return Verdict(requeue_s=requeue)

    def _note_workers(self) -> None:
        ready = 0
        for pod in pods_of(self._observed, WORKER, self._run):
            conditions = pod.get("status", {}).get("conditions") or []
            ready += any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
        note_workers(self._status, ready, self._children.replicas)

    def _next_look(self) -> float:
        """Seconds until progress is due or a deadline may pass, whichever is sooner."""
        policy, status, now = self._policy, self._status, self._now
        begun = to_seconds(status.get("attemptStartTime")) or now
        due = [now + self._observed.settings.progress_s]
        if policy.active_deadline_seconds:
            due.append(begun + policy.active_deadline_seconds - status.get("activeSeconds", 0))
        if "runningTime" not in status and policy.pending_deadline_seconds:
            due.append(begun + policy.pending_deadline_seconds)
        return max(0.1, min(due) - now)
