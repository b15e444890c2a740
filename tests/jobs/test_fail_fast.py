"""`--fail-fast`: the first shard that fails ends the job; what is finished stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.maps import UPPER, put_shards

from tarmill.errors import JobFailed
from tarmill.jobs.api import run
from tarmill.jobs.report import Report
from tarmill.spec import ExtractSpec, MapSpec, ReadSpec, RunOptions


def failed(spec: ReadSpec, *, fail_fast: bool) -> Report:
    with pytest.raises(JobFailed) as caught:
        run(spec, RunOptions(workers=1, fail_fast=fail_fast))
    report: Report = caught.value.facts["report"]
    return report


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Nine shards of which the second and the last are cut."""
    source = put_shards(tmp_path, 9)
    for number in (1, 8):
        path = tmp_path / f"in-{number}.tar"
        path.write_bytes(path.read_bytes()[:1500])
    return source


@pytest.mark.parametrize("kind", ["map", "extract", "parts"])
def test_the_first_failure_ends_the_job_and_is_told(tmp_path: Path, source: str, kind: str) -> None:
    spec = {
        "map": MapSpec(input=source, output=f"{tmp_path}/out-@.tar", script=UPPER),
        "extract": ExtractSpec(input=source, output=f"{tmp_path}/rows.txt", columns=("txt",)),
        "parts": ExtractSpec(input=source, output=f"{tmp_path}/rows-@.txt", columns=("txt",)),
    }[kind]
    report = failed(spec, fail_fast=True)
    assert len(report.failures) == 1
    assert report.failures[0].shard.endswith("in-1.tar")
    assert report.failures[0].reason == "TruncatedError"
    assert report.shards_done == 1


def test_without_it_the_others_are_finished(tmp_path: Path, source: str) -> None:
    report = failed(MapSpec(input=source, output=f"{tmp_path}/out-@.tar", script=UPPER), fail_fast=False)
    assert (len(report.failures), report.shards_done) == (2, 7)
