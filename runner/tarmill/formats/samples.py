"""What a reader is asked for, what it counts, and how it treats bad samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from tarmill.errors import FormatError, SpecError
from tarmill.values import field, valueclass

Record = dict[str, Any]
"""What a user's script sees: "__key__", "__url__", "key" (an alias of the key) and each field's bytes."""

DEFAULT_MAX_MEMBER_BYTES = 2 << 30


class OnError(StrEnum):
    """What to do about a bad sample."""

    FAIL = "fail"
    """The shard fails: nothing of it is published."""
    SKIP = "skip"
    """Leave the sample out and go on; where the rest of a shard cannot be read, leave that out."""
    STOP = "stop"
    """Keep what came before it in this shard and leave out the rest of the shard."""
    IGNORE = "ignore"
    """Keep the sample as far as it could be read: the last of doubled fields, the fields before a cut."""


@valueclass
class ReadOptions:
    """How to read a shard."""

    key_function: str = "base_plus_ext"
    """A name of `keys`, or a regular expression with two groups."""
    load: frozenset[str] | None = None
    """Fields whose contents are wanted; None for all. The bytes of others are passed over."""
    sizes: bool = False
    """Whether fields that are not loaded appear in the record as their size in bytes (int)."""
    on_error: str = "fail"
    """A value of `OnError`."""
    max_member_bytes: int = DEFAULT_MAX_MEMBER_BYTES
    """The largest field that a record may hold in memory."""
    fast: bool = True
    """False sends every member through the complete slow path; the results are the same."""

    def __post_init__(self) -> None:
        if self.on_error not in tuple(OnError):
            raise SpecError(
                f"on-error is {self.on_error!r}; expected one of {', '.join(OnError)}",
                field="on_error",
                value=self.on_error,
            )


@valueclass
class Rejection:
    """A sample that was left out, or kept though damaged."""

    shard: str
    key: str
    reason: str
    message: str
    kept: bool = False


@valueclass(frozen=False)
class Tally:
    """Counts of what was read from one shard; `samples` = yielded + dropped, always."""

    samples: int = 0
    """Samples met, whether they were handed on or dropped."""
    members: int = 0
    """Members that belong to samples, whether loaded or not."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Members that belong to no sample, by kind: directory, symlink, no-extension, ..."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Samples left out, by reason."""
    kept_damaged: Counter[str] = field(default_factory=Counter)
    """Samples handed on though something was wrong with them (`--on-error ignore`), by reason."""
    unread: Counter[str] = field(default_factory=Counter)
    """How often the rest of a shard could not be read, by reason; what it held cannot be counted."""
    duplicate_keys: int = 0
    """Samples whose key came before in the shard, with the same fields; they are kept."""
    on_rejection: Callable[[Rejection], None] | None = None

    @property
    def yielded(self) -> int:
        """Samples handed on."""
        return self.samples - sum(self.dropped.values())

    def reject(self, shard: str, key: str, error: FormatError) -> None:
        """Count a sample as dropped, for the reason of the error."""
        self.dropped[error.reason] += 1
        self._tell(shard, key, error, kept=False)

    def keep(self, shard: str, key: str, error: FormatError) -> None:
        """Count a sample as handed on though damaged."""
        self.kept_damaged[error.reason] += 1
        self._tell(shard, key, error, kept=True)

    def lose_rest(self, shard: str, error: FormatError) -> None:
        """Note that the rest of the shard could not be read."""
        self.unread[error.reason] += 1
        self._tell(shard, "", error, kept=False)

    def _tell(self, shard: str, key: str, error: FormatError, kept: bool) -> None:
        if self.on_rejection is not None:
            self.on_rejection(Rejection(shard, key, error.reason, error.message, kept))
