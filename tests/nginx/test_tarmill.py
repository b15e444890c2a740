"""tarmill against the store as it is shipped: whole jobs, and what its rules catch that no ETag of nginx tells."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.maps import UPPER, bytes_of, command, put_shards, read_json, run_map
from support.tls import TestAuthority, make_authority
from support.webstore import PASSWORD, USER, PlainStore, WebStore

from tarmill import storage
from tarmill.errors import AccessError, OutputExistsError, StorageError
from tarmill.storage import http_write
from tarmill.values import replace

pytestmark = pytest.mark.real

SHARDS = 3
LOGIN = {"TARMILL_HTTP_USER": USER, "TARMILL_HTTP_PASSWORD": PASSWORD}
QUICK = storage.StorageSettings(retry_budget_s=5, backoff_first_s=0.001, backoff_most_s=0.01)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    before = storage.current_settings()
    storage.configure(QUICK)
    yield
    storage.configure(before)


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)


def shards_as_files(folder: Path) -> dict[str, bytes]:
    """What the same job on files writes."""
    source = put_shards(folder / "files", SHARDS, samples=20, size=2000)
    run_map(source, folder / "files" / "out-@.tar.gz", UPPER)
    return bytes_of(folder / "files")


def with_certificates(authority: TestAuthority) -> Callable[[WebStore], None]:
    def prepare(store: WebStore) -> None:
        (store.secrets / "tls.crt").write_bytes(authority.server.certificate_file.read_bytes())
        (store.secrets / "tls.key").write_bytes(authority.server.key_file.read_bytes())
        (store.secrets / "ca.crt").write_bytes(authority.ca_file.read_bytes())

    return prepare


def test_a_whole_job_over_tls_with_a_password(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    (tmp_path / "up.py").write_text(UPPER)
    expected = shards_as_files(tmp_path)
    with WebStore(with_certificates(authority), TLS="on") as store:
        for path in (tmp_path / "files").glob("in-*.tar"):
            store.put(f"set/{path.name}", path.read_bytes())
        there = store.url("set")
        trust = ["--ca-file", str(authority.ca_file)]
        job = ["-p", "up.py", f"{there}/in-*.tar", f"{there}/out-@{SHARDS}.tar.gz", "-j", "2", *trust]
        refused = command(job, tmp_path)
        assert refused.returncode in (1, 2), refused.stderr
        assert b"401" in refused.stderr
        done = command(job, tmp_path, **LOGIN)
        assert done.returncode == 0, done.stderr
        assert list(bytes_of(store.root / "set").values()) == list(expected.values())
        assert read_json(store.root / "set" / "out.manifest.json")["samples"] == 20 * SHARDS
        again = command(job, tmp_path, **LOGIN)
        assert b"3 finished before, 0 to do" in again.stderr
        netrc = tmp_path / "netrc"
        netrc.write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
        netrc.chmod(0o600)
        verified = command(
            ["verify", f"{there}/out-@{SHARDS}.tar.gz", *trust], tmp_path, tool="tarmill", NETRC=str(netrc)
        )
        assert verified.returncode == 0, verified.stderr
        cleaned = command(["clean", "--all", "--force", f"{there}/", *trust], tmp_path, tool="tarmill", **LOGIN)
        assert cleaned.returncode == 0, cleaned.stderr
        assert PASSWORD not in store.logs()
        made = {path.name for path in (store.root / "set").rglob("*") if path.is_file()}
        assert made - set(os.listdir(tmp_path / "files")) == {f"out-{number}.tar.gz" for number in range(SHARDS)}


def test_a_store_that_takes_certificates_only_is_told_at_once(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    storage.configure(replace(QUICK, ca_file=str(authority.ca_file)))
    with WebStore(with_certificates(authority), READ="open", WRITE="certificate", TLS="on") as store:
        store.put("x.tar", b"x")
        assert storage.read_bytes(store.url("x.tar")) == b"x"
        with pytest.raises(AccessError, match="403"):
            storage.write_bytes(store.url("y.tar"), b"y")


# -- two PUTs within one second: the same size, the same date, so the same ETag ---------------------------------------


def overwrite_in_the_same_second(store: WebStore | PlainStore, name: str, body: bytes) -> None:
    """Put what another writer would, at just the time of what is there."""
    path = store.root / name
    date = path.stat().st_mtime
    store.put(name, body)
    os.utime(path, (date, date))


def test_nginx_cannot_tell_two_bodies_of_one_size_and_second_apart(store: WebStore) -> None:
    store.put("twice.tar", b"one body")
    before = storage.stat(store.url("twice.tar")).version
    overwrite_in_the_same_second(store, "twice.tar", b"another.")
    assert storage.stat(store.url("twice.tar")).version == before
    assert storage.read_bytes(store.url("twice.tar")) == b"another."


class Rival:
    """Overwrites an upload with as many other bytes, right after it was stored and before it is looked at."""

    def __init__(self, store: WebStore, name: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = times
        look = http_write.head

        def rival_first(*arguments: object) -> storage.Stat:
            if self.times:
                self.times -= 1
                overwrite_in_the_same_second(store, name, b"rival!!!")
            return look(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(http_write, "head", rival_first)


@pytest.mark.usefixtures("login")
def test_a_size_is_no_proof_of_contents(store: WebStore, monkeypatch: pytest.MonkeyPatch) -> None:
    Rival(store, "rival-size.tar", 1, monkeypatch)
    storage.write_bytes(store.url("rival-size.tar"), b"our body")
    assert (store.root / "rival-size.tar").read_bytes() == b"rival!!!"


@pytest.mark.usefixtures("login")
def test_the_checksum_catches_a_rival_of_the_same_size_and_second(
    store: WebStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.configure(replace(QUICK, verify_uploads="hash"))
    rival = Rival(store, "rival-hash.tar", 1, monkeypatch)
    storage.write_bytes(store.url("rival-hash.tar"), b"our body")
    assert rival.times == 0
    assert (store.root / "rival-hash.tar").read_bytes() == b"our body"
    rival.times = 99
    with pytest.raises(StorageError, match="what was read back is not what was sent"):
        storage.write_bytes(store.url("rival-hash.tar"), b"our body")


@pytest.mark.usefixtures("login")
@pytest.mark.parametrize("which", ["plain", "store"])
def test_what_is_there_is_not_overwritten_when_it_was_to_be_new(request: pytest.FixtureRequest, which: str) -> None:
    server: WebStore | PlainStore = request.getfixturevalue(which)
    storage.write_bytes(server.url("only-new.tar"), b"one body", exclusive=True)
    with pytest.raises(OutputExistsError):
        storage.write_bytes(server.url("only-new.tar"), b"another.", exclusive=True)
    assert (server.root / "only-new.tar").read_bytes() == b"one body"


@pytest.mark.usefixtures("login")
def test_nor_when_it_came_after_the_writer_looked(
    store: WebStore, plain: PlainStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_write._Upload, "_must_not_exist", lambda upload: None)  # it looked a moment ago
    store.put("raced.tar", b"one body")
    with pytest.raises(OutputExistsError):
        storage.write_bytes(store.url("raced.tar"), b"another.", exclusive=True)
    assert (store.root / "raced.tar").read_bytes() == b"one body"
    plain.put("raced.tar", b"one body")
    storage.write_bytes(plain.url("raced.tar"), b"another.", exclusive=True)
    assert (plain.root / "raced.tar").read_bytes() == b"another.", "a plain server has this hole"
