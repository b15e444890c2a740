"""A scheduler inside this process: TLS or nothing, workers that leave well, ports that are free afterwards."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support.daskcluster import DaskWorker
from support.engineruns import by_index
from support.enginetasks import Job, perform
from support.serving import free_port, listens
from support.tls import make_authority
from support.waiting import wait_for

from tarmill.engine.cluster import dask_engine
from tarmill.engine.cluster_scheduler import SchedulerThread
from tarmill.errors import ClusterError, TarmillError, UsageError

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("dask")]


def test_tasks_run_on_workers_that_come_and_are_sent_home_in_the_end(tmp_path: Path) -> None:
    port = free_port()
    worker = DaskWorker(tmp_path, "worker-0", f"tcp://127.0.0.1:{port}")  # before there is anybody to connect to
    try:
        with SchedulerThread(port, host="127.0.0.1") as scheduler:
            assert scheduler.address == f"tcp://127.0.0.1:{port}"
            wait_for(lambda: scheduler.workers == 1, what="the worker")
            with dask_engine(scheduler.address) as engine:
                outcomes = by_index(engine.run(perform, [Job(index) for index in range(4)]))
                assert engine.known_workers == 1
            assert {outcome.result for outcome in outcomes.values()} == {0, 1, 4, 9}
        assert not listens(port)
        assert worker.process.wait(20) == 0
        assert "Traceback" not in worker.log
        scheduler.close()
    finally:
        worker.kill()


def test_with_tls_nobody_gets_in_without(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    files = [str(authority.ca_file), str(authority.server.certificate_file), str(authority.server.key_file)]
    ca, cert, key = files
    with SchedulerThread(free_port(), host="127.0.0.1", tls_ca_file=ca, tls_cert=cert, tls_key=key) as scheduler:
        place = scheduler.address.removeprefix("tls://")
        dask_engine(scheduler.address, tls_ca_file=ca, tls_cert=cert, tls_key=key).close()
        with pytest.raises(ClusterError, match="no Dask scheduler answered"):
            dask_engine(f"tcp://{place}", connect_timeout_s=1)
        other = tmp_path / "other"
        other.mkdir()
        theirs = make_authority(other)
        with pytest.raises(ClusterError, match="no Dask scheduler answered"):
            dask_engine(
                scheduler.address,
                tls_ca_file=ca,
                tls_cert=str(theirs.server.certificate_file),
                tls_key=str(theirs.server.key_file),
                connect_timeout_s=1,
            )


def test_a_port_that_is_taken_and_a_file_that_is_not_there_are_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TarmillError, match=f"can listen at 127.0.0.1:{port}: .*expected a free port"):
            SchedulerThread(port, host="127.0.0.1")
    with pytest.raises(UsageError, match="TLS CA file none: no such file"):
        SchedulerThread(free_port(), tls_ca_file="none")
