"""How a job tells what happens, to whoever wants to know; no heavy import, since every command loads it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tarmill.engine.base import Engine, Progress
    from tarmill.errors import TarmillError
    from tarmill.jobs.report import Report


class Listener:
    """Who wants to know how a job goes; this one keeps quiet."""

    def plan(self, report: Report, total_bytes: int | None, lines: Sequence[str]) -> None:
        """The plan is made; `lines` tell it to people."""

    def engine(self, engine: Engine) -> None:
        """Tasks are about to run there."""

    def stage(self, name: str, tasks: int, total_bytes: int | None) -> None:
        """A job of several passes begins one: how many tasks it has, and how much they read in all."""

    def progress(self, progress: Progress) -> None:
        """A running task got on."""

    def finished(self, index: int, samples: int, read_bytes: int, written_bytes: int) -> None:
        """A shard is done."""

    def failed(self, shard: str, error: TarmillError) -> None:
        """A shard failed for good."""

    def note(self, message: str) -> None:
        """Something that a person should know."""


class Several(Listener):
    """Tells several listeners, in order."""

    def __init__(self, listeners: Iterable[Listener]) -> None:
        self._listeners = tuple(listeners)

    def plan(self, report: Report, total_bytes: int | None, lines: Sequence[str]) -> None:
        """The plan is made."""
        for listener in self._listeners:
            listener.plan(report, total_bytes, lines)

    def engine(self, engine: Engine) -> None:
        """Tasks are about to run there."""
        for listener in self._listeners:
            listener.engine(engine)

    def stage(self, name: str, tasks: int, total_bytes: int | None) -> None:
        """A pass begins."""
        for listener in self._listeners:
            listener.stage(name, tasks, total_bytes)

    def progress(self, progress: Progress) -> None:
        """A running task got on."""
        for listener in self._listeners:
            listener.progress(progress)

    def finished(self, index: int, samples: int, read_bytes: int, written_bytes: int) -> None:
        """A shard is done."""
        for listener in self._listeners:
            listener.finished(index, samples, read_bytes, written_bytes)

    def failed(self, shard: str, error: TarmillError) -> None:
        """A shard failed for good."""
        for listener in self._listeners:
            listener.failed(shard, error)

    def note(self, message: str) -> None:
        """Something that a person should know."""
        for listener in self._listeners:
            listener.note(message)
