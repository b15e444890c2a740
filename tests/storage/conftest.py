from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import nginx
from support.places import Place

from tarmill import storage
from tarmill.storage import mem

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


@pytest.fixture(params=["file", "mem", pytest.param("http", marks=pytest.mark.real)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return Place("file", lambda name: str(tmp_path / "here" / name), str(tmp_path / "here") + "/")
    if request.param == "mem":
        return Place("mem", lambda name: f"mem://here/{name}", "mem://here/")
    web: nginx.Nginx = request.getfixturevalue("web")
    folder = tmp_path.name
    return Place("http", lambda name: web.url(f"{folder}/{name}"), web.url(f"{folder}/"))
