"""Conditions as kubectl, kstatus, Argo CD and Flux read them."""

from __future__ import annotations

from typing import Any

import pytest

from tarmill_operator.conditions import REFUSALS, TYPES, conditions
from tarmill_operator.reasons import REASONS
from tarmill_operator.status_schema import PHASES, STATUS

NOW = 1_800_000_000.0


def kstatus(status: dict[str, Any], generation: int = 1) -> str:
    """Judge as `sigs.k8s.io/cli-utils/pkg/kstatus` does for kinds that it does not know."""
    if status.get("observedGeneration", generation) != generation:
        return "InProgress"
    found = {one["type"]: one["status"] for one in status.get("conditions", [])}
    if found.get("Stalled") == "True":
        return "Failed"
    if found.get("Reconciling") == "True" or found.get("Ready") in ("False", "Unknown"):
        return "InProgress"
    return "Current"


EXPECTED = dict.fromkeys(PHASES, "InProgress") | {"Succeeded": "Current", "Failed": "Failed"}


@pytest.mark.parametrize(("phase", "verdict"), EXPECTED.items())
def test_kstatus_understands_every_phase(phase: str, verdict: str) -> None:
    status = {"observedGeneration": 1, "conditions": conditions([], phase, "Working", "", 1, NOW)}
    assert kstatus(status) == verdict


@pytest.mark.parametrize("reason", sorted(REFUSALS))
def test_a_refusal_is_stalled_until_it_is_mended(reason: str) -> None:
    found = {one["type"]: one["status"] for one in conditions([], "Pending", reason, "", 1, NOW)}
    assert (found["Accepted"], found["Stalled"], found["Reconciling"]) == ("False", "True", "False")
    assert reason in REASONS


def test_a_resource_that_nobody_has_looked_at_is_in_progress() -> None:
    default = STATUS["default"]
    assert kstatus(default) == "InProgress"
    assert STATUS["properties"]["observedGeneration"]["default"] == -1


def test_a_changed_spec_is_in_progress_until_it_was_looked_at() -> None:
    done = {"observedGeneration": 1, "conditions": conditions([], "Succeeded", "Completed", "", 1, NOW)}
    assert kstatus(done, generation=2) == "InProgress"


def test_all_conditions_are_always_there_and_their_times_move_only_with_their_status() -> None:
    first = conditions([], "Running", "Working", "a", 1, NOW)
    second = conditions(first, "Succeeded", "Completed", "b", 2, NOW + 60)
    assert [one["type"] for one in second] == list(TYPES)
    moved = {
        one["type"]
        for one, before in zip(second, first, strict=True)
        if one["lastTransitionTime"] != before["lastTransitionTime"]
    }
    assert moved == {"Reconciling", "Ready", "Complete"}
    assert all((one["observedGeneration"], one["message"]) == (2, "b") for one in second)
