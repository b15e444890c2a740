"""What an extraction sends to workers and gets back."""

from __future__ import annotations

from typing import Any

from tarmill.planning.counts import Counts
from tarmill.planning.tasks import Shard
from tarmill.spec import ExtractSpec
from tarmill.values import valueclass


@valueclass
class ExtractTask:
    """Take the rows, or the state of an aggregate, from one shard."""

    index: int
    shard: Shard
    spec: ExtractSpec
    job: str
    """Job id: owner of temp files."""
    output: str
    """Where this shard's own part goes; "" when the rows of all shards come together."""
    spool: str
    """Folder URL, with '/' at its end, for rows that are too many to travel in the result; "" for none."""
    inline_bytes: int
    """Rows up to this size travel in the result."""
    settings: Any
    """`storage.StorageSettings`, to be put in force in the worker."""

    @property
    def label(self) -> str:
        """What messages call the task."""
        return self.shard.label


@valueclass
class ExtractDone:
    """How a shard ended well: its counts, and its rows or the state of its aggregate in one of two places."""

    index: int
    counts: Counts
    payload: bytes
    """Rows or state, when they are small."""
    part: str
    """URL where they were written, otherwise."""
