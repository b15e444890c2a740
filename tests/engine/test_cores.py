from __future__ import annotations

import os
from pathlib import Path

import pytest

from tarmill.engine.cores import usable_cores

ALL = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("files", "cores"), [
    ({}, ALL),
    ({"cpu.max": "max 100000"}, ALL),
    ({"cpu.max": "100000 100000"}, 1),
    ({"cpu.max": "50000 100000"}, 1),
    ({"cpu.max": "100000000 100000"}, ALL),
    ({"cpu.max": "nonsense"}, ALL),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, ALL),
    ({"cpu/cpu.cfs_quota_us": "80000", "cpu/cpu.cfs_period_us": "100000"}, 1),
], ids=str)  # fmt: skip
def test_a_containers_cpu_limit_counts(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert usable_cores(str(tmp_path)) == cores
