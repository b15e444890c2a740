"""Files are looked at while the walk goes on: in rounds, whose results come in order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill.engine.serial import serial_engine
from tarmill.jobs import upload_scan
from tarmill.jobs.upload_scan import LookTask


def number_of(task: LookTask) -> tuple[int]:
    return (task.index,)


@given(st.integers(1, 8), st.integers(0, 300))
def test_every_task_is_looked_at_once_and_in_order_and_the_walk_is_not_far_ahead(first: int, more: int) -> None:
    looked = 0

    def walk() -> Iterator[LookTask]:
        for index in range(first + more):
            assert index < first + 2 * (looked + 1)
            yield LookTask(index, (), 1, 0, "", False)

    tasks = walk()
    begun = [next(tasks) for _ in range(first)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upload_scan, "look_in_worker", number_of)
        for done in upload_scan._looked_elsewhere(begun, tasks, serial_engine()):
            assert done == (looked,)
            looked += 1
    assert looked == first + more
