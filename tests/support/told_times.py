"""How soon the operator tells of what went wrong, by the times that the cluster itself has noted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from support.kube import Kube
from support.pods import Object

WITHIN_S = 10
_SIGNS = ("Failed", "FailedCreate", "FailedMount", "FailedScheduling")
"""Reasons of Events that tell of a fault: of kubelet, controllers and scheduler."""


def assert_told_soon(space: Kube, failure: Object) -> None:
    """Hold the time of a status' `lastFailure` against that of the first sign of it in the cluster."""
    told = _seconds(failure["time"])
    signs = [*_signs_of_pods(space, failure.get("pod", "")), *_signs_of_events(space, failure.get("pod", ""))]
    assert signs, f"nothing in the cluster tells of {failure}"
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
                    yield _seconds(ended["finishedAt"])


def _signs_of_events(space: Kube, name: str) -> Iterator[float]:
    for event in space.all("event"):
        about: Any = event["involvedObject"]
        if event["reason"] in _SIGNS and name in ("", about["name"]):
            yield _seconds(event.get("eventTime") or event["firstTimestamp"])


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
