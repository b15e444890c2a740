"""htupload from and to a real nginx, also through a proxy that breaks things: the bytes of files."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import nginx
from support.faultproxy import Answer, Cut, FaultProxy, Reset
from support.maps import bytes_of, command, read_json
from support.uploads import many_files, members_of, put_files, run_upload, shards_of

from tarmill import storage
from tarmill.jobs import upload_plan

pytestmark = pytest.mark.real

QUICK = storage.StorageSettings(
    retry_budget_s=60, backoff_first_s=0.001, backoff_most_s=0.01, connect_timeout_s=10, read_timeout_s=1
)


@pytest.fixture
def root(web: nginx.Nginx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder on the server, with files in it."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    return put_files(web.root / tmp_path.name, {f"in/{name}": body for name, body in many_files(20, 2, 500).items()})


def test_nginx_to_nginx_gives_the_bytes_of_files(web: nginx.Nginx, root: Path, tmp_path: Path) -> None:
    put_files(root, {"in/odd name+%25?.txt": "odd"})
    there = f"{web.base}/{root.name}"
    done = command([f"{there}/in/", f"{there}/out-@.tar", "--num-shards", "3", "-j", "2"], tmp_path, tool="htupload")
    assert done.returncode == 0, done.stderr.decode()
    run_upload(root / "in", tmp_path / "out-@.tar", num_shards=3)
    assert bytes_of(root) == bytes_of(tmp_path)
    assert read_json(root / "out.manifest.json")["samples"] == 21
    done = command([f"{there}/in/", f"{there}/out-@.tar", "--num-shards", "3"], tmp_path, tool="htupload")
    assert b"3 finished before, 0 to do" in done.stderr
    more = [f"{there}/in/", f"{there}/out-@.tar", "--append", "--key-prefix", "new/", "-q"]
    done = command(more, tmp_path, tool="htupload")
    assert done.returncode == 0, done.stderr.decode()
    assert read_json(root / "out.manifest.json")["samples"] == 42


def test_urls_of_a_list_come_through_faults(
    web: nginx.Nginx, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = storage.current_settings()
    monkeypatch.setattr(upload_plan, "settings_of", lambda options: storage.configure(QUICK) or QUICK)
    faults = [Reset(0), Cut(100), Answer(503, retry_after="0"), Cut(0), Answer(429, retry_after="0"), None]
    try:
        with FaultProxy(web.port, faults, only=("GET",)) as proxy:
            urls = [f"{proxy.base}/{root.name}/in/d{number % 2}/s{number:03d}.txt" for number in range(20)]
            (tmp_path / "list.csv").write_text("\n".join(["url", *urls]) + "\n")
            report = run_upload(tmp_path / "list.csv", tmp_path / "out-@.tar", columns={"txt": "@url"})
            assert proxy.hurt >= 4
    finally:
        storage.configure(before)
    assert report.succeeded
    files = many_files(20, 2, 500)
    expected = [(f"{number:09d}.txt", files[f"d{number % 2}/s{number:03d}.txt"]) for number in range(20)]
    assert members_of(shards_of(tmp_path)) == expected
