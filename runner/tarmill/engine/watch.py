"""A watch on the progress of one running task, and the errors for tasks that hang or kill: pure."""

from __future__ import annotations

import signal

from tarmill.engine.base import Progress, TaskLike
from tarmill.errors import TaskTimeout, WorkerDied
from tarmill.values import valueclass

SILENCE_S = 3.0  # six missed reports: what was heard last no longer tells where the task is


@valueclass(frozen=False)
class Watch:
    """When a task was last heard, and when what it said last changed; times are of a monotonic clock, in seconds."""

    last: Progress
    changed_s: float
    heard_s: float

    @classmethod
    def begin(cls, index: int, now_s: float) -> Watch:
        """A watch on a task that starts now."""
        return cls(Progress(index), now_s, now_s)

    def hear(self, progress: Progress, now_s: float) -> None:
        """The task told how far it is."""
        self.heard_s = now_s
        if progress != self.last:
            self.last = progress
            self.changed_s = now_s

    def stuck_s(self, now_s: float) -> float:
        """For how long nothing changed, whether the task was silent or told the same again."""
        return now_s - self.changed_s

    def is_silent(self, now_s: float) -> bool:
        """Whether the whole process has said nothing for a while: some code holds the interpreter lock."""
        return now_s - self.heard_s > SILENCE_S


def timeout_error(task: TaskLike, watch: Watch, timeout_s: float, now_s: float) -> TaskTimeout:
    """The error for a task that was ended because it made no progress; facts: shard, key, timeout_s, samples."""
    last = watch.last
    if not last.key:
        where = "before the first sample that it told of"
    elif watch.is_silent(now_s):
        where = (
            f"in or soon after sample {last.key!r} (the code holds the interpreter lock, so this is the last one told)"
        )
    else:
        where = f"in sample {last.key!r}"
    return TaskTimeout(
        f"{task.label}: no progress for {timeout_s:g} s {where}, after {last.samples} samples; the task was ended. "
        "Mend or skip that sample, or allow more time with --task-timeout",
        shard=task.label,
        key=last.key,
        timeout_s=timeout_s,
        samples=last.samples,
    )


def death_error(task: TaskLike, deaths: int, key: str, exit_code: int | None) -> WorkerDied:
    """The error for a task that is given up since its worker died each time; facts: shard, key, deaths, exit_code.

    Args:
        exit_code: as `subprocess` has it, negative for a signal; None where nobody saw it.
    """
    where = f"the last sample it told of was {key!r}" if key else "it had told of no sample yet"
    return WorkerDied(
        f"{task.label}: the worker died {deaths} times while it ran this task and nothing else ({_cause(exit_code)}); "
        f"{where}. Run that shard alone to see why; give workers more memory, or run fewer at a time (-j)",
        shard=task.label,
        key=key,
        deaths=deaths,
        exit_code=exit_code,
    )


def _cause(exit_code: int | None) -> str:
    if exit_code is None:
        return "see the worker's log for the reason; often it is memory"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"signal {-exit_code}"
    return f"{name}, which often means out of memory" if name == "SIGKILL" else name
