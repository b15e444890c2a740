"""How soon the operator tells of what went wrong, by the times that the cluster itself has noted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from support.kube import Kube
from support.pods import Object
from tarmill_operator.causes import LAGGING

WITHIN_S = 10
_KUBELET_S = 10
"""So long, at most, a kubelet on a busy node takes to tell the API server that a container has ended."""
_SIGNS = ("Failed", "FailedCreate", "FailedMount", "FailedScheduling")
"""Reasons of Events that tell of a fault: of kubelet, controllers and scheduler."""


def assert_told_soon(space: Kube, failure: Object) -> None:
    """Hold the time of a status' `lastFailure` against that of the first sign of it in the cluster."""
    told, name = _seconds(failure["time"]), failure.get("pod", "")
    # an Event may come after the status that it tells of
    signs = space.wait_for(
        lambda: [*_signs_of_pods(space, name), *_signs_of_events(space, name)], what=f"a sign of {failure}"
    )
    # whole seconds on either side
    assert told - min(signs) <= WITHIN_S + 1, f"told {told - min(signs):g} s after the first sign: {failure}"


def _signs_of_pods(space: Kube, name: str) -> Iterator[float]:
    for pod in space.all("pod"):
        status = pod["status"]
        if name not in ("", pod["metadata"]["name"]):
            continue
        for condition in status.get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                yield _seconds(condition["lastTransitionTime"])
        for container in status.get("containerStatuses", []):
            for state in (container.get("state", {}), container.get("lastState", {})):
                if ended := state.get("terminated"):
                    finished = _seconds(ended["finishedAt"])
                    yield min(max(finished, _last_word_of_kubelet(pod)), finished + _KUBELET_S)


def _last_word_of_kubelet(pod: Object) -> float:
    times = [
        _seconds(entry["time"])
        for entry in pod["metadata"].get("managedFields", [])
        if (entry["manager"], entry.get("subresource")) == ("kubelet", "status")
    ]
    return max(times, default=0)


def _signs_of_events(space: Kube, name: str) -> Iterator[float]:
    for event in space.all("event"):
        about: Any = event["involvedObject"]
        passing = event["reason"] == "FailedMount" and LAGGING.search(event["message"])
        if event["reason"] in _SIGNS and not passing and name in ("", about["name"]):
            yield _seconds(event["metadata"]["creationTimestamp"])


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
