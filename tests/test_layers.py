"""The rules that tools hold for us: style, types, the arrows between layers, no module that shadows Python's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
CHECKS = {
    "ruff finds nothing": ("ruff", "check", "."),
    "every file is formatted": ("ruff", "format", "--check", "."),
    "types are right, strictly": ("mypy",),
    "imports follow the arrows of the design": ("lint-imports",),
}


@pytest.mark.parametrize("command", CHECKS.values(), ids=CHECKS)
def test_the_source_passes(command: tuple[str, ...]) -> None:
    tool, *arguments = command
    done = subprocess.run([str(BIN / tool), *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_python_file_lies_directly_in_the_operator_folder() -> None:
    assert list((ROOT / "operator").glob("*.py")) == []  # `import operator` would find it instead of Python's own
