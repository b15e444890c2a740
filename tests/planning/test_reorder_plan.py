"""Which plan is chosen for which data and machine, what it is said to take, and when it is refused before work."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill.errors import NoSpaceError, SpecError
from tarmill.planning.reorder_plan import Facts, choose_plan
from tarmill.values import replace

GB = 10**9
USUAL = Facts(
    input_bytes=10 * GB,
    plain=True,
    local=True,
    streams=False,
    sample_bytes=100_000,
    sorts=False,
    memory_bytes=8 * GB,
    physical_bytes=16 * GB,
    scratch_bytes=100 * GB,
    workers=4,
    cluster=False,
    apart=True,
)
REMOTE: dict[str, Any] = {"local": False}
PACKED: dict[str, Any] = {"local": False, "plain": False}


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({}, "local"),
        ({"input_bytes": 1000 * GB, "sample_bytes": 1 << 20}, "local"),
        ({"input_bytes": 100 * GB, "sample_bytes": 4096}, "external"),
        ({"memory_bytes": GB // 100, "sample_bytes": 1024}, "external"),
        (REMOTE, "external"),
        ({**REMOTE, "input_bytes": GB}, "memory"),
        ({**PACKED, "input_bytes": GB // 2}, "memory"),
        ({**PACKED, "input_bytes": 2 * GB}, "external"),
        ({**REMOTE, "input_bytes": 0, "streams": True}, "external"),
        ({**REMOTE, "input_bytes": GB, "cluster": True}, "external"),
        ({"cluster": True}, "local"),
        ({"input_bytes": 0}, "local"),
    ],
)
def test_a_plan_is_chosen_by_sizes(facts: dict[str, Any], kind: str) -> None:
    plan = choose_plan("auto", replace(USUAL, **facts))
    assert plan.kind == kind
    assert plan.why


@pytest.mark.parametrize(
    ("asked", "facts", "maps"),
    [
        ("local", {"input_bytes": 4 * GB}, True),
        ("local", {"input_bytes": 4 * GB + 1}, False),
        ("local", {"input_bytes": GB, "apart": False}, False),
        ("external", {}, True),
        ("external", {"apart": False}, False),
        ("memory", {}, False),
    ],
)
def test_files_are_mapped_where_there_is_room_for_what_is_used_of_them(
    asked: str, facts: dict[str, Any], maps: bool
) -> None:
    assert choose_plan(asked, replace(USUAL, **facts)).maps is maps


@pytest.mark.parametrize("asked", ["local", "memory", "external"])
def test_a_plan_that_is_asked_for_is_made(asked: str) -> None:
    plan = choose_plan(asked, USUAL)
    assert (plan.kind, plan.why) == (asked, "asked for")


@pytest.mark.parametrize("facts", [REMOTE, PACKED])
def test_local_is_refused_for_inputs_that_are_not(facts: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="choose memory or external"):
        choose_plan("local", replace(USUAL, **facts))


def test_memory_is_refused_where_the_work_is_done_elsewhere() -> None:
    with pytest.raises(SpecError, match="-c"):
        choose_plan("memory", replace(USUAL, cluster=True))


def test_scratch_files_in_a_store_are_not_held_against_this_machines_disk() -> None:
    facts = replace(USUAL, local=False, input_bytes=1 << 40, scratch_bytes=1 << 30, cluster=True)
    assert choose_plan("external", replace(facts, spills_here=False)).kind == "external"
    with pytest.raises(NoSpaceError):
        choose_plan("external", facts)


def test_too_little_scratch_is_told_before_the_work_begins_and_how_much_it_takes() -> None:
    with pytest.raises(NoSpaceError) as caught:
        choose_plan("external", replace(USUAL, **REMOTE, scratch_bytes=5 * GB))
    assert caught.value.needed_bytes > 10 * GB
    assert caught.value.free_bytes == 5 * GB
    for words in ("5,000.0 MB", "--scratch", "--scratch-dir"):
        assert words in caught.value.message


@given(
    st.integers(0, 10**14),
    st.booleans(),
    st.booleans(),
    st.integers(1, 10**7),
    st.integers(1, 10**12),
    st.integers(1, 200),
    st.booleans(),
)
def test_whatever_is_chosen_its_figures_make_sense(
    size: int, plain: bool, local: bool, sample: int, memory: int, workers: int, sorts: bool
) -> None:
    facts = replace(
        USUAL,
        input_bytes=size,
        plain=plain or local,
        local=local,
        sample_bytes=sample,
        memory_bytes=memory,
        physical_bytes=2 * memory,
        scratch_bytes=10**16,
        workers=workers,
        sorts=sorts,
    )
    plan = choose_plan("auto", facts)
    assert plan.reads_bytes >= size
    assert plan.writes_bytes >= size
    assert (plan.scratch_bytes > 0) == (plan.kind == "external" and size > 0)
    assert (plan.batch_bytes > 0) == (plan.bucket_bytes > 0) == (plan.kind == "external")
    if plan.kind == "memory":
        assert plan.memory_bytes <= memory


def test_a_plan_is_told_in_figures() -> None:
    lines = choose_plan("external", USUAL).lines()
    assert lines[0].startswith("plan external: asked for")
    for words in ("reads 20,000.0 MB", "writes 20,000.0 MB", "scratch 10,000.0 MB", "memory"):
        assert words in lines[1]
