"""htupload and htextract from each kind of store to itself through a proxy that breaks things: the bytes of files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import fakegcs, s3_places, seaweed
from support.faultproxy import Answer, Cut, CutUpload, Fault, FaultProxy, LoseAnswer, Reset
from support.maps import bytes_of
from support.uploads import many_files, put_files, run_upload

from tarmill import storage
from tarmill.jobs import extract, upload_plan
from tarmill.spec import ExtractSpec, RunOptions
from tarmill.storage import s3_client

QUICK = storage.StorageSettings(
    retry_budget_s=60, backoff_first_s=0.001, backoff_most_s=0.01, connect_timeout_s=10, read_timeout_s=5
)
FAULTS: list[Fault] = [
    Cut(0), Answer(503, "0"), CutUpload(10), Reset(0), Cut(40), Answer(500), LoseAnswer(), CutUpload(700), Answer(429),
]  # fmt: skip
SAMPLES, SHARDS = 12, 3


@dataclass
class Site:
    """A folder of a real server; `go_through` makes this process reach it by another port."""

    scheme: str
    port: int
    name: str
    monkeypatch: pytest.MonkeyPatch

    def go_through(self, base: str) -> str:
        """Give the URL of the folder."""
        if self.scheme == "http":
            return f"{base}/{self.name}"
        self.monkeypatch.setenv({"s3": "AWS_ENDPOINT_URL_S3", "gs": "STORAGE_EMULATOR_HOST"}[self.scheme], base)
        s3_client.forget_clients()
        return f"{self.scheme}://{fakegcs.BUCKET if self.scheme == 'gs' else seaweed.BUCKET}/{self.name}"


@pytest.fixture(params=[
    pytest.param("http", marks=pytest.mark.real), pytest.param("gs", marks=pytest.mark.real), s3_places.PARAM,
])  # fmt: skip
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    server: Any = request.getfixturevalue({"http": "web", "gs": "gcs", "s3": "seaweed"}[request.param])
    s3_places.isolate(monkeypatch, server.environment() if request.param == "s3" else {})
    before = storage.current_settings()
    for module in (extract, upload_plan):
        monkeypatch.setattr(module, "settings_of", lambda options: storage.configure(QUICK) or QUICK)
    storage.configure(QUICK)
    found = Site(request.param, server.port, tmp_path.name, monkeypatch)
    assert found.scheme != "http" or os.path.isdir(server.root)
    yield found
    storage.configure(before)


def faults_for(site: Site) -> list[Fault]:
    """All faults that the kind of server can be judged by: the emulator's uploads end with a lost answer."""
    return [fault for fault in FAULTS if site.scheme != "gs" or not isinstance(fault, LoseAnswer)]


def test_upload_and_extract_through_faults_give_the_bytes_of_files(site: Site, tmp_path: Path) -> None:
    files = put_files(tmp_path / "in", many_files(SAMPLES, 2, 3000))
    direct = site.go_through(f"http://127.0.0.1:{site.port}")
    for path in filter(Path.is_file, files.rglob("*")):
        storage.write_bytes(f"{direct}/in/{path.relative_to(files)}", path.read_bytes())
    run_upload(files, tmp_path / "out" / "out-@.tar", num_shards=SHARDS)
    expected = bytes_of(tmp_path / "out")
    script = faults_for(site)

    with FaultProxy(site.port, script) as proxy:
        there = site.go_through(proxy.base)
        assert run_upload(f"{there}/in/", f"{there}/out-@.tar", num_shards=SHARDS).succeeded
        assert proxy.hurt == len(script)
    site.go_through(f"http://127.0.0.1:{site.port}")
    assert {name: storage.read_bytes(f"{direct}/{name}") for name in expected} == expected

    def rows(source: str, output: str) -> None:
        spec = ExtractSpec(input=f"{source}/out-@{SHARDS:06d}.tar", columns=("__key__", "cls"), output=output)
        assert extract.run(spec, RunOptions(workers=1)).succeeded

    rows(str(tmp_path / "out"), f"{tmp_path}/rows.tsv")
    with FaultProxy(site.port, script) as proxy:
        there = site.go_through(proxy.base)
        rows(there, f"{there}/rows.tsv")
        assert proxy.hurt == len(script)
    site.go_through(f"http://127.0.0.1:{site.port}")
    assert storage.read_bytes(f"{direct}/rows.tsv") == (tmp_path / "rows.tsv").read_bytes()
    assert (tmp_path / "rows.tsv").read_bytes().count(b"\n") == SAMPLES
