"""`--max-errors`: how many samples may be left out because of errors before a job fails."""

from __future__ import annotations

from tarmill.planning.counts import Counts
from tarmill.values import valueclass


@valueclass
class ErrorLimit:
    """A count, a percentage, or neither."""

    text: str = ""
    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> ErrorLimit:
        """Read "", "100" or "0.5%", as the spec has checked it."""
        if not text:
            return cls()
        if text.endswith("%"):
            return cls(text, None, float(text[:-1]) / 100)
        return cls(text, int(text))

    def exceeded(self, counts: Counts, *, final: bool) -> bool:
        """Tell whether there were too many; a percentage only counts at the end (`final`)."""
        if self.count is not None:
            return counts.errors > self.count
        return final and self.share is not None and counts.errors > self.share * max(1, counts.read)

    def message(self, counts: Counts) -> str:
        """Say how many there were, and why."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted((counts.dropped + counts.unread).items()))
        return (
            f"{counts.errors} samples were left out because of errors, more than --max-errors {self.text} ({reasons})"
        )
