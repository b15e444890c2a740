"""How soon a resource is looked at after news."""

from __future__ import annotations

from typing import Any

import pytest

from tarmill_operator.watches import pause_after


def about(kind: str, **status: Any) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": "x"}, "status": status}


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (about("ShardMap", observedGeneration=-1), about("ShardMap", phase="Running")),
        (about("ShardSort", phase="Running"), about("Pod", phase="Running")),
        (about("ShardUpload"), about("Job")),
    ],
)
def test_a_new_resource_goes_before_those_that_go_on_and_news_of_children_wait_for_more_of_them(
    earlier: dict[str, Any], later: dict[str, Any]
) -> None:
    assert pause_after(earlier) < pause_after(later)


def test_nothing_but_a_new_resource_goes_before_what_waits() -> None:
    assert pause_after(about("ShardMap", observedGeneration=-1)) < 0
    assert pause_after(about("ShardMap", phase="Pending")) == 0
    assert pause_after(about("Deployment")) > 0
