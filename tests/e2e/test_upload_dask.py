"""htupload on a real Dask scheduler with two real workers: the bytes of one machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daskcluster import DaskCluster
from support.maps import bytes_of, command, leftovers, read_json
from support.uploads import many_files, put_files

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("dask")]

QUIET = {"PYTHONWARNINGS": "default"}  # distributed itself warns of this and that


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    pytest.importorskip("distributed")
    with DaskCluster(tmp_path_factory.mktemp("dask"), workers=2) as found:
        yield found


def test_dask_gives_the_bytes_and_the_job_id_of_one_machine(cluster: DaskCluster, tmp_path: Path) -> None:
    put_files(tmp_path / "in", many_files(30, 3, size=2000))
    fields = ["--samples-per-shard", "7", "--shuffle", "--seed", "3"]
    for name, where in (("serial", ["-j", "1"]), ("dask", ["-c", cluster.host_and_port])):
        # relative names: the workers have another current folder
        arguments = ["in", f"{name}/out-@.tar.gz", *fields, *where, "--report", f"{name}.json"]
        done = command(arguments, tmp_path, tool="htupload", **QUIET)
        assert done.returncode == 0, done.stderr.decode()
    assert bytes_of(tmp_path / "dask") == bytes_of(tmp_path / "serial")
    assert read_json(tmp_path / "dask.json")["digest"] == read_json(tmp_path / "serial.json")["digest"]
    assert leftovers(tmp_path) == []
    done = command(
        ["in", "serial/out-@.tar.gz", *fields, "-c", cluster.host_and_port], tmp_path, tool="htupload", **QUIET
    )
    assert b"5 finished before, 0 to do" in done.stderr
    more = ["--append", "--key-prefix", "more/", "-c", cluster.host_and_port]
    done = command(["in", "dask/out-@.tar.gz", *more], tmp_path, tool="htupload", **QUIET)
    assert done.returncode == 0, done.stderr.decode()
    assert read_json(tmp_path / "dask" / "out.manifest.json")["samples"] == 60


def test_memory_and_streams_stay_on_this_machine(cluster: DaskCluster, tmp_path: Path) -> None:
    done = command(["-", "out-@.tar", "-c", cluster.host_and_port], tmp_path, tool="htupload", **QUIET)
    assert done.returncode == 2
    assert b"belongs to this process" in done.stderr
    assert os.listdir(tmp_path) == [] or not list(tmp_path.glob("out*"))
