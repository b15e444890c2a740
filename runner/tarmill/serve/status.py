"""How far a job is, for those who ask: a listener that keeps the numbers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tarmill.errors import reason_of
from tarmill.jobs.listener import Listener

if TYPE_CHECKING:
    from tarmill.engine.base import Engine, Progress
    from tarmill.errors import TarmillError
    from tarmill.jobs.report import Report

FORMAT = 1
MOST_FAILURES = 5
_TWO_PASSES = ("ShardShuffle", "ShardSort")


class Bytes:
    """How much a job has read, over all its passes, and how much it will read: pure.

    A shuffle or sort moves everything about twice, so that until its second pass begins as much is expected again.
    """

    def __init__(self, before: int, total: int | None, twice: bool) -> None:
        """Begin to count.

        Args:
            before: what earlier runs have read of it.
            total: what is left, where that is known.
            twice: whether a second pass follows the first.
        """
        self.before = before
        self._earlier = before
        self._done = 0
        self._total = total
        self._first: int | None = None
        self.twice = twice
        self.passes = 0

    def begin_pass(self, total: int | None) -> None:
        """Count the next pass, which reads so much."""
        if self.passes or self._total is not None:  # a job of one pass has one without a name
            self._earlier += self._done if self._total is None else self._total
        else:
            self._first = total
        self.passes += 1
        self._done, self._total = 0, total

    def add(self, size_bytes: int) -> None:
        """Count a finished task."""
        self._done += size_bytes

    def read(self, running_bytes: int) -> int:
        """Tell how much is read, with that of the tasks that run; never more than a pass has."""
        now, most = self._done + running_bytes, self._of_pass
        return self._earlier + (now if most is None else min(now, most))

    @property
    def total(self) -> int | None:
        """How much is read in the end; None where that is not known."""
        if (most := self._of_pass) is None:
            return None
        return self._earlier + (2 * most if self.twice and self.passes == 1 else most)

    @property
    def _of_pass(self) -> int | None:
        """How much this pass reads; as much as the first one where nobody has said."""
        return self._first if self._total is None and self.passes > 1 else self._total


class Status(Listener):
    """Follows a job; asked from other threads.

    Args:
        clock: seconds that only grow.
        wall: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock, self._wall = clock, wall
        self._lock = threading.RLock()
        self._started = self._planned = self._changed = clock()
        self._changed_at = wall()
        self._phase = "planning"
        self._stage = self._message = ""
        self._bytes = Bytes(0, None, False)
        self._running: dict[int, Progress] = {}
        self._failures: list[dict[str, str]] = []
        self._failed = 0
        self._engine: Any = None
        self._peaks: dict[str, int] = {}
        self.report: Report | None = None
        """Of the job that was planned, as far as it is."""
        self.workers_of: Callable[[], int] | None = None
        """Counts the workers of a cluster, also before the job uses them."""

    # -- what the job tells --------------------------------------------------------------------------------------------

    def plan(self, report: Report, total_bytes: int | None, lines: Sequence[str]) -> None:
        """The plan is made."""
        with self._lock:
            self.report, self._phase, self._planned = report, "running", self._clock()
            self._bytes = Bytes(report.counts.read_bytes, total_bytes, report.kind in _TWO_PASSES)
            self._touch()

    def engine(self, engine: Engine) -> None:
        """Tasks are about to run there."""
        self._engine = engine

    def stage(self, name: str, tasks: int, total_bytes: int | None) -> None:
        """A pass begins."""
        with self._lock:
            self._stage = name
            self._bytes.begin_pass(total_bytes)
            self._running.clear()
            self._touch()

    def progress(self, progress: Progress) -> None:
        """A running task got on, or says that it did not."""
        with self._lock:
            if progress.done:
                self._running.pop(progress.index, None)
            elif progress == self._running.get(progress.index):
                return
            else:
                self._running[progress.index] = progress
            self._touch()

    def finished(self, index: int, samples: int, read_bytes: int, written_bytes: int) -> None:
        """A shard is done."""
        with self._lock:
            self._running.pop(index, None)
            self._bytes.add(read_bytes)
            self._touch()

    def failed(self, shard: str, error: TarmillError) -> None:
        """A shard failed for good."""
        with self._lock:
            self._failed += 1
            if len(self._failures) < MOST_FAILURES:
                self._failures.append({"shard": shard, "reason": reason_of(error), "message": error.message})
            self._touch()

    def note(self, message: str) -> None:
        """Something that a person should know."""
        self._message = message

    def end(self, succeeded: bool, message: str) -> None:
        """The job has ended."""
        with self._lock:
            self._phase, self._message = "done" if succeeded else "failed", message
            self._running.clear()  # what was in hand is given up

    def _touch(self) -> None:
        self._changed, self._changed_at = self._clock(), self._wall()

    # -- what others ask -----------------------------------------------------------------------------------------------

    @property
    def seconds_since_progress(self) -> float:
        """For how long nothing has changed."""
        return self._clock() - self._changed

    def to_dict(self) -> dict[str, Any]:
        """Give everything, as JSON-able values."""
        with self._lock:
            counts = self.counts()
            report = self.report
            return {
                "format": FORMAT,
                "job": report.job if report else "",
                "phase": self._phase_now(),
                "stage": self._stage,
                **counts,
                "elapsedSeconds": round(self._clock() - self._started, 1),
                "etaSeconds": self._eta_s(counts["bytes"]),
                "workers": self._workers(),
                "lastProgressTime": datetime.fromtimestamp(self._changed_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "failures": [dict(failure) for failure in self._failures],
                "output": (report.data_set if self._phase == "done" else report.output) if report else "",
                "manifest": report.manifest if report else "",
                "message": self._message,
            }

    def counts(self) -> dict[str, dict[str, Any]]:
        """Give the numbers of shards, samples and bytes; those of running tasks are among them."""
        with self._lock:
            running = list(self._running.values())
            report, moved = self.report, self._bytes
            total, done, resumed = (
                (report.shards_total, report.shards_done, report.shards_resumed) if report else (0, 0, 0)
            )
            read, written = (report.counts.read, report.counts.written) if report else (0, 0)
            samples = sum(progress.samples for progress in running)
            # of other passes nobody knows what their samples are to the job
            reads, writes = moved.passes == (1 if moved.twice else 0), moved.twice and moved.passes == 2
            written_bytes = report.counts.written_bytes if report else 0
            return {
                "shards": {
                    "total": total,
                    "done": done,
                    "failed": self._failed,
                    "resumed": resumed,
                    "running": len(running),
                },
                "samples": {
                    "read": read + (samples if reads else 0),
                    "written": written + (samples if writes else 0),
                },
                "bytes": {
                    "read": moved.read(sum(progress.read_bytes for progress in running)),
                    "written": written_bytes + sum(progress.written_bytes for progress in running),
                    "total": moved.total,
                },
            }

    def peaks(self) -> dict[str, int]:
        """Give the numbers that only grow, for counters: a task that runs again does not take them back."""
        with self._lock:
            counts = self.counts()
            now = {
                "shards_done": counts["shards"]["done"],
                "shards_failed": counts["shards"]["failed"],
                **{f"{what}_{how}": counts[what][how] for what in ("samples", "bytes") for how in ("read", "written")},
            }
            self._peaks = {name: max(value, self._peaks.get(name, 0)) for name, value in now.items()}
            return dict(self._peaks)

    def _phase_now(self) -> str:
        report = self.report
        if self._phase == "running" and report and report.shards_done == report.shards_total and not self._failed:
            return "publishing"
        return self._phase

    def _eta_s(self, counted: dict[str, Any]) -> int | None:
        elapsed = self._clock() - self._planned
        moved, total = counted["read"] - self._bytes.before, counted["total"]
        if self._phase != "running" or total is None or moved <= 0 or elapsed <= 0:
            return None
        return round((int(total) - int(counted["read"])) * elapsed / int(moved))

    def _workers(self) -> int:
        if self.workers_of is not None:
            return self.workers_of()
        known = getattr(self._engine, "known_workers", None)  # a cluster is not asked: it might not answer
        return int(known if known is not None else getattr(self._engine, "workers", 0))
