"""The operator's rights in the chart are those of the calls that it makes, no fewer and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.helm import needs_helm, one, rendered
from support.operatorworld import World

from tarmill_operator.names import plural
from tarmill_operator.watches import DASK_CLUSTERS, WATCHES

pytestmark = needs_helm

VERBS = {"apply": "patch", "replace": "update"}
Calls = set[tuple[str, str]]


def allowed(rules: list[dict[str, Any]]) -> Calls:
    """Verb and resource of all that rules allow."""
    return {(verb, resource) for rule in rules for verb in rule["verbs"] for resource in rule["resources"]}


def asked(calls: list[str]) -> Calls:
    """The same of calls as the fake API notes them."""
    found = set()
    for call in calls:
        verb, _, rest = call.partition(" ")
        kind = rest.partition(" ")[0]
        if call == "put status":
            found.add(("update", "shardmaps/status"))
        elif verb == "log":
            found.add(("get", "pods/log"))
        elif verb != "discover":
            found.add((VERBS.get(verb, verb), plural(kind)))
    return found


def failed_twice(world: World) -> None:
    """A job whose script is wrong: the last lines of two attempts are kept, one after the other."""
    world.cluster.script_is_wrong = True
    world.cluster.make(run={"backoffLimit": 1, "ttlSecondsAfterFinished": 1, "deleteWhenExpired": True})
    world.hear()
    world.settle()


def scaled(world: World) -> None:
    """A job whose workers become more while it runs."""
    resource = world.cluster.make()
    world.hear()
    world.go_on(lambda: "runningTime" in world.status(resource))
    world.cluster.edit(resource, "workers", replicas=3)
    world.hear()
    world.settle()


def life_of(story: Callable[[World], None]) -> Calls:
    world = World()
    story(world)
    return asked(world.api.calls)


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    found = one(rendered(tmp_path_factory.mktemp("helm"), {}), "ClusterRole", "system-mill")["rules"]
    assert isinstance(found, list)
    return found


def test_whatever_jobs_need_is_allowed(rules: list[dict[str, Any]]) -> None:
    calls = life_of(failed_twice) | life_of(scaled)
    kept = {("get", "pods/log"), ("update", "configmaps"), ("delete", "shardmaps")}
    assert {("create", "jobs"), ("create", "secrets"), ("patch", "deployments")} | kept <= calls
    assert calls - allowed(rules) == set()


def test_whatever_is_watched_may_be_listed_and_watched(rules: list[dict[str, Any]]) -> None:
    watched = {plural(watch.kind) for watch in (*WATCHES, DASK_CLUSTERS)}
    assert {(verb, kind) for verb in ("list", "watch") for kind in watched} - allowed(rules) == set()
    assert {kind for verb, kind in allowed(rules) if verb in ("list", "watch")} == watched
