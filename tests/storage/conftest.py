from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import fakegcs, motos3, nginx, s3_places
from support.places import Place

from tarmill import storage
from tarmill.storage import mem, registry

QUICK = storage.StorageSettings(
    retry_budget_s=20,
    backoff_first_s=0.001,
    backoff_most_s=0.01,
    connect_timeout_s=5,
    read_timeout_s=10,
    spool_memory_bytes=1 << 20,
)


@pytest.fixture(autouse=True)
def quick_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("TOKEN", "USER", "PASSWORD", "HOSTS"):
        monkeypatch.delenv(f"TARMILL_HTTP_{name}", raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    before = storage.current_settings()
    storage.configure(QUICK)
    yield
    storage.configure(before)
    mem.clear()
    if "obstore" in sys.modules and sys.modules["obstore"] is None:
        registry._store_of_scheme.cache_clear()  # who comes next may have it again


@pytest.fixture(scope="session")
def moto_s3() -> Iterator[motos3.MotoS3]:
    """An S3 server, for s3fs."""
    with motos3.MotoS3() as server:
        yield server


REAL = ("http", "gs", "fsspec-s3")
LOCAL = ("file", "mem", "fsspec-memory", "fsspec-local")


@pytest.fixture(params=[*LOCAL, *(pytest.param(name, marks=pytest.mark.real) for name in REAL), s3_places.PARAM])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    here = str(tmp_path / "here")
    if request.param == "file":
        return Place("file", lambda name: f"{here}/{name}", f"{here}/", disk=here)
    if request.param == "mem":
        return Place("mem", lambda name: f"mem://here/{name}", "mem://here/")
    if request.param == "fsspec-memory":
        return place_below("memory", f"memory://{tmp_path.name}/")
    if request.param == "fsspec-local":
        return place_below("local", f"local://{here}/", disk=here)
    if request.param == "fsspec-s3":
        server: motos3.MotoS3 = request.getfixturevalue("moto_s3")
        server.use(monkeypatch)
        return place_below("s3fs", f"s3://{motos3.BUCKET}/{tmp_path.name}/")
    if request.param == "s3":
        return s3_places.place(request, tmp_path.name)
    if request.param == "gs":
        gcs: fakegcs.FakeGcs = request.getfixturevalue("gcs")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.base)
        return place_below("gs", f"gs://{fakegcs.BUCKET}/{tmp_path.name}/")
    web: nginx.Nginx = request.getfixturevalue("web")
    folder = tmp_path.name
    return Place("http", lambda name: web.url(f"{folder}/{name}"), web.url(f"{folder}/"))


def place_below(scheme: str, folder: str, disk: str = "") -> Place:
    """Make the place of a store whose URLs are not quoted."""
    return Place(scheme, lambda name: folder + name, folder, disk)
