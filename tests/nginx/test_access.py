"""Who may read and who may write, in every way the store can be set up; and that an object appears whole."""

from __future__ import annotations

import datetime
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from support.waiting import wait_for
from support.webstore import BASIC, USER, WebStore, htpasswd

pytestmark = pytest.mark.real

READER = "Basic dHJhaW5lcjpyZWFk"  # trainer:read
WRONG = "Basic bWU6d3Jvbmc="  # me:wrong


class Certificates:
    """An authority for the server, one for clients, and one that nobody asked for."""

    def __init__(self) -> None:
        self.servers, self.clients, self.foreign = trustme.CA(), trustme.CA(), trustme.CA()
        self.leaf = self.servers.issue_cert("127.0.0.1")
        self.writer = self.clients.issue_cert(common_name="writer")
        self.revoked = self.clients.issue_cert(common_name="revoked")

    def install(self, store: WebStore) -> None:
        """Put what start.sh asks for into the store's folder of secrets."""
        (store.secrets / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in self.leaf.cert_chain_pems))
        (store.secrets / "tls.key").write_bytes(self.leaf.private_key_pem.bytes())
        (store.secrets / "ca.crt").write_bytes(self.clients.cert_pem.bytes())
        (store.secrets / "ca.crl").write_bytes(self._revocations())

    def _revocations(self) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        authority = x509.load_pem_x509_certificate(self.clients.cert_pem.bytes())
        revoked = x509.load_pem_x509_certificate(self.revoked.cert_chain_pems[0].bytes())
        entry = x509.RevokedCertificateBuilder().serial_number(revoked.serial_number).revocation_date(now).build()
        key = serialization.load_pem_private_key(self.clients.private_key_pem.bytes(), None)
        builder = x509.CertificateRevocationListBuilder().issuer_name(authority.subject).last_update(now)
        builder = builder.next_update(now + datetime.timedelta(days=1)).add_revoked_certificate(entry)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]

    def shown(self, leaf: trustme.LeafCert | None) -> ssl.SSLContext:
        """A client that trusts the server and shows this certificate."""
        context = ssl.create_default_context()
        self.servers.configure_trust(context)
        if leaf is not None:
            leaf.configure_cert(context)
        return context


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


# of READ and WRITE: what each gets for GET, and for PUT of a new object and then DELETE of it
BY_PASSWORD = {
    "open": {"nobody": (200, 401), "wrong": (200, 401), "reader": (200, 401), "writer": (200, 201)},
    "private": {"nobody": (401, 401), "wrong": (401, 401), "reader": (200, 401), "writer": (200, 201)},
}
LOGINS = {"nobody": None, "wrong": WRONG, "reader": READER, "writer": BASIC}
BY_CERTIFICATE = {
    "open": {"none": (200, 403), "writer": (200, 201), "foreign": (400, 400), "revoked": (400, 400)},
    "private": {"none": (403, 403), "writer": (200, 201), "foreign": (400, 400), "revoked": (400, 400)},
}


def with_readers(store: WebStore) -> None:
    (store.secrets / "htpasswd-read").write_text("# who may read\n\n" + htpasswd("trainer", "read") + htpasswd())


@pytest.mark.parametrize("tls", ["off", "on"])
@pytest.mark.parametrize("read", BY_PASSWORD)
def test_by_password(certificates: Certificates, read: str, tls: str) -> None:
    def prepare(store: WebStore) -> None:
        with_readers(store)
        certificates.install(store)

    context = certificates.shown(None) if tls == "on" else None
    with WebStore(prepare, READ=read, TLS=tls) as store:
        for who, (may_get, may_put) in BY_PASSWORD[read].items():
            login = LOGINS[who]
            store.put("there.tar", b"there")
            assert store.ask("GET", "/there.tar", login=login, tls=context).status == may_get, who
            assert store.ask("HEAD", "/there.tar", login=login, tls=context).status == may_get, who
            assert store.ask("GET", "/", login=login, tls=context).status == may_get, who
            assert store.ask("PUT", f"/{who}.tar", b"x", login=login, tls=context).status == may_put, who
            assert store.ask("DELETE", "/there.tar", login=login, tls=context).status == (
                204 if may_put == 201 else may_put
            )
            assert store.ask("GET", "/healthz", login=login, tls=context).body == b"ok\n"
        # whether a name is taken is told to nobody who may not know
        store.put("there.tar", b"there")
        refusals = [
            store.ask("PUT", f"/{name}", b"x", {"If-None-Match": "*"}, None, context)
            for name in ("there.tar", "not.tar")
        ]
        assert [answer.status for answer in refusals] == [401, 401]
        assert refusals[0].body == refusals[1].body


@pytest.mark.parametrize("read", BY_CERTIFICATE)
def test_by_certificate(certificates: Certificates, read: str) -> None:
    leaves = {
        "none": None,
        "writer": certificates.writer,
        "foreign": certificates.foreign.issue_cert(common_name="writer"),
        "revoked": certificates.revoked,
    }
    with WebStore(certificates.install, READ=read, WRITE="certificate", TLS="on") as store:
        for who, (may_get, may_put) in BY_CERTIFICATE[read].items():
            context = certificates.shown(leaves[who])
            store.put("there.tar", b"there")
            assert store.ask("GET", "/there.tar", login=None, tls=context).status == may_get, who
            assert store.ask("PUT", f"/{who}.tar", b"x", login=None, tls=context).status == may_put, who
            assert store.ask("PUT", "/there.tar", b"x", {"If-None-Match": "*"}, None, context).status == (
                412 if may_put == 201 else may_put
            )
            assert store.ask("DELETE", "/there.tar", login=None, tls=context).status == (
                204 if may_put == 201 else may_put
            )
        health = store.ask("GET", "/healthz", login=None, tls=certificates.shown(None))
        assert (health.status, health.body) == (200, b"ok\n")
        assert store.ask("GET", "/there.tar").status == 400, "plain http on the port of TLS"
        wait_for(lambda: "CN=writer" in store.logs(), what="who wrote, in the log")


@pytest.fixture(scope="module")
def private() -> Iterator[WebStore]:
    with WebStore() as server:
        yield server


def test_the_log_tells_who_wrote_what_and_nothing_of_who_was_refused(private: WebStore) -> None:
    private.ask("PUT", "/mine.tar", b"12345")
    private.ask("PUT", "/mine.tar", b"12345", login=WRONG)
    wait_for(lambda: private.logs().count("mine.tar") == 2, what="the log")
    lines = [line for line in private.logs().splitlines() if "mine.tar" in line]
    lines.sort(key=lambda line: " 201 " not in line)  # two workers write it
    assert lines[0].startswith(f'127.0.0.1 "{USER}" [')
    assert '"PUT /mine.tar HTTP/1.1" 201 ' in lines[0]
    assert lines[1].startswith('127.0.0.1 "-" [')


def test_a_health_check_fails_when_the_volume_is_gone(private: WebStore) -> None:
    away = private.folder / "away"
    private.root.rename(away)
    try:
        assert private.ask("GET", "/healthz", login=None).status == 503
    finally:
        away.rename(private.root)
    assert private.ask("GET", "/healthz", login=None).status == 200


# -- the objects -------------------------------------------------------------------------------------------------------


def scratch_of(store: WebStore) -> list[Path]:
    return [path for path in (store.root / ".upload").rglob("*") if path.is_file()]


@pytest.mark.parametrize(("name", "before"), [("new.tar", 404), ("old.tar", 200)])
def test_an_object_appears_when_its_last_byte_has_come(private: WebStore, name: str, before: int) -> None:
    private.put("whole/old.tar", b"old body")
    half = bytes(400_000)  # more than what nginx holds in memory
    connection = private.connect()
    connection.putrequest("PUT", f"/whole/{name}")
    connection.putheader("Authorization", BASIC)
    connection.putheader("Content-Length", str(2 * len(half)))
    connection.endheaders(half)
    wait_for(lambda: scratch_of(private), what="scratch")
    answer = private.ask("GET", f"/whole/{name}")
    assert (answer.status, answer.body == b"old body") == (before, before == 200)
    assert [row["name"] for row in json.loads(private.ask("GET", "/whole/").body)] == ["old.tar"]
    connection.send(half)
    assert connection.getresponse().status == (201 if before == 404 else 204)
    connection.close()
    assert private.ask("GET", f"/whole/{name}").body == 2 * half
    assert scratch_of(private) == []
    assert private.ask("DELETE", f"/whole/{name}").status == 204


def test_a_client_that_gives_up_changes_nothing(private: WebStore) -> None:
    kept = private.put("given-up.tar", b"old body")
    connection = private.connect()
    connection.putrequest("PUT", "/given-up.tar")
    connection.putheader("Authorization", BASIC)
    connection.putheader("Content-Length", "800000")
    connection.endheaders(bytes(400_000))
    wait_for(lambda: scratch_of(private), what="scratch")
    connection.close()
    wait_for(lambda: not scratch_of(private), what="scratch to go")
    assert kept.read_bytes() == b"old body"


def test_ranges_lengths_and_conditions_are_those_of_the_standard(store: WebStore) -> None:
    body = bytes(range(256)) * 4
    assert store.ask("PUT", "/deep/down/here/r.tar", body).status == 201
    assert store.ask("PUT", "/deep/down/here/r.tar", body).status == 204
    whole = store.ask("HEAD", "/deep/down/here/r.tar")
    assert whole.headers["Content-Length"] == "1024"
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert whole.headers["Content-Type"] == "application/x-tar"
    etag = whole.headers["ETag"]
    ranges = {"bytes=0-0": body[:1], "bytes=1000-": body[1000:], "bytes=-5": body[-5:], "bytes=5-2000": body[5:]}
    for wanted, part in ranges.items():
        answer = store.ask("GET", "/deep/down/here/r.tar", headers={"Range": wanted, "If-Match": etag})
        assert (answer.status, answer.body) == (206, part)
    assert store.ask("GET", "/deep/down/here/r.tar", headers={"Range": "bytes=1024-"}).status == 416
    assert store.ask("GET", "/deep/down/here/r.tar", headers={"If-Match": '"other"'}).status == 412
    assert store.ask("GET", "/deep/down/here/r.tar", headers={"If-None-Match": etag}).status == 304
    several = store.ask("GET", "/deep/down/here/r.tar", headers={"Range": "bytes=0-0,5-5,9-9"})
    assert (several.status, several.body) == (200, body)
    assert store.ask("DELETE", "/deep/down/here/r.tar").status == 204
    assert store.ask("DELETE", "/deep/down/here/r.tar").status == 404


def test_odd_names_are_stored_listed_and_removed(store: WebStore) -> None:
    names = {"a b.tar": "/odd/a%20b.tar", "é+%.tar": "/odd/%C3%A9+%25.tar", "q?#.tar": "/odd/q%3F%23.tar"}
    for target in names.values():
        assert store.ask("PUT", target, b"x").status == 201
    listing = store.ask("GET", "/odd/")
    assert listing.headers["Content-Type"].startswith("application/json")
    assert {row["name"]: row["size"] for row in json.loads(listing.body)} == dict.fromkeys(names, 1)
    for target in names.values():
        assert store.ask("DELETE", target).status == 204
    assert store.ask("GET", "/odd").headers["Location"] == "/odd/"


def test_what_is_stored_is_data_to_browsers(store: WebStore) -> None:
    store.put("page.html", b"<script>alert(1)</script>")
    headers = store.ask("GET", "/page.html").headers
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"].startswith("sandbox")


def test_what_caches_may_do_is_told() -> None:
    with WebStore(READ="open", CACHE_CONTROL="public, max-age=86400") as store:
        store.put("cached/x.tar", b"x")
        assert store.ask("GET", "/cached/x.tar").headers["Cache-Control"] == "public, max-age=86400"
        store.put("cached/x.manifest.json", b"{}")
        assert store.ask("GET", "/cached/x.manifest.json").headers["Cache-Control"] == "no-cache"
        assert store.ask("GET", "/cached/").headers["Cache-Control"] == "no-cache"
        assert "Cache-Control" not in store.ask("GET", "/cached/y.tar").headers
