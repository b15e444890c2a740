"""Resources that read what others write, in a cluster that holds them all."""

from __future__ import annotations

from support.operatorworld import World


def test_resources_that_wait_for_each_other_say_so_and_run_once_the_circle_is_broken() -> None:
    world = World()
    of = {"alpha": "beta", "beta": "gamma", "gamma": "alpha", "outside": "alpha", "itself": "itself"}
    waits = {}
    for name, source in of.items():
        spec = {"input": None, "inputFrom": {"kind": "ShardMap", "name": source}, "workers": {"replicas": 0}}
        waits[name] = world.cluster.make(name, **spec)
    world.settle()
    statuses = {name: world.status(resource) for name, resource in waits.items()}
    for name, status in statuses.items():
        told = {one["type"] for one in status["conditions"] if one["status"] == "True"}
        assert status["phase"] == "WaitingForInput"
        if name == "outside":
            assert (status["reason"], told) == ("WaitingForInput", {"Accepted", "Reconciling"})
        else:
            assert (status["reason"], told) == ("InvalidSpec", {"Stalled"})
    assert "ShardMap beta -> ShardMap gamma -> ShardMap alpha -> ShardMap beta" in statuses["beta"]["message"]
    assert "ShardMap itself -> ShardMap itself" in statuses["itself"]["message"]
    assert world.left() == []

    world.api.remove(waits["gamma"])
    waits["gamma"] = world.cluster.make("gamma")
    del waits["itself"]
    world.settle()
    assert {world.status(resource)["phase"] for resource in waits.values()} == {"Succeeded"}
