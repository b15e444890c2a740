"""Ways to a web server: TLS with an authority of our own, proxies; and answers that nginx does not give."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bodies import body_of, read_whole
from support.nginx import Nginx
from support.tls import TestAuthority, make_authority
from support.webserver import Reply, WebServer

from tarmill import storage
from tarmill.errors import AccessError, OutputExistsError, SpecError, StorageError
from tarmill.storage import http_objects
from tarmill.storage.answers import shorten
from tarmill.values import replace


def settings(**changes: object) -> None:
    storage.configure(replace(storage.current_settings(), **changes))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    return make_authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def safe_web(authority: TestAuthority, web: Nginx, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with Nginx(tmp_path_factory.mktemp("nginx-tls"), authority.server) as server:
        yield server


@pytest.mark.real
def test_tls_works_with_an_authority_that_is_named(safe_web: Nginx, authority: TestAuthority) -> None:
    settings(ca_file=str(authority.ca_file))
    storage.write_bytes(safe_web.url("tls.tar"), body_of(1_000_003))
    assert read_whole(safe_web.url("tls.tar")) == body_of(1_000_003)
    assert storage.read_ranges(safe_web.url("tls.tar"), [(5, 5)]) == [body_of(1_000_003)[5:10]]


@pytest.mark.real
def test_tls_works_with_the_authority_of_the_environment(
    safe_web: Nginx, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    (safe_web.root / "x").write_bytes(b"body")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    assert storage.read_bytes(safe_web.url("x")) == b"body"


@pytest.mark.real
def test_plain_http_loads_no_authorities(web: Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tarmill.storage.http_client._managers", {})  # no connection of an earlier test
    monkeypatch.setattr("ssl.create_default_context", lambda: pytest.fail("their load costs as much as a small job"))
    storage.write_bytes(web.url("plain.tar"), b"body")
    assert storage.read_bytes(web.url("plain.tar")) == b"body"


@pytest.mark.real
def test_an_unknown_authority_is_told_at_once_with_the_cure(safe_web: Nginx) -> None:
    with pytest.raises(StorageError, match=r"not trusted.*--ca-file") as caught:
        storage.stat(safe_web.url("x"))
    assert not caught.value.retryable


@pytest.mark.real
def test_https_on_a_plain_port_is_told_at_once(web: Nginx) -> None:
    with pytest.raises(StorageError, match="does not speak TLS") as caught:
        storage.stat(web.url("x").replace("http:", "https:"))
    assert not caught.value.retryable


@pytest.mark.parametrize("contents", [None, "no certificate"])
def test_a_ca_file_that_cannot_be_used_is_told(tmp_path: Path, contents: str | None) -> None:
    if contents is not None:
        (tmp_path / "ca.pem").write_text(contents)
    settings(ca_file=str(tmp_path / "ca.pem"))
    with pytest.raises(SpecError, match=r"CA file.*PEM"):
        storage.stat("https://127.0.0.1:1/x")


def test_a_host_that_does_not_exist_is_told_at_once() -> None:
    with pytest.raises(StorageError, match="cannot be resolved"):
        storage.stat("http://no-such-host.invalid/x")


@pytest.mark.real
def test_requests_go_through_the_proxy_of_the_environment(web: Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
    with WebServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:pr0xy@127.0.0.1:{proxy.port}")
        storage.write_bytes(web.url("proxied.tar"), body_of(300_000))
        assert storage.read_bytes(web.url("proxied.tar")) == body_of(300_000)
        assert {asked.method for asked in proxy.asked} == {"PUT", "HEAD", "GET"}
        assert all(asked.path.startswith("http://") for asked in proxy.asked)
        assert all(asked.headers["Proxy-Authorization"] == "Basic bWU6cHIweHk=" for asked in proxy.asked)
        before = len(proxy.asked)
        monkeypatch.setenv("NO_PROXY", "example.org,127.0.0.1")
        assert storage.read_bytes(web.url("proxied.tar")) == body_of(300_000)
        assert len(proxy.asked) == before
    assert (web.root / "proxied.tar").read_bytes() == body_of(300_000)


@pytest.mark.real
def test_https_goes_through_a_tunnel(
    safe_web: Nginx, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(ca_file=str(authority.ca_file))
    (safe_web.root / "tunnel").write_bytes(body_of(500_000))
    with WebServer() as proxy:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.port}")
        assert storage.read_bytes(safe_web.url("tunnel")) == body_of(500_000)
        assert [(asked.method, asked.path) for asked in proxy.asked] == [("CONNECT", f"127.0.0.1:{safe_web.port}")]


def test_a_proxy_that_wants_credentials_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with WebServer({"CONNECT": Reply(407)}) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:pr0xy@127.0.0.1:{proxy.port}")
        with pytest.raises(StorageError, match=r"proxy failed.*407.*HTTPS_PROXY") as caught:
            storage.stat("https://example.invalid/x")
        assert len(proxy.asked) == 1
    assert "pr0xy" not in repr(caught.value)


def test_a_proxy_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:pr0xy@127.0.0.1:1")
    with pytest.raises(SpecError, match=r"socks5://me:\*\*\*@"):
        storage.stat("http://example.invalid/x")


BODY = body_of(600_000)


@pytest.mark.parametrize("form", ["length", "chunked", "bare"])
def test_bodies_end_as_the_server_says(form: str) -> None:
    reply = Reply(200, BODY, {"ETag": '"1"'}, chunked=form == "chunked", bare=form == "bare")
    with WebServer({"/x": reply}) as server:
        assert read_whole(f"{server.base}/x") == BODY
        assert storage.read_ranges(f"{server.base}/x", [(500_000, 10)]) == [BODY[500_000:500_010]]


def test_a_content_encoding_is_not_undone_since_shards_are_what_is_stored() -> None:
    with WebServer({"/x.tar.gz": Reply(200, b"\x1f\x8bstored", {"Content-Encoding": "gzip"})}) as server:
        with storage.open_read(f"{server.base}/x.tar.gz") as stream:
            window = bytearray(100)
            assert window[: stream.readinto(window)] == b"\x1f\x8bstored"
        assert server.asked[0].headers["Accept-Encoding"] == "identity"


def test_a_part_that_was_not_asked_for_is_refused() -> None:
    wrong = Reply(206, BODY[:10], {"Content-Range": "bytes 0-9/600000"})
    with WebServer({"/x": wrong}) as server, pytest.raises(StorageError, match="bytes from 5 were asked for"):
        storage.read_ranges(f"{server.base}/x", [(5, 10)])


@pytest.mark.parametrize("status", [405, 501])
def test_a_server_without_head_is_asked_by_get(status: int) -> None:
    with WebServer({"HEAD /x": Reply(status), "/x": Reply(200, BODY, {"ETag": '"1"'})}) as server:
        assert storage.stat(f"{server.base}/x").size_bytes == len(BODY)
        assert storage.stat(f"{server.base}/x").version == 'etag:"1"'
        assert [asked.method for asked in server.asked] == ["HEAD", "GET"] * 2


@pytest.mark.real
def test_a_connection_is_free_for_other_threads_as_soon_as_it_is_given_back(
    web: Nginx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may take it while the answer that came on it is still being looked at."""
    url = web.url(f"{tmp_path.name}.tar")
    storage.write_bytes(url, BODY)
    looking = http_objects.header_stat
    found: list[storage.Stat | None] = []

    def another_asks(*arguments: Any) -> storage.Stat:
        if not found:
            found.append(None)
            found[0] = http_objects.head_once(url, storage.current_settings())[0]
        return looking(*arguments)

    monkeypatch.setattr(http_objects, "header_stat", another_asks)
    stat = storage.stat(url)
    assert found == [stat]


def test_the_body_of_an_error_is_shown_short_and_without_html() -> None:
    assert (
        shorten("<html><head><title>t</title></head><body><h1>No\n\n way</h1>&amp; more</body></html>")
        == "No way & more"
    )
    assert len(shorten("x" * 10_000)) == 300
    with WebServer({"/x": Reply(403, b"<p>" + b"no " * 5000)}) as server, pytest.raises(AccessError) as caught:
        storage.read_bytes(f"{server.base}/x")
    assert len(str(caught.value)) < 600


@pytest.mark.real
@pytest.mark.parametrize(("view", "cure"), [
    ("readonly/", "dav_methods PUT"), ("small/", "client_max_body_size"), ("forbidden/", "does not let us write"),
])  # fmt: skip
def test_a_server_that_takes_no_uploads_is_told_with_the_cure(web: Nginx, view: str, cure: str) -> None:
    with pytest.raises(StorageError, match=cure) as caught:
        storage.write_bytes(web.url(view + "x.tar"), bytes(3_000_000))
    assert not caught.value.retryable


@pytest.mark.real
def test_a_folder_is_neither_written_nor_deleted(web: Nginx) -> None:
    storage.write_bytes(web.url("folder/x.tar"), b"x")
    for call in (storage.delete, storage.open_write):
        with pytest.raises(SpecError, match="names a folder"):
            call(web.url("folder/"))
    with pytest.raises(StorageError, match="409"):
        storage.write_bytes(web.url("folder"), b"x")
    assert storage.read_bytes(web.url("folder/x.tar")) == b"x"


def test_a_server_that_honours_conditions_refuses_an_exclusive_write_that_came_second() -> None:
    with WebServer({"HEAD /x": Reply(404), "PUT /x": Reply(412)}) as server:
        with pytest.raises(OutputExistsError):
            storage.write_bytes(f"{server.base}/x", b"x", exclusive=True)
        assert server.asked[-1].headers["If-None-Match"] == "*"


def test_a_server_that_does_not_tell_sizes_is_told_about() -> None:
    with (
        WebServer({"/x": Reply(200, b"", chunked=True)}) as server,
        pytest.raises(StorageError, match=r"does not tell how many.*verify_uploads=none"),
    ):
        storage.write_bytes(f"{server.base}/x", b"body")


@pytest.mark.real
def test_an_output_beyond_memory_waits_in_an_unnamed_file(web: Nginx, tmp_path: Path) -> None:
    settings(scratch_dir=str(tmp_path), spool_memory_bytes=100_000)
    body = body_of(1_000_000)
    with storage.open_write(web.url("spooled.tar")) as out:
        for start in range(0, len(body), 60_000):
            out.write(body[start : start + 60_000])
        assert os.listdir(tmp_path) == []
    assert (web.root / "spooled.tar").read_bytes() == body


@pytest.mark.real
def test_a_scratch_folder_that_is_missing_is_told(web: Nginx, tmp_path: Path) -> None:
    settings(scratch_dir=str(tmp_path / "gone"), spool_memory_bytes=10)
    with pytest.raises(StorageError, match=r"scratch folder .*gone cannot be used.*--scratch-dir"):
        storage.write_bytes(web.url("x.tar"), b"more than ten bytes")


@pytest.mark.real
def test_the_next_output_is_filled_while_one_is_uploaded(web: Nginx) -> None:
    bodies = [body_of(2_000_000, seed) for seed in range(4)]
    pending = None
    for number, body in enumerate(bodies):
        out = storage.open_write(web.url(f"row-{number}.tar"))
        out.write(body)
        if pending is not None:
            pending.result(60)
        pending = out.commit_async()
    assert pending is not None
    pending.result(60)
    assert [(web.root / f"row-{number}.tar").read_bytes() for number in range(4)] == bodies


FORK = """
import os, sys
from tarmill import storage
url, window = sys.argv[1], bytearray(10)
expected = storage.read_bytes(url)
stream = storage.open_read(url)
stream.readinto(window)
pid = os.fork()
if pid == 0:
    try:
        stream.readinto(bytearray(5_000_000))  # the rest of a piece that is here already
        stream.readinto(window)
    except storage.base.StorageError as error:
        os._exit(0 if "before a fork" in str(error) and storage.read_bytes(url) == expected else 1)
    os._exit(2)
print(os.waitpid(pid, 0)[1], bytes(window) + stream.readall() == expected, storage.read_bytes(url) == expected)
"""


@pytest.mark.real
def test_neither_connections_nor_streams_are_shared_across_a_fork(web: Nginx) -> None:
    storage.write_bytes(web.url("forked.tar"), body_of(4_000_000))
    run = subprocess.run(
        [sys.executable, "-c", FORK, web.url("forked.tar")], capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr) == ("0 True True\n", "")
