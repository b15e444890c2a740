from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tarmill import storage
from tarmill.storage import mem


@pytest.fixture(autouse=True)
def own_storage() -> Iterator[None]:
    """Each test begins with an empty memory store and leaves the settings as they were."""
    before = storage.current_settings()
    yield
    storage.configure(before)
    mem.clear()


@pytest.fixture
def place() -> str:
    """A folder in memory."""
    return "mem://here/"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
