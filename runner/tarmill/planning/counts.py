"""What happened to samples, as numbers that must balance: read + added = written + dropped."""

from __future__ import annotations

from collections import Counter
from typing import Any, Self

from tarmill.formats.samples import Tally
from tarmill.values import field, fields, valueclass

_ON_PURPOSE = frozenset(
    {"by-script", "by-where", "missing", "after-limit", "missing-key", "unparsable-key", "by-reduce", "not-first"}
    | {"not-last", "duplicate", "merged", "counted", "not-joined"}
)
"""Reasons for leaving a sample out that are no errors: somebody asked for it."""


@valueclass(frozen=False)
class Counts:
    """Counts of one shard or of a whole job; they add up."""

    read: int = 0
    """Samples met in the inputs, also those that could not be used."""
    added: int = 0
    """Samples that a script made more of, beyond one for one."""
    written: int = 0
    """Samples in the outputs, or rows."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Samples left out, by reason."""
    kept_damaged: Counter[str] = field(default_factory=Counter)
    """Samples kept though something was wrong (`--on-error ignore`), by reason."""
    unread: Counter[str] = field(default_factory=Counter)
    """How often the rest of a shard could not be read, by reason; its samples cannot be counted."""
    skipped_members: Counter[str] = field(default_factory=Counter)
    """Members that belong to no sample, by kind."""
    duplicate_keys: int = 0
    renamed: int = 0
    """Samples written under another key, since their neighbour has theirs."""
    read_bytes: int = 0
    written_bytes: int = 0

    def add_tally(self, tally: Tally) -> None:
        """Take over what a reader counted."""
        self.read += tally.samples
        self.duplicate_keys += tally.duplicate_keys
        self.dropped += tally.dropped
        self.kept_damaged += tally.kept_damaged
        self.unread += tally.unread
        self.skipped_members += tally.skipped

    def merge(self, other: Counts) -> None:
        """Add the counts of another shard."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    @property
    def errors(self) -> int:
        """Samples left out because something was wrong with them, and shards whose rest could not be read."""
        bad = sum(count for reason, count in self.dropped.items() if reason not in _ON_PURPOSE)
        return bad + sum(self.unread.values())

    @property
    def missing(self) -> int:
        """How many samples are unaccounted for: 0, or there is a fault in tarmill."""
        return self.read + self.added - self.written - sum(self.dropped.values())

    def to_dict(self) -> dict[str, Any]:
        """Give the counts that are not zero, as JSON-able values."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in found.items()
            if value or name in ("read", "written")
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` gave."""
        known: dict[str, Any] = {k: Counter(v) if isinstance(v, dict) else v for k, v in values.items()}
        return cls(**known)
