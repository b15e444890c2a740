"""The operator on a real cluster, installed once for all tests that only use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.kube import Kube
from support.operated import System, operated
from support.shards_in_store import Data


@pytest.fixture(scope="package")
def system(kube: Kube) -> Iterator[System]:
    with operated(kube) as made:
        yield made


@pytest.fixture
def data(system: System, tmp_path: Path) -> Data:
    return Data(system, tmp_path / tmp_path.name)
