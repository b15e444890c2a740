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

    @property
    def can(self) -> storage.Capabilities:
        return storage.capabilities(self.folder)
