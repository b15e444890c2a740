"""Credentials: where they come from, where they go, and that nobody gets to read them."""

from __future__ import annotations

import base64
import logging
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from support.nginx import PASSWORD, TOKEN, USER, Nginx
from support.webserver import Reply, WebServer

from tarmill import storage
from tarmill.errors import AccessError, SpecError, StorageError
from tarmill.storage.http_auth import authorization, split_target

SECRET = "s3cret"
QUOTED = f"{USER}:{quote(PASSWORD, safe='')}@"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def everything_told(error: StorageError | SpecError) -> str:
    return f"{error!r} {error.facts} {''.join(traceback.format_exception(error))}"


def chosen(url: str, first: str | None = None, **environ: str) -> str | None:
    return authorization(split_target(url), split_target(first or url), {"NETRC": "/nonexistent", **environ})


@pytest.mark.real
def test_user_and_password_in_the_url_open_the_door(web: Nginx) -> None:
    url = web.url("secret/auth.tar").replace("://", f"://{QUOTED}")
    storage.write_bytes(url, b"body")
    assert storage.read_bytes(url) == b"body"
    assert [stat.url for stat in storage.list_urls(url)] == [url]
    assert PASSWORD not in repr(list(storage.list_urls(url)))
    storage.delete(url)


@pytest.mark.real
def test_user_and_password_of_the_environment_open_the_door(web: Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
    (web.root / "x.tar").write_bytes(b"body")
    monkeypatch.setenv("TARMILL_HTTP_USER", USER)
    monkeypatch.setenv("TARMILL_HTTP_PASSWORD", PASSWORD)
    assert storage.read_bytes(web.url("secret/x.tar")) == b"body"


@pytest.mark.real
def test_a_token_of_the_environment_opens_the_door(web: Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
    (web.root / "x.tar").write_bytes(b"body")
    monkeypatch.setenv("TARMILL_HTTP_TOKEN", TOKEN + "\n")
    assert storage.read_bytes(web.url("bearer/x.tar")) == b"body"


@pytest.mark.real
def test_netrc_opens_the_door(web: Nginx, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (web.root / "x.tar").write_bytes(b"body")
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert storage.read_bytes(web.url("secret/x.tar")) == b"body"


@pytest.mark.real
@pytest.mark.parametrize("call", [
    storage.stat, storage.read_bytes, storage.delete, lambda url: storage.write_bytes(url, b"x"),
    lambda url: list(storage.list_urls(url)), lambda url: storage.read_ranges(url, [(0, 1)]),
])  # fmt: skip
def test_a_wrong_password_is_an_access_error_that_does_not_tell_it(
    web: Nginx, caplog: pytest.LogCaptureFixture, call: object
) -> None:
    url = web.url("secret/x.tar").replace("://", f"://{USER}:wr0ng-pa55@")
    with caplog.at_level(logging.DEBUG), pytest.raises(AccessError, match=r"401.*netrc") as caught:
        call(url)  # type: ignore[operator]
    told = everything_told(caught.value) + caplog.text
    assert "wr0ng" not in told
    assert base64.b64encode(f"{USER}:wr0ng-pa55".encode()).decode() not in told


@pytest.mark.real
def test_a_server_that_repeats_the_token_does_not_get_it_into_our_message(
    web: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARMILL_HTTP_TOKEN", "some-0ther-t0ken")
    with pytest.raises(AccessError, match=r"you said Bearer \*\*\*"):
        storage.read_bytes(web.url("bearer/x.tar"))


def test_a_server_that_cannot_be_reached_is_told_without_the_password() -> None:
    storage.configure(storage.StorageSettings(retry_budget_s=0, backoff_first_s=0.001, backoff_most_s=0.001))
    with pytest.raises(StorageError, match=r"http://me:\*\*\*@127.0.0.1|http://127.0.0.1") as caught:
        storage.read_bytes(f"http://me:{SECRET}@127.0.0.1:1/x")
    assert SECRET not in everything_told(caught.value)


@pytest.mark.parametrize(
    "url", ["http://me:s3cret/x@h/x", "http://me:s3cret@/x", "http://me:s3cret@h:port/x", "http:///x"]
)
def test_a_url_that_cannot_be_used_is_told_without_the_password(url: str) -> None:
    with pytest.raises(SpecError) as caught:
        storage.stat(url)
    assert SECRET not in everything_told(caught.value)


def test_a_fragment_is_refused_since_servers_never_see_it() -> None:
    with pytest.raises(SpecError, match="%23"):
        storage.stat("http://127.0.0.1:1/a#b.tar")


def test_the_url_goes_before_the_token_before_the_user_before_netrc(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine h login n password np\ndefault login d password dp\n")
    (tmp_path / "netrc").chmod(0o600)
    environ = {"NETRC": str(tmp_path / "netrc")}
    assert chosen("http://h/", **environ) == basic("n", "np")
    assert chosen("http://other/", **environ) == basic("d", "dp")
    environ |= {"TARMILL_HTTP_USER": "u", "TARMILL_HTTP_PASSWORD": "up"}
    assert chosen("http://h/", **environ) == basic("u", "up")
    environ |= {"TARMILL_HTTP_TOKEN": "t"}
    assert chosen("http://h/", **environ) == "Bearer t"
    assert chosen("http://a%40b:c%3Ad@h/", **environ) == basic("a@b", "c:d")
    assert chosen("http://h/") is None


@pytest.mark.parametrize(("hosts", "sent"), [
    ("", True), ("h", True), ("other, H", True), ("h:80", True), ("h:8080", False), ("other", False),
])  # fmt: skip
def test_a_token_goes_only_to_the_hosts_it_is_for(hosts: str, sent: bool) -> None:
    found = chosen("http://h/x", TARMILL_HTTP_TOKEN="t", TARMILL_HTTP_HOSTS=hosts)
    assert found == ("Bearer t" if sent else None)


@pytest.mark.parametrize(("target", "sent"), [
    ("http://h/elsewhere", True), ("https://h/x", True), ("http://h:8080/x", False), ("https://h:444/x", False),
    ("http://other/x", False), ("http://sub.h/x", False),
])  # fmt: skip
def test_credentials_stay_at_their_origin(target: str, sent: bool) -> None:
    assert (chosen(target, "http://me:pw@h/x", TARMILL_HTTP_TOKEN="t") is not None) == sent


def test_credentials_do_not_go_from_https_to_http() -> None:
    assert chosen("http://h/x", "https://me:pw@h/x") is None


def test_a_redirect_to_another_host_carries_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARMILL_HTTP_TOKEN", "t0ken")
    with WebServer({"/x.tar": Reply(200, b"body")}) as far, WebServer() as near:
        near.replies["/x.tar"] = Reply(302, headers={"Location": f"http://localhost:{far.port}/x.tar"})
        assert storage.read_bytes(f"{near.base}/x.tar") == b"body"
        assert near.asked[0].headers["Authorization"] == "Bearer t0ken"
        assert [name for name in far.asked[0].headers if name.lower() == "authorization"] == []


def test_a_netrc_entry_of_the_other_host_is_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine localhost login n password np\ndefault login d password dp\n")
    (tmp_path / "netrc").chmod(0o600)
    environ = {"NETRC": str(tmp_path / "netrc")}
    assert chosen("http://localhost/x", "http://h/x", **environ) == basic("n", "np")
    assert chosen("http://third/x", "http://h/x", **environ) is None


@pytest.mark.real
def test_redirects_are_followed_for_reading_and_307_for_writing(web: Nginx) -> None:
    storage.write_bytes(web.url("moved307/redirected.tar"), b"body")
    assert (web.root / "redirected.tar").read_bytes() == b"body"
    assert storage.read_bytes(web.url("moved/redirected.tar")) == b"body"
    assert storage.read_ranges(web.url("moved/redirected.tar"), [(1, 2)]) == [b"od"]
    with pytest.raises(StorageError, match=r"302, a redirect to http://.*cannot be followed"):
        storage.write_bytes(web.url("moved/redirected.tar"), b"new")
    assert (web.root / "redirected.tar").read_bytes() == b"body"
    with pytest.raises(StorageError, match="more than 10 redirects"):
        storage.stat(web.url("loop/"))


def test_a_redirect_to_a_file_is_not_followed() -> None:
    with (
        WebServer({"/x": Reply(302, headers={"Location": "file:///etc/passwd"})}) as server,
        pytest.raises(StorageError, match="cannot be followed"),
    ):
        storage.read_bytes(f"{server.base}/x")


def test_a_broken_netrc_is_told_without_its_contents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine h login me passwort s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(SpecError, match=r"netrc.*line 1") as caught:
        storage.stat("http://h/x")
    assert SECRET not in everything_told(caught.value)
