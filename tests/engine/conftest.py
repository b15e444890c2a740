"""Dask's own warnings, which say nothing about tarmill; and one cluster for the tests that do not harm it."""

from __future__ import annotations

import pytest

DASK = (
    "ignore:unclosed:ResourceWarning:distributed",
    "ignore:unclosed:ResourceWarning:tornado",
    "ignore:Sending large graph:UserWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "engine/test_cluster" in item.nodeid:
            for warning in DASK:
                item.add_marker(pytest.mark.filterwarnings(warning))
