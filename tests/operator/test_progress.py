from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.observing import NOW, ended, pod_of, started

from tarmill_operator.progress import fold, is_at_work
from tarmill_operator.reconcile import reconcile
from tarmill_operator.times import for_people, to_seconds, to_text

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = ["shards", "samples", "bytes", "dropped", "etaSeconds", "lastProgressTime", "failures", "manifest", "workers"]
numbers = st.dictionaries(st.sampled_from(["total", "done", "failed", "read", "written"]), json_values)
words = st.dictionaries(st.sampled_from([*fields, "phase", "outcome", "reason", "message"]), json_values | numbers)


@given(words)
def test_whatever_a_runner_says_the_status_stays_one_that_the_api_server_takes(said: dict[str, Any]) -> None:
    observed = started()
    pod = pod_of(observed, **ended(1, **said))
    for seen in (observed, with_words(observed, said), with_pod(observed, pod)):
        status = reconcile(seen, NOW).status
        json.dumps(status, allow_nan=False)
        for group in ("shards", "samples", "bytes"):
            assert all(isinstance(number, int) and 0 <= number < 2**63 for number in status.get(group, {}).values())
        assert 0 <= status.get("percent", 0) <= 100
        if "lastProgressTime" in status:
            assert to_text(to_seconds(status["lastProgressTime"]) or 0) == status["lastProgressTime"]
        assert len(json.dumps(status)) < 50_000


def with_words(observed: Any, said: dict[str, Any]) -> Any:
    return replace(observed, pods=(pod_of(observed),), progress=said)


def with_pod(observed: Any, pod: dict[str, Any]) -> Any:
    return replace(observed, pods=(pod,))


def test_progress_is_told_in_numbers_and_for_people() -> None:
    status: dict[str, Any] = {}
    fold(
        status,
        {
            "shards": {"total": 10, "done": 3, "failed": 1, "running": 2},
            "samples": {"read": 300, "written": 290},
            "dropped": {"corrupt": 4, "filtered": 6},
            "bytes": {"read": 500, "written": 400, "total": 1000},
            "etaSeconds": 130.4,
            "lastProgressTime": "2027-01-15T09:00:00.25+01:00",
            "failures": [{"shard": "in-3.tar", "reason": "ScriptError", "message": "m" * 5000, "more": 1}] * 9,
        },
    )
    assert status["shards"] == {"total": 10, "done": 3, "failed": 1}
    assert status["samples"] == {"read": 300, "written": 290, "dropped": 10}
    assert (status["shardsText"], status["percent"], status["eta"]) == ("3/10", 50, "2m10s")
    assert status["lastProgressTime"] == "2027-01-15T08:00:00Z"
    assert len(status["failures"]) == 5
    assert len(status["failures"][0]["message"]) == 1024
    fold(status, {"shards": {"total": 10, "done": 10, "failed": 0}, "etaSeconds": None})
    assert (status["percent"], "eta" in status) == (100, False)


@pytest.mark.parametrize(
    ("told", "replicas", "expected"),
    [
        (None, 2, False),
        ({"phase": "planning"}, 0, True),
        ({"phase": "planning", "workers": 0}, 2, False),
        ({"phase": "planning", "workers": 1}, 2, True),
        ({"phase": "publishing"}, 2, True),
        ({"phase": "failed"}, 2, False),
        ({"phase": ["running"]}, 2, False),
    ],
)
def test_a_runner_is_at_work_when_it_says_so(told: Any, replicas: int, expected: bool) -> None:
    assert is_at_work(told, replicas) is expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59, "59s"), (60, "1m"), (200, "3m20s"), (7500, "2h5m"), (273600, "3d4h")]
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert for_people(seconds) == text
