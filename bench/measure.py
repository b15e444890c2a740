"""What a command costs: CPU time of its whole process tree, wall time, peak memory of its largest process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REAPER = Path(__file__).with_name("reaper.py")
BYTECODE = Path(__file__).parent / "out" / "bytecode"


def environment() -> dict[str, str]:
    """Give the environment of what is measured: with compiled modules for all, as installed packages have them."""
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "PYTHONPYCACHEPREFIX": str(BYTECODE.resolve()),
    }


class BenchError(Exception):
    """A measurement that cannot be trusted: a command failed, or gave the wrong number or bytes of samples."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One run of one command."""

    cpu_s: float
    """User and system time of the process, its children and their children, start-up included."""
    wall_s: float
    peak_rss_bytes: int
    """Of the largest process of the tree; pages shared with others, and of mapped files, count in full."""
    peak_anon_bytes: int
    """Anonymous memory of the largest process, seen every 10 ms: without mapped files."""
    peak_anon_bytes_of_all: int
    """The same of all processes at once; pages that they share are counted in each."""
    read_bytes: int
    """From a disk, not from the page cache."""
    stdout: bytes


def measure(
    command: Sequence[str],
    *,
    stdout: Path | None = None,
    limit_s: int = 900,
    variables: Mapping[str, str] | None = None,
) -> Cost:
    """Run a command and wait for every process that it started.

    Args:
        variables: of the environment, besides those that are there.
        stdout: where its standard output goes; None returns it.

    Raises:
        BenchError: it failed, or did not end within `limit_s` seconds.
    """
    result_fd, reaper_fd = os.pipe()
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as kept:
        out = stdout.open("wb") if stdout else kept
        try:
            subprocess.run(
                [sys.executable, "-I", "-S", str(REAPER), str(reaper_fd), str(limit_s), *command],
                pass_fds=[reaper_fd],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env={**environment(), **(variables or {})},
                check=False,
            )
        finally:
            os.close(reaper_fd)
            if stdout:
                out.close()
        with os.fdopen(result_fd, "rb") as pipe:
            text = pipe.read()
        errors.seek(0)
        kept.seek(0)
        complaint = errors.read().decode(errors="replace")[-4000:]
        shown = " ".join(command[:6]) + (" ..." if len(command) > 6 else "")
        if not text:
            raise BenchError(f"could not measure `{shown}`:\n{complaint}")
        told = json.loads(text)
        if told["stopped"]:
            raise BenchError(f"`{shown}` was not done after {limit_s} s, or left processes behind:\n{complaint}")
        if told["status"] != 0:
            raise BenchError(f"`{shown}` ended with status {told['status']}:\n{complaint}")
        figures = ("cpu_s", "wall_s", "peak_rss_bytes", "peak_anon_bytes", "peak_anon_bytes_of_all", "read_bytes")
        return Cost(*(told[name] for name in figures), stdout=kept.read())
