"""A store as it is shipped, with small limits, and a plain one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import nginx
from support.webstore import CONNECTIONS, MAX_BODY_BYTES, PlainStore, WebStore


@pytest.fixture(scope="session", autouse=True)
def needs_nginx() -> None:
    if not nginx.available():
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")


@pytest.fixture(scope="session")
def store(needs_nginx: None) -> Iterator[WebStore]:
    limits = {"MAX_BODY": f"{MAX_BODY_BYTES}", "CONNECTIONS": f"{CONNECTIONS}"}
    with WebStore(READ="open", HEADER_TIMEOUT="1s", BODY_TIMEOUT="1s", **limits) as server:
        yield server


@pytest.fixture(scope="session")
def plain(needs_nginx: None) -> Iterator[PlainStore]:
    with PlainStore() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxies and no credentials but those of the test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("TOKEN", "USER", "PASSWORD", "HOSTS"):
        monkeypatch.delenv(f"TARMILL_HTTP_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
