from __future__ import annotations

import itertools
import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tarmill_operator.cache import Cache
from tarmill_operator.model import Resource, Settings

SETTINGS = Settings("tarmill:1")
OWNER = "0000000a-0000-4000-8000-000000000000"


def resource(name: str = "digits", uid: str = OWNER, version: int = 1, **spec: Any) -> Resource:
    metadata = {"name": name, "namespace": "team", "uid": uid, "resourceVersion": str(version)}
    return {
        "apiVersion": "tarmill.dev/v1alpha1",
        "kind": "ShardMap",
        "metadata": metadata,
        "spec": {"output": name, **spec},
    }


def child(kind: str, name: str, uid: str, version: int = 1, **rest: Any) -> Resource:
    metadata = {
        "name": name,
        "namespace": "team",
        "uid": uid,
        "resourceVersion": str(version),
        "labels": {"tarmill.dev/uid": OWNER},
        "ownerReferences": [{"uid": OWNER, "controller": True}],
    }
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **rest}


def warning(about: str, uid: str, reason: str = "FailedCreate") -> Resource:
    metadata = {"name": uid, "namespace": "team", "uid": uid, "resourceVersion": "1"}
    about_it = {"namespace": "team", "name": about}
    return {"apiVersion": "v1", "kind": "Event", "metadata": metadata, "reason": reason, "involvedObject": about_it}


def names(cache: Cache) -> set[str]:
    observed = cache.observe(OWNER, SETTINGS)
    assert observed is not None
    return {item["metadata"]["name"] for item in (*observed.children, *observed.pods)}


def test_an_older_state_that_is_told_later_changes_nothing() -> None:
    cache = Cache()
    assert cache.put(resource(version=9, run={"suspend": True})) == {OWNER}
    assert cache.put(resource(version=10, run={"suspend": False})) == {OWNER}
    assert cache.put(resource(version=9, run={"suspend": True})) == set()
    known = cache.resource(OWNER)
    assert known is not None
    assert known["spec"]["run"] == {"suspend": False}


def test_a_state_that_differs_in_nothing_that_is_remembered_wakes_nobody_but_is_the_one_that_is_known() -> None:
    cache = Cache()
    cache.put(resource())
    job = child("Job", "j", "1", 2, status={"active": 1, "conditions": []})
    assert cache.put(job) == {OWNER}
    assert cache.put(child("Job", "j", "1", 3, status={"ready": 1, "conditions": []})) == set()
    ended = [{"type": "Complete", "status": "True"}]
    assert cache.put(child("Job", "j", "1", 4, status={"conditions": ended})) == {OWNER}

    annotated = resource(version=5)
    annotated["metadata"] |= {"annotations": {"a": "b"}, "managedFields": [{}]}
    assert cache.put(annotated) == set()
    known = cache.resource(OWNER)
    assert known is not None
    assert known["metadata"]["resourceVersion"] == "5"  # without which no status could be stored
    assert cache.put(resource(version=6, inputFrom={"kind": "ShardMap", "name": "other"})) == {OWNER}


def test_runners_are_known_as_long_as_they_run_and_have_an_address() -> None:
    def pod(uid: str, version: int, role: str = "runner", **status: Any) -> Resource:
        item = child("Pod", uid, uid, version, status=status)
        item["metadata"]["labels"]["tarmill.dev/role"] = role
        return item

    cache = Cache()
    cache.put(pod("a", 1, phase="Pending"))
    cache.put(pod("b", 1, phase="Running"))
    cache.put(pod("c", 1, "worker", phase="Running", podIP="10.0.0.3"))
    assert not cache.running_runners()
    cache.put(pod("a", 2, phase="Running", podIP="10.0.0.1"))
    cache.put(pod("b", 2, phase="Running", podIP="10.0.0.2"))
    assert {uid: item["status"]["podIP"] for uid, item in cache.running_runners().items()} == {
        "a": "10.0.0.1",
        "b": "10.0.0.2",
    }
    cache.put(pod("a", 3, phase="Succeeded", podIP="10.0.0.1"))
    cache.remove(pod("b", 3))
    assert not cache.running_runners()


def test_what_is_gone_stays_gone_whatever_is_told_of_it_later() -> None:
    cache = Cache()
    cache.put(resource())
    cache.put(child("Job", "j", "1"))
    assert cache.remove(child("Job", "j", "1", 5)) == {OWNER}
    assert cache.put(child("Job", "j", "1", 4)) == set()
    assert names(cache) == set()
    assert cache.put(child("Job", "j", "2", 6)) == {OWNER}
    assert names(cache) == {"j"}


def test_the_end_of_a_namesake_takes_nothing_from_its_successor() -> None:
    cache = Cache()
    second = "0000000b-0000-4000-8000-000000000000"
    cache.put(resource())
    cache.put(resource(uid=second, version=5))
    cache.remove(resource(version=4))
    cache.put(resource("reader", uid="c", inputFrom={"kind": "ShardMap", "name": "digits"}))
    observed = cache.observe("c", SETTINGS)
    assert observed is not None
    assert observed.input is not None
    assert observed.input["metadata"]["uid"] == second


def test_a_list_removes_what_is_not_there_but_nothing_that_is_newer_than_the_list() -> None:
    cache = Cache()
    cache.put(resource())
    cache.put(child("Job", "gone", "1", 3))
    cache.put(child("Job", "just made", "2", 12))
    cache.put(child("Job", "changed", "3", 4))
    woken, untold = cache.correct("Job", [child("Job", "changed", "3", 8), child("Job", "untold", "4", 9)], "10")
    assert names(cache) == {"just made", "changed", "untold"}
    assert woken == {OWNER}
    assert untold == {"3", "4"}
    assert cache.correct("Job", [child("Job", "changed", "3", 8), child("Job", "untold", "4", 9)], "11") == (
        set(),
        set(),
    )


def test_a_list_of_one_namespace_says_nothing_about_others() -> None:
    cache = Cache()
    cache.put(resource())
    cache.put(child("Job", "j", "1", 3))
    cache.correct("Job", [], "10", lambda item: item["metadata"]["namespace"] == "other")
    assert names(cache) == {"j"}


def test_children_are_those_that_the_resource_controls() -> None:
    cache = Cache()
    cache.put(resource())
    stranger = child("ConfigMap", "copied labels", "1")
    stranger["metadata"]["ownerReferences"] = []
    cache.put(stranger)
    assert names(cache) == set()


def test_a_resource_that_waits_for_another_is_woken_by_it_and_by_its_end() -> None:
    cache = Cache()
    cache.put(resource("reader", uid="r", inputFrom={"kind": "ShardMap", "name": "digits"}))
    assert cache.put(resource()) == {OWNER, "r"}
    assert cache.remove(resource(version=2)) == {OWNER, "r"}
    cache.put(resource("reader", uid="r", version=2, input="s3://b/x-@4.tar"))
    assert cache.put(resource(uid="new", version=3)) == {"new"}


def test_a_resource_is_woken_by_what_happens_to_others_that_write_where_it_does() -> None:
    cache = Cache()
    cache.put(resource("one", uid="1", output="out"))
    assert cache.put(resource("two", uid="2", output="out")) == {"1", "2"}
    assert cache.put(resource("one", uid="1", version=2, output="elsewhere")) == {"1", "2"}
    assert cache.put(resource("one", uid="1", version=3, output="elsewhere", run={"suspend": True})) == {"1"}
    assert cache.remove(resource("two", uid="2", version=4)) == {"2"}


def test_events_belong_to_the_resource_whose_children_they_are_about() -> None:
    cache = Cache()
    cache.put(resource())
    assert cache.put(warning("digits-0000000a-r1-a1", "1")) == {OWNER}
    assert cache.put(warning("digits-0000000a-r2-w-7f4d", "2")) == {OWNER}
    assert cache.put(warning("tarmill-0000000a0000-r1-default-worker-1", "3")) == {OWNER}
    assert cache.put(warning("digits-0000000a-r1-a1", "4", reason="Unhealthy")) == set()
    assert cache.put(warning("other-0000000b-r1-a1", "5")) == set()
    observed = cache.observe(OWNER, SETTINGS)
    assert observed is not None
    assert len(observed.events) == 3
    for number in range(100):
        cache.put(warning("digits-0000000a-r1-a1", f"more {number}"))
    observed = cache.observe(OWNER, SETTINGS)
    assert observed is not None
    assert len(observed.events) == 20


def test_only_what_is_decided_on_is_remembered() -> None:
    cache = Cache()
    known = resource()
    known["metadata"] |= {"managedFields": [{"x": 1}], "annotations": {"last-applied": "long"}}
    cache.put(known)
    cache.put(child("ConfigMap", "logs", "1", data={"pod.log": "a" * 1000}))
    cache.put(
        child("Pod", "p", "2", spec={"containers": [{"name": "runner", "env": ["secret"]}]}, status={"phase": "x"})
    )
    observed = cache.observe(OWNER, SETTINGS)
    assert observed is not None
    assert set(observed.resource["metadata"]) == {"name", "namespace", "uid", "resourceVersion"}
    assert observed.children[0]["data"] == {"pod.log": ""}
    assert observed.pods[0]["spec"] == {"containers": [{"name": "runner", "resources": {}}]}


@given(st.randoms(use_true_random=False), st.integers(1, 12))
def test_in_whatever_order_states_are_told_the_last_one_holds(order: random.Random, states: int) -> None:
    numbers = itertools.count(1)
    told = [("put", child("Job", "j", "1", next(numbers))) for _ in range(states)]
    if order.random() < 0.5:
        told.append(("remove", child("Job", "j", "1", next(numbers))))
    last = told[-1]
    told += order.choices(told, k=3)
    order.shuffle(told)
    cache = Cache()
    cache.put(resource())
    for how, item in told:
        cache.put(item) if how == "put" else cache.remove(item)
    observed = cache.observe(OWNER, SETTINGS)
    assert observed is not None
    versions = [item["metadata"]["resourceVersion"] for item in observed.children]
    assert versions == ([] if last[0] == "remove" else [last[1]["metadata"]["resourceVersion"]])
