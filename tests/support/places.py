"""A store under test: where its test may write, and how a name there becomes a URL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tarmill import storage


@dataclass(frozen=True)
class Place:
    """One store under test: where its test may write, and how a name there becomes a URL."""

    scheme: str
    url: Callable[[str], str]
    folder: str
    disk: str = ""
    """Where its files lie, if that is a folder of this machine."""
    unfinished: Callable[[], list[str]] = list
    """What of unfinished outputs the store keeps out of its lists."""
    large_bytes: int = 3_000_000
    """More than the store keeps to itself before the commit."""

    @property
    def can(self) -> storage.Capabilities:
        return storage.capabilities(self.folder)
