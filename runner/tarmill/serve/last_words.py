"""The last words of a job: a JSON object of at most 4,096 bytes, which Kubernetes keeps with the pod's status."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tarmill.errors import Interrupted, JobFailed, TarmillError, exit_code_of, reason_of
from tarmill.storage.urls import mask

if TYPE_CHECKING:
    from tarmill.serve.status import Status

LIMIT_BYTES = 4096
LIMIT_CHARACTERS = 1500
FILE = "/dev/termination-log"
"""Where Kubernetes looks, unless a container says otherwise."""
# characters of the message; failures; characters of each; characters of URLs; reasons of dropped samples
_STEPS = (
    (LIMIT_CHARACTERS, 3, 400, 500, 30),
    (LIMIT_CHARACTERS, 3, 150, 300, 15),
    (LIMIT_CHARACTERS, 1, 150, 300, 10),
    (900, 1, 100, 200, 5),
    (400, 0, 0, 150, 3),
    (100, 0, 0, 50, 0),
)


def outcome_of(error: BaseException | None) -> str:
    """Name how a job ended: succeeded, failed, usage (no retry helps) or interrupted."""
    if error is None:
        return "succeeded"
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return "interrupted"
    return "usage" if exit_code_of(error) == 2 else "failed"


def message_of(error: BaseException | None) -> str:
    """Say in a sentence why a job ended."""
    if error is None:
        return ""
    if isinstance(error, Interrupted):
        name = "Ctrl-C" if error.signal_number == 2 else "SIGTERM"
        return f"stopped by {name}; what was finished stays, and the same job goes on from there"
    if isinstance(error, TarmillError) or hasattr(error, "exit_code"):
        return mask(str(error))
    return mask(f"unexpected {type(error).__name__}: {error}; the log has the traceback")


def last_words(status: Status, error: BaseException | None) -> bytes:
    """Say how a job ended, in at most 4,096 bytes.

    Args:
        status: of the job, as far as it came.
        error: what ended it, None when all is well.
    """
    report = status.report
    failures = [
        {"shard": failure.shard, "reason": failure.reason, "message": failure.message}
        for failure in (report.failures if report else ())
    ]
    reason = reason_of(error) if error is not None else "Completed"
    if isinstance(error, JobFailed) and failures:
        reason = failures[0]["reason"]
    return fit(
        {
            "format": 1,
            "outcome": outcome_of(error),
            "exitCode": exit_code_of(error),
            "job": report.job if report else "",
            "reason": reason,
            "message": message_of(error),
            **status.counts(),
            "dropped": dict(report.counts.dropped) if report else {},
            "output": report.data_set if report else "",
            "manifest": report.manifest if report and report.succeeded else "",
            "report": report.url if report else "",
            "failures": failures,
        }
    )


def fit(words: Mapping[str, Any], limit_bytes: int = LIMIT_BYTES) -> bytes:
    """Write the words as JSON, shortened step by step until they fit: failures first, the message last (pure)."""
    for message, failures, of_each, urls, reasons in _STEPS:
        shown = {
            **words,
            "reason": shorten(words["reason"], 64),
            "message": shorten(words["message"], message),
            "dropped": _most_frequent(words["dropped"], reasons),
            # a shortened pattern would name other shards
            "output": words["output"] if len(words["output"]) <= urls else "",
            "manifest": shorten(words["manifest"], urls),
            "report": shorten(words["report"], urls),
            "failures": [
                {name: shorten(text, of_each) for name, text in failure.items()}
                for failure in words["failures"][:failures]
            ],
        }
        written = json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode()
        if len(written) <= limit_bytes:
            break
    return written


def shorten(text: str, characters: int) -> str:
    """Shorten a text in its middle: its beginning says what was found, its end how to cure it (pure)."""
    clean = text.encode("utf-8", "backslashreplace").decode()
    if len(clean) <= characters:
        return clean
    if characters < 20:
        return clean[:characters]
    tail = characters // 3
    return f"{clean[: characters - tail - 3]} … {clean[-tail:]}"


def _most_frequent(counts: Mapping[str, int], most: int) -> dict[str, int]:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = {shorten(reason, 64): count for reason, count in ranked[:most]}
    if rest := sum(count for _, count in ranked[most:]):
        shown["other"] = shown.get("other", 0) + rest
    return shown


def write_last_words(path: str, words: bytes) -> None:
    """Write the words, all at once. The usual file is written only where it is: elsewhere nobody looks.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        place = os.open(path, os.O_WRONLY | os.O_TRUNC | (os.O_CREAT if path != FILE else 0), 0o644)
    except FileNotFoundError:
        if path == FILE:
            return
        raise
    try:
        os.write(place, words)
    finally:
        os.close(place)
