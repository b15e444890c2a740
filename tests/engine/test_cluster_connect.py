"""What may stand after -c, and which workers fit."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from tarmill.engine.cluster import dask_engine
from tarmill.engine.cluster_connect import scheduler_address
from tarmill.engine.cluster_members import judge_versions
from tarmill.engine.cluster_worker import installed
from tarmill.errors import TarmillError, UsageError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:8786", "tcp://localhost:8786"),
        ("10.0.0.1:8786", "tcp://10.0.0.1:8786"),
        ("[::1]:8786", "tcp://[::1]:8786"),
        ("tcp://scheduler.ns.svc:8786", "tcp://scheduler.ns.svc:8786"),
        ("tls://scheduler:8786", "tls://scheduler:8786"),
    ],
)
def test_an_address_is_taken_as_tcp_unless_it_says_otherwise(text: str, address: str) -> None:
    assert scheduler_address(text) == address


def test_with_tls_files_host_and_port_mean_tls() -> None:
    assert scheduler_address("scheduler:8786", tls=True) == "tls://scheduler:8786"


def test_a_scheduler_file_holds_the_address(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text('{"type": "Scheduler", "address": "tcp://10.1.1.1:8786"}', "utf-8")
    assert scheduler_address(str(file)) == "tcp://10.1.1.1:8786"


@pytest.mark.parametrize("content", ["", "[]", "{}", "not json"])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(content, "utf-8")
    with pytest.raises(UsageError, match="no address in it"):
        scheduler_address(str(file))


def test_a_host_without_port_is_refused_with_the_forms_that_work() -> None:
    with pytest.raises(UsageError, match=r"expected HOST:PORT, tcp://HOST:PORT.*no such file"):
        scheduler_address("scheduler")


@pytest.mark.real
def test_where_no_scheduler_listens_the_error_comes_soon_and_says_what_to_check() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        port = unused.getsockname()[1]
        with pytest.raises(TarmillError, match=rf"no Dask scheduler answered at tcp://127\.0\.0\.1:{port}"):
            dask_engine(f"127.0.0.1:{port}", connect_timeout_s=1)


def test_a_tls_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"TLS CA file /nowhere/ca\.pem: no such file"):
        dask_engine("localhost:1", tls_ca_file="/nowhere/ca.pem")


def test_without_dask_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'tarmill\[dask\]'"):
        dask_engine("localhost:1")


def test_a_worker_with_the_same_versions_fits() -> None:
    assert judge_versions("tcp://w:1", installed()) is None


def test_a_worker_with_another_python_is_named_with_both_versions() -> None:
    error = judge_versions("tcp://w:1", {**installed(), "python": "3.9"})
    assert isinstance(error, UsageError)
    assert "worker tcp://w:1 has python 3.9 where the driver has 3." in str(error)


def test_a_worker_without_tarmill_is_named() -> None:
    error = judge_versions("tcp://w:1", ModuleNotFoundError("No module named 'tarmill'"))
    assert isinstance(error, UsageError)
    assert "tcp://w:1 cannot import tarmill" in str(error)
