"""The start looks at everything first: a store that would not be safe does not start, and says why and what to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.webstore import FOLDER, IMAGE_USER, START, Volume, WebStore, as_image_user, give, htpasswd

pytestmark = pytest.mark.real


@pytest.fixture
def volume() -> Iterator[Volume]:
    found = Volume()
    yield found
    found.remove()


def start(volume: Volume, how: dict[str, Any] | None = None, **variables: str) -> str:
    """Start what must not start, and give what it said; if it gets as far as nginx, an address not ours ends that."""
    variables = {"STORE_LISTEN": "192.0.2.1:1", **variables}
    done = subprocess.run(
        [START],
        env=volume.environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        **(as_image_user() if how is None else how),
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    return done.stderr


def refusal(volume: Volume, how: dict[str, Any] | None = None, **variables: str) -> str:
    said = start(volume, how, **variables)
    assert said.startswith("error: "), said
    assert said.count("error: ") == 1
    return said


def test_what_is_right_gets_as_far_as_nginx(volume: Volume) -> None:
    assert "bind() to 192.0.2.1:1 failed" in start(volume)


# -- the data ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "target"), [
    ("link.tar", "/etc/passwd"), ("a/b/folder", "/etc"), ("nowhere", "/no/such"), ("inside", "a"), (".upload", "/tmp"),
])  # fmt: skip
def test_symbolic_links_are_named_and_nothing_is_served(volume: Volume, name: str, target: str) -> None:
    volume.put("a/b/x.tar", b"x")
    (volume.root / name).symlink_to(target)
    said = refusal(volume)
    assert f"{volume.root}/{name}" in said
    assert "holds symbolic links (1)" in said
    assert "remove it" in said


def test_of_many_symbolic_links_the_first_are_named(volume: Volume) -> None:
    for number in range(50):
        (volume.root / f"link-{number}").symlink_to("/etc/passwd")
    said = refusal(volume)
    assert "(50)" in said
    assert said.count("/link-") == 5


@pytest.mark.skipif(os.getuid() != 0, reason="needs files of another user")
class TestOthersFiles:
    def test_root_is_refused(self, volume: Volume) -> None:
        assert "running as root" in refusal(volume, {})

    def test_a_volume_that_cannot_be_written_is_told(self, volume: Volume) -> None:
        os.chown(volume.root, 0, 0)
        assert re.search(rf"user {IMAGE_USER} cannot write to .*chown -R {IMAGE_USER}.*fsGroup", refusal(volume))

    def test_a_folder_that_cannot_be_looked_through_is_told(self, volume: Volume) -> None:
        (volume.root / "closed").mkdir(0o700)
        said = refusal(volume)
        assert "cannot look through" in said
        assert "closed" in said

    def test_secrets_that_cannot_be_read_are_told(self, volume: Volume) -> None:
        (volume.secrets / "htpasswd").chmod(0o600)
        assert f"cannot be read by user {IMAGE_USER}" in refusal(volume)

    def test_a_run_folder_that_cannot_be_written_is_told(self, volume: Volume) -> None:
        os.chown(volume.run, 0, 0)
        assert "--tmpfs /tmp" in refusal(volume)

    def test_what_the_file_system_keeps_for_itself_is_neither_looked_through_nor_served(self) -> None:
        def prepare(store: WebStore) -> None:
            (store.root / "lost+found").mkdir(0o700)

        with WebStore(prepare) as store:
            assert store.ask("GET", "/lost+found/").status == 404


def test_a_volume_that_is_not_there_is_told(volume: Volume) -> None:
    assert "is not there; mount a volume" in refusal(volume, STORE_DATA=f"{volume.folder}/no")
    assert "whole file system" in refusal(volume, STORE_DATA="/")


def test_secrets_must_not_lie_where_they_are_served(volume: Volume) -> None:
    volume.put("secrets/htpasswd", htpasswd().encode())
    assert "which is served" in refusal(volume, STORE_SECRETS=f"{volume.root}/secrets")


def test_old_uploads_are_swept_and_new_ones_kept() -> None:
    def prepare(store: WebStore) -> None:
        for name, hours in (("1/00/0000000001", 49), ("2/00/0000000002", 47)):
            path = store.put(f".upload/{name}", b"left")
            then = time.time() - hours * 3600
            os.utime(path, (then, then))
        old = store.put("old.tar", b"x")
        os.utime(old, (0, 0))

    with WebStore(prepare, SWEEP_HOURS="48") as store:
        left = sorted(path.name for path in store.root.rglob("*") if path.is_file())
        assert left == ["0000000002", "old.tar"]
        assert "removed 1 uploads that ended more than 48 hours ago" in store.logs()


# -- the secrets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("contents", "complaint"), [
    (None, "htpasswd is not there"),
    ("", "names no user"),
    ("# nobody\n\n", "names no user"),
    ("me:{SHA}x\nhunter2\n", "line 2 is not user:hash"),
    ("me:\n", "line 1 is not user:hash"),
    (":hash\n", "line 1 is not user:hash"),
])  # fmt: skip
def test_a_password_file_that_lets_nobody_in_or_anybody_is_told(
    volume: Volume, contents: str | None, complaint: str
) -> None:
    (volume.secrets / "htpasswd").unlink()
    if contents is not None:
        (volume.secrets / "htpasswd").write_text(contents)
    said = refusal(volume)
    assert complaint in said
    assert "hunter2" not in said


def test_a_file_of_readers_is_looked_at_too(volume: Volume) -> None:
    (volume.secrets / "htpasswd-read").write_text("")
    assert "htpasswd-read names no user" in refusal(volume)


def test_files_of_tls_that_are_missing_are_told(volume: Volume) -> None:
    certificate = {"STORE_TLS": "on", "STORE_WRITE": "certificate"}
    assert "tls.crt is not there" in refusal(volume, **certificate)
    (volume.secrets / "tls.crt").write_text("x")
    assert "tls.key is not there" in refusal(volume, **certificate)
    (volume.secrets / "tls.key").write_text("x")
    assert "ca.crt is not there" in refusal(volume, **certificate)
    assert "needs STORE_TLS=on" in refusal(volume, STORE_WRITE="certificate")
    (volume.secrets / "ca.crt").write_text("x")
    assert "cannot load certificate" in start(volume, **certificate)


# -- the variables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [
    ("READ", "opne"), ("READ", "open\nprivate"), ("WRITE", "none"), ("TLS", "yes"), ("LISTEN", "http"),
    ("LISTEN", "80; include /etc/passwd"), ("MAX_BODY", "0"), ("MAX_BODY", "8 GB"), ("HEADER_TIMEOUT", "0"),
    ("BODY_TIMEOUT", "never"), ("CONNECTIONS", "0"), ("CACHE_CONTROL", 'no-cache"; autoindex off; #'),
    ("SWEEP_HOURS", "-1"), ("WORKERS", "0"), ("LOG_LEVEL", "loud"), ("ACCESS_LOG", "/x y"), ("DATA", "data"),
    ("SECRETS", "/etc/x|y"), ("RUN", "/tmp/$x"),
])  # fmt: skip
def test_a_value_that_means_nothing_is_told(volume: Volume, name: str, value: str) -> None:
    said = refusal(volume, **{f"STORE_{name}": value})
    assert f"STORE_{name} is '{value}'; expected " in said


def test_a_variable_that_does_not_exist_is_told_since_it_may_be_a_slip_in_one_that_keeps_readers_out(
    volume: Volume,
) -> None:
    said = refusal(volume, STORE_RAED="private")
    assert "STORE_RAED is no variable of the store" in said
    assert "STORE_READ " in said
    assert "bind()" in start(volume, STORE_SERVICE_HOST="10.0.0.1", STORE_PORT_8080_TCP="tcp://10.0.0.1:8080")


def test_the_readme_tells_every_variable_and_its_default() -> None:
    defaults = dict(re.findall(r"\$\{(STORE_[A-Z_]+):-([^}]*)\}", START.read_text()))
    rows = dict(re.findall(r"^\| `(STORE_[A-Z_]+)` \| `([^`]*)` \|", (FOLDER / "README.md").read_text(), re.MULTILINE))
    assert rows == defaults


# -- as the image runs it ----------------------------------------------------------------------------------------------

SEALED = """
set -eu
mount --bind "$STORE_DATA" "$STORE_DATA"
mount -t tmpfs -o mode=1777,size=16m none "$STORE_RUN"
mount -o remount,bind,ro /
exec setpriv --reuid={user} --regid={user} --clear-groups --no-new-privs --bounding-set=-all \
    sh -c '! mkdir /sealed 2> /dev/null && exec "$0"' {start}
"""
MOUNTED = """
set -eu
mount -t tmpfs none "$STORE_DATA/sub"
exec setpriv --reuid={user} --regid={user} --clear-groups {start}
"""


def may_mount() -> bool:
    return os.getuid() == 0 and shutil.which("unshare") is not None and not subprocess.call(["unshare", "-m", "true"])


def in_a_namespace(script: str) -> list[str]:
    return ["unshare", "-m", "--propagation=private", "sh", "-c", script.format(user=IMAGE_USER, start=START)]


class SealedStore(WebStore):
    """No rights at all, nothing but the volume and a tmpfs to write to."""

    def _command(self) -> list[str]:
        return in_a_namespace(SEALED)

    def _user(self) -> dict[str, Any]:
        return {}


@pytest.mark.skipif(not may_mount(), reason="needs to mount")
def test_a_root_file_system_that_is_read_only_is_enough() -> None:
    with SealedStore(ACCESS_LOG="off") as store:
        assert store.ask("PUT", "/a/b.tar", b"body").status == 201
        assert store.ask("GET", "/a/b.tar").body == b"body"
        assert store.ask("DELETE", "/a/b.tar").status == 204
        status = Path(f"/proc/{store.process.pid}/status").read_text()
        assert re.search(rf"Uid:\t{IMAGE_USER}\t{IMAGE_USER}\t", status)
        assert re.search(r"CapBnd:\t0+$", status, re.MULTILINE)


@pytest.mark.skipif(not may_mount(), reason="needs to mount")
def test_a_mount_inside_of_the_volume_is_told_since_no_put_there_would_be_atomic(volume: Volume) -> None:
    (volume.root / "sub").mkdir()
    give(volume.root / "sub")
    done = subprocess.run(
        in_a_namespace(MOUNTED),
        env=volume.environment(STORE_LISTEN="192.0.2.1:1"),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 1
    assert f"mounted inside of {volume.root}" in done.stderr
    assert f"{volume.root}/sub" in done.stderr
