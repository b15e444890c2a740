"""One attempt of a run: what it needs, and how it goes (pure)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tarmill_operator.causes import cause_of_end, last_words, obstacle, pods_of
from tarmill_operator.changes import change_of
from tarmill_operator.children import Children
from tarmill_operator.cluster_spec import RunPolicy
from tarmill_operator.failures import note_failure, note_workers
from tarmill_operator.model import Cause, Observed, Resource
from tarmill_operator.names import RUNNER, WORKER
from tarmill_operator.progress import fold, is_at_work
from tarmill_operator.times import count_of, to_seconds, to_text
from tarmill_operator.workers import worker_failure, worn_out_worker

UNHEARD_S = 60.0
"""How long a runner may run without a word until it is taken to work: we may have been cut off from it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an attempt stands.

    Attributes:
        phase, reason, message: while it goes on.
        succeeded: it is done.
        failed: why it has ended.
        over: reason for which the whole run ends, though the attempt may still run.
        cause: of that, as far as it is known.
        look_closer: what was seen may be late in a way that would make the verdict another.
        requeue_s: when a deadline may pass; None where none can.
    """

    phase: str = "Starting"
    reason: str = "StartingPods"
    message: str = "the pods are being started"
    succeeded: bool = False
    failed: Cause | None = None
    over: str | None = None
    cause: Cause | None = None
    look_closer: bool = False
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
        self._job_ref = children.job_ref(self._number)
        self._job = observed.child(self._job_ref.kind, self._job_ref.name)
        pods = pods_of(observed, RUNNER, self._run, self._number)
        self._pod = pods[-1] if pods else None
        self._last_seen = self._pod or self._gone_runner()
        self._workers = pods_of(observed, WORKER, self._run)

    def _gone_runner(self) -> Resource | None:
        """Give this attempt's pod as it was when it was removed."""
        if self._observed.gone_runner is None:
            return None
        gone = replace(self._observed, pods=(self._observed.gone_runner,))
        return next(iter(pods_of(gone, RUNNER, self._run, self._number)), None)

    def wanted(self) -> list[Resource]:
        """Give what is to be applied, in order: what is missing, and what follows the spec while it runs."""
        workers = self._children.workers_ref()
        complete = self._job is not None and self._observed.child(workers.kind, workers.name) is not None
        found = []
        for part in self._children.parts(self._number):
            if part.kind == "Secret":  # which nobody here may read: it is made before the pods, and when they miss it
                there = complete and self._status.get("reason") != "SecretMissing"
                found += [] if there else [part.make()]
            elif change := change_of(part, self._observed.child(part.kind, part.name)):
                found.append(change)
        return found

    def look(self) -> Verdict:
        """Judge the attempt: ended, past a deadline, or on its way."""
        words = last_words(self._last_seen) if self._last_seen else None
        if told := words or self._observed.progress:
            fold(self._status, told)
        self._note_workers()
        if verdict := self._end(words):
            return verdict
        limit = self._children.max_worker_restarts
        if worn := worn_out_worker(self._observed, self._run, self._number, limit):
            return Verdict(failed=worn)
        working = is_at_work(self._observed.progress, self._children.replicas) or self._is_unheard()
        if working:
            self._status.setdefault("runningTime", to_text(self._now))
        blocked = None if "runningTime" in self._status else self._obstacle()
        if late := self._deadline(blocked):
            return late
        return self._on_the_way(blocked)

    def success_message(self) -> str:
        """Tell what was made."""
        shards, samples = self._status.get("shards", {}), self._status.get("samples", {})
        return f"{count_of(shards.get('done', 0), 'shard')}, {count_of(samples.get('written', 0), 'sample')} written"

    def _obstacle(self) -> Cause | None:
        return obstacle(
            self._observed, self._run, self._number, job=self._job_ref.name, workers_name=self._children.workers_name()
        )

    def _end(self, words: dict[str, Any] | None) -> Verdict | None:
        """Tell how the Job has ended, if it has."""
        ended = {
            condition["type"]
            for condition in (self._job or {}).get("status", {}).get("conditions") or []
            if condition.get("status") == "True"
        }
        if "Complete" in ended or (words and words.get("outcome") == "succeeded"):
            # what it has made is in its last words, which may not have been told yet
            return Verdict(succeeded=True) if words or self._observed.fresh else Verdict(look_closer=True)
        # the condition FailureTarget comes first, Failed only when the pod is gone
        failed = bool(ended & {"Failed", "FailureTarget"})
        gone = self._job is None and (self._pod is not None or "runningTime" in self._status)
        if not failed and not gone:
            return None
        if not self._observed.fresh:  # Job and pod are watched apart: the pod's end may not have been told yet
            return Verdict(look_closer=True)
        return Verdict(failed=self._root_cause(gone))

    def _root_cause(self, gone: bool) -> Cause:
        if gone:
            name = self._job_ref.name
            return Cause("RunnerLost", f"Job {name} is gone: someone removed it; another one goes on", disruption=True)
        cause = cause_of_end(self._last_seen)
        worker = worker_failure(self._observed, self._run) if cause.reason == "WorkerDied" else None
        if worker is None or worker.disruption:
            return cause
        return replace(worker, message=f"{worker.message}. The runner: {cause.message}"[:1024], final=cause.final)

    def _is_unheard(self) -> bool:
        """Tell whether the runner must be at work though nothing is heard of it."""
        if self._observed.progress is not None or (self._children.replicas and not self._status["workers"]["ready"]):
            return False
        since = self._running_since()
        return since is not None and self._now - since >= UNHEARD_S

    def _running_since(self) -> float | None:
        for container in (self._pod or {}).get("status", {}).get("containerStatuses") or []:
            if running := (container.get("state") or {}).get("running"):
                return to_seconds(running.get("startedAt"))
        return None

    def _deadline(self, blocked: Cause | None) -> Verdict | None:
        policy, status, now = self._policy, self._status, self._now
        begun = to_seconds(status.get("attemptStartTime")) or now
        active = status.get("activeSeconds", 0) + now - begun
        if policy.active_deadline_seconds and active >= policy.active_deadline_seconds:
            return Verdict(over="DeadlineExceeded", cause=blocked)
        if "runningTime" not in status:
            if policy.pending_deadline_seconds and now - begun >= policy.pending_deadline_seconds:
                return Verdict(over="PendingDeadline", cause=blocked or self._observed.refusal)
            return None
        if policy.progress_deadline_seconds and now >= self._progress_deadline():
            waited = f"nothing went on for {policy.progress_deadline_seconds} s"
            return Verdict(failed=Cause("ProgressDeadline", f"{waited}; look for a script that hangs, or a store"))
        return None

    def _progress_deadline(self) -> float:
        """Tell when the runner must have told of progress: later by the time for which it may not have been asked."""
        status = self._status
        last = max(to_seconds(status.get("lastProgressTime")) or 0.0, to_seconds(status.get("runningTime")) or 0.0)
        return last + self._policy.progress_deadline_seconds + self._observed.asked_every_s

    def _on_the_way(self, blocked: Cause | None) -> Verdict:
        requeue = self._next_look()
        if blocked is not None:
            note_failure(self._status, blocked, self._now)
            return Verdict("Starting", blocked.reason, blocked.message, requeue_s=requeue)
        if (failure := worker_failure(self._observed, self._run)) is not None:
            note_failure(self._status, failure, self._now)
        if "runningTime" in self._status:
            if (self._observed.progress or {}).get("phase") == "publishing":
                message = "all shards are done; the manifest is being written"
                return Verdict("Running", "Publishing", message, requeue_s=requeue)
            unheard = "; the runner cannot be asked how it goes" if self._is_unheard() else ""
            return Verdict("Running", "Working", f"shards are being worked on{unheard}", requeue_s=requeue)
        is_up = self._pod is not None and self._pod.get("status", {}).get("phase") == "Running"
        if is_up and self._children.replicas:
            return Verdict("Starting", "WaitingForWorkers", "the runner is up", requeue_s=requeue)
        return Verdict(requeue_s=requeue)

    def _note_workers(self) -> None:
        ready = 0
        for pod in self._workers:
            conditions = pod.get("status", {}).get("conditions") or []
            ready += any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
        note_workers(self._status, ready, self._children.replicas)

    def _next_look(self) -> float | None:
        """Seconds until a deadline may pass; changes and progress are told by others."""
        policy, status, now = self._policy, self._status, self._now
        begun = to_seconds(status.get("attemptStartTime")) or now
        due = []
        if policy.active_deadline_seconds:
            due.append(begun + policy.active_deadline_seconds - status.get("activeSeconds", 0))
        if "runningTime" not in status and policy.pending_deadline_seconds:
            due.append(begun + policy.pending_deadline_seconds)
        if "runningTime" in status and policy.progress_deadline_seconds:
            due.append(self._progress_deadline())
        since = self._running_since()
        if "runningTime" not in status and since is not None and self._observed.progress is None:
            due.append(max(since + UNHEARD_S, now + 1))
        return max(0.1, min(due) - now) if due else None
