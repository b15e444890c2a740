"""What the operator's benchmark makes of what it has seen."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import operator_bench as bench
from cluster import scale

UID = "tarmill.dev/uid"


def child(name: str, uid: str = "1", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {UID: uid}}, "status": status}


def complete(name: str, uid: str = "1") -> dict[str, Any]:
    return child(name, uid, conditions=[{"type": "Complete", "status": "True"}])


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_a_percentile_is_the_smallest_value_that_the_share_does_not_exceed(share: float, expected: int) -> None:
    assert bench.percentile(list(range(100, 0, -1)), share) == expected


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({"percent": 20, "shards": {"done": 2}, "shardsText": "2/10", "lastProgressTime": "now"}, True),
        ({"percent": 20, "workers": {"ready": 1}, "workersText": "1/2"}, False),
        ({"percent": 20, "phase": "Succeeded"}, False),
    ],
)
def test_a_write_is_progress_when_nothing_but_the_runners_numbers_has_changed(
    after: dict[str, Any], expected: bool
) -> None:
    before = {"phase": "Running", "percent": 10}
    assert scale.is_progress(before, {**before, **after}) is expected
    assert not scale.is_progress({}, {"percent": 10}), "the first status of a resource is no progress"


def test_the_record_of_an_ended_job_may_stay_and_nothing_else() -> None:
    record = {
        "ConfigMap": [child("a-r1"), child("b-r1", "2")],
        "Job": [complete("a-r1-a1"), complete("b-r1-a1", "2")],
        "Pod": [child("a-r1-a1-x", phase="Succeeded"), child("b-r1-a1-x", "2", phase="Succeeded")],
    }
    assert scale.too_many({**record, "Secret": [], "Service": []}) == []
    more = {
        "ConfigMap": [*record["ConfigMap"], child("a-r1-again")],
        "Job": [child("a-r1-a1"), complete("b-r1-a1", "2")],
        "Pod": [child("a-r1-a1-x", phase="Running")],
        "Secret": [child("a-r1-tls")],
        "NetworkPolicy": [child("a-r1")],
    }
    assert scale.too_many(more) == [
        "ConfigMap a-r1-again", "Job a-r1-a1", "Pod a-r1-a1-x", "Secret a-r1-tls", "NetworkPolicy a-r1",
    ]  # fmt: skip


def test_only_the_operators_writes_about_jobs_are_counted(tmp_path: Path) -> None:
    status = {"resource": "shardmaps", "apiGroup": "tarmill.dev", "namespace": scale.SPACE, "subresource": "status"}
    job = {"resource": "jobs", "apiGroup": "batch", "namespace": scale.SPACE}
    events = [
        ("tarmill-operator", "update", status),
        ("tarmill-operator", "update", {**status, "resource": "shardsorts"}),
        ("tarmill-operator", "patch", job),
        ("tarmill-operator", "update", {"resource": "leases", "namespace": "default"}),
        ("kube-controller-manager/v1", "update", {**job, "subresource": "status"}),
        (scale.USER_AGENT, "create", {"resource": "shardmaps", "apiGroup": "tarmill.dev", "namespace": scale.SPACE}),
    ]
    log = tmp_path / "audit.log"
    log.write_text(
        "".join(
            json.dumps({"userAgent": agent, "verb": verb, "objectRef": what}) + "\n" for agent, verb, what in events
        )
    )
    assert scale.writes_in(log) == {"update resource/status": 2, "patch jobs": 1}


def test_a_figure_above_its_goal_is_said_to_have_missed_it() -> None:
    figures = {
        "succeeded": 10,
        "resources": 10,
        "left": [],
        "peak_rss_mb": 256.0,
        "cpu_ms_per_resource": 40.1,
        "writes_per_resource": 16.0,
        "idle_cpu_percent": 1.01,
        "reaction_p99_s": 2.01,
    }
    assert [line[-1] for line in bench.scale_lines(figures)] == [
        "reached", "reached", "missed", "reached", "missed", "missed",
    ]  # fmt: skip
    assert bench.scale_lines({**figures, "left": ["Secret a-r1-tls"]})[0][-1] == "missed"
    assert bench.scale_lines({**figures, "succeeded": 9})[0][-1] == "missed"
