"""Every error that tarmill raises on purpose, in one tree; this module imports nothing of tarmill.

    TarmillError                    exit code 1
      UsageError                    exit code 2: the request itself cannot be carried out
        SpecError                   a field of a spec or an option has a value that cannot work
        ShardPatternError           a shard notation that cannot be read or used
      FormatError                   bytes that break the tar, compression or sample rules; has a `reason`
        TruncatedError              the shard ends before its end mark
        HeaderError                 a member header that is damaged or not tar at all
        CompressionError            a damaged compressed stream
        SampleError                 members that do not form a proper sample (interleaved, doubled, unnamed)
        LimitError                  something is larger than a limit that protects memory
      StorageError                  a store refused, failed or changed under our hands
        NotFoundError               nothing is stored under that URL
        AccessError                 the store does not let us (401, 403, EACCES)
        ChangedError                the object is no longer the version that was pinned
        NoSpaceError                the store or the scratch folder is full
      ScriptError                   the user's script failed or returned something that is no sample
      TaskTimeout                   a task made no progress for longer than it may
      WorkerDied                    a task killed its worker each time it ran alone
      ClusterError                  the Dask cluster cannot go on: its scheduler is gone or does not answer
        NoWorkersError              it has had no worker for longer than the job waits
      OutputExistsError             the output is there already, from another job
      JobFailed                     a job ended with failed shards; has the report
    Interrupted                     (BaseException) the person or the system asked us to stop; exit code 130 or 143

A message says what was found, what was expected, where, and the cure. Facts are attributes as well, by keyword:
`FormatError("...", shard=url, member=name, offset=1024, reason="bad-header")`. All of them can be pickled, since they
cross from workers to the driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar


class TarmillError(Exception):
    """Base of all errors that a user may meet; `facts` holds what the message says, as values."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts
        vars(self).update(facts)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.facts)


def _rebuild(kind: type[TarmillError], message: str, facts: dict[str, Any]) -> TarmillError:
    return kind(message, **facts)


class UsageError(TarmillError):
    """The request cannot be carried out as it was written."""

    exit_code = 2


class SpecError(UsageError):
    """A field of a spec, or the option it came from, has a value that cannot work (facts: field, value)."""


class ShardPatternError(UsageError):
    """A shard notation that cannot be read or used (facts: pattern)."""


class FormatError(TarmillError):
    """Bytes that break the rules of the format (facts: shard, member, offset, reason).

    `reason` is a short constant such as "truncated"; reports count by it.
    """

    reason: str = "bad-format"


class TruncatedError(FormatError):
    """The shard ends before its end mark."""

    reason = "truncated"


class HeaderError(FormatError):
    """A member header that is damaged, hostile or no tar header at all."""

    reason = "bad-header"


class CompressionError(FormatError):
    """A damaged or unsupported compressed stream."""

    reason = "bad-compression"


class SampleError(FormatError):
    """Members that do not form a proper sample; the rest of the shard can be read (facts: key too)."""

    reason = "bad-sample"


class LimitError(FormatError):
    """Something is larger than a limit that protects memory (facts: limit_bytes, size_bytes)."""

    reason = "too-large"


class StorageError(TarmillError):
    """A store refused, failed or changed under our hands (facts: url, status).

    `retryable` is True where the same request may work later.
    """

    retryable: bool = False


class NotFoundError(StorageError):
    """Nothing is stored under that URL."""


class AccessError(StorageError):
    """The store does not let us in, or not do that."""


class ChangedError(StorageError):
    """The object is no longer the version that was pinned when reading began."""


class NoSpaceError(StorageError):
    """The store or the scratch folder is full."""


class ScriptError(TarmillError):
    """The user's script failed or returned something that is no sample (facts: key, shard, script_traceback)."""

    reason: str = "script-error"


class TaskTimeout(TarmillError):
    """A task made no progress for longer than it may (facts: shard, key, timeout_s)."""

    reason: str = "timeout"


class WorkerDied(TarmillError):
    """A task killed its worker each time it ran alone (facts: shard, key, deaths, exit_code)."""

    reason: str = "worker-died"


class ClusterError(TarmillError):
    """The Dask cluster cannot go on (facts: address)."""


class NoWorkersError(ClusterError):
    """A Dask cluster has had no worker for longer than the job waits (facts: address)."""


class OutputExistsError(TarmillError):
    """The output is there already, from another job or with other bytes (facts: url)."""

    exit_code = 2


class JobFailed(TarmillError):
    """A job ended with failed shards (facts: report)."""


class Interrupted(BaseException):
    """The person (SIGINT) or the system (SIGTERM) asked us to stop; no `except Exception` of a script may eat it."""

    def __init__(self, signal_number: int = 2) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """128 + signal, as shells report it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal_number

    def __reduce__(self) -> tuple[Any, ...]:
        return Interrupted, (self.signal_number,)


def exit_code_of(error: BaseException | None) -> int:
    """Give the exit code with which a command ends that was left with this error; 0 for None."""
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):
        return 141  # 128 + SIGPIPE: whoever read our output has seen enough
    code = getattr(error, "exit_code", 1)  # click's errors have one too
    return code if isinstance(code, int) else 1


def reason_of(error: BaseException) -> str:
    """Name the kind of an error: its class where it is of this tree, `UnexpectedError` for a fault of tarmill."""
    if type(error) is TarmillError and "kind" in error.facts:  # what a worker did not expect
        return "MemoryError" if error.facts["kind"] == "MemoryError" else "UnexpectedError"
    if isinstance(error, TarmillError | Interrupted):
        return type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted"
    if hasattr(error, "exit_code"):  # click's
        return "UsageError"
    return "MemoryError" if isinstance(error, MemoryError) else "UnexpectedError"
