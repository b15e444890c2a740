"""A Dask cluster for the tests of shuffle and sort, one for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.reorder_runs import Clusters, HoldingCluster


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    pytest.importorskip("distributed")
    with Clusters(tmp_path_factory.mktemp("dask")) as found:
        yield found


@pytest.fixture
def cluster(clusters: Clusters) -> HoldingCluster:
    """A scheduler and two workers; who was killed in the test before has a successor."""
    return clusters.ready()
