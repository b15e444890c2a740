"""The engine dask-kubernetes, with the real Dask operator: scheduler and workers are a DaskCluster's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from support.dask_operator import dask_operator
from support.gates import Gate
from support.held_runs import WORKERS, ends_well, held, left_in, pods_of
from support.kube import Kube
from support.operated import System
from support.shards_in_store import Data

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("kube"), pytest.mark.timeout(400)]

# the Dask operator tries again a minute after a call of its own that failed
AGAIN_S = 180
DASK = {"cluster": {"engine": "dask-kubernetes"}, "run": {"pendingDeadlineSeconds": 300}}


@pytest.fixture(scope="module")
def with_dask(system: System, kube: Kube) -> Iterator[System]:
    """The Dask operator, installed while ours runs, which finds that out."""
    with dask_operator(kube):
        yield system


def dask_objects(space: Kube) -> list[str]:
    kinds = "daskclusters,daskworkergroups,deployments,services,pods"
    return space.kubectl("get", kinds, "-l", "dask.org/cluster-name", "-o", "name").split()


def it_runs_and_its_pods_are_gone_after_it(with_dask: System, data: Data) -> None:
    gate = Gate(with_dask, data.name)
    with with_dask.namespace() as space:
        held(with_dask, space, data, gate, **DASK)
        [cluster] = space.names("daskcluster")
        assert any(cluster in name and "scheduler" in name for name in dask_objects(space))
        assert len(pods_of(space, "worker")) >= 2
        gate.open()
        status = ends_well(space, data, gate)
        assert (status["attempt"], status["restarts"]["counted"]) == (1, 0)
        space.wait_for(
            lambda: not space.names("daskcluster") and not dask_objects(space), AGAIN_S, "the end of Dask's pods"
        )


def it_outlasts_the_loss_of_runner_and_worker(with_dask: System, data: Data) -> None:
    gate = Gate(with_dask, data.name)
    with with_dask.namespace() as space:
        held(with_dask, space, data, gate, **DASK)
        [runner] = pods_of(space, "runner")
        space.delete("pod", runner, force=True)
        space.wait("shardmap", "upper", lambda found: found["status"].get("attempt") == 2, what="another attempt")
        worker = space.names("pod", "dask.org/component=worker")[0]
        space.delete("pod", worker, force=True)
        gate.open()
        assert ends_well(space, data, gate, lost=WORKERS + 1)["attempt"] == 2


def it_is_scaled_and_leaves_nothing_when_deleted(with_dask: System, data: Data) -> None:
    gate = Gate(with_dask, data.name)
    with with_dask.namespace() as space:
        held(with_dask, space, data, gate, **DASK)
        change = {"spec": {"workers": {"replicas": 3}}}
        space.kubectl("patch", "shardmap", "upper", "--type=merge", "-p", json.dumps(change))
        workers = "dask.org/component=worker"
        space.wait_for(lambda: len(space.names("pod", workers)) == 3, AGAIN_S, "a third worker")
        space.delete("shardmap", "upper")
        space.wait_for(lambda: not left_in(space) and not dask_objects(space), AGAIN_S, "the end of all of the job")


@pytest.mark.long
@pytest.mark.parametrize(
    "claim",
    [
        it_runs_and_its_pods_are_gone_after_it,
        it_outlasts_the_loss_of_runner_and_worker,
        it_is_scaled_and_leaves_nothing_when_deleted,
    ],
    ids=lambda claim: claim.__name__,
)
def test_of_a_job_on_a_dask_cluster(with_dask: System, data: Data, claim: Callable[[System, Data], None]) -> None:
    claim(with_dask, data)
