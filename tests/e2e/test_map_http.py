"""htmapper from a real nginx to a real nginx, also through a proxy that breaks things: the same bytes, no secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from support import nginx, tars
from support.faultproxy import Answer, Cut, CutUpload, Fault, FaultProxy, Flip, LoseAnswer, Reset, Stall, random_faults
from support.maps import UPPER, bytes_of, command, pairs_of, put_shards, read_json, run_map

from tarmill import storage
from tarmill.jobs import map as map_job

pytestmark = pytest.mark.real

QUICK = storage.StorageSettings(
    retry_budget_s=60, backoff_first_s=0.001, backoff_most_s=0.01, connect_timeout_s=10, read_timeout_s=1
)
SHARDS = 3


@pytest.fixture
def root(web: nginx.Nginx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder on the server, with three shards in it."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    folder = web.root / tmp_path.name
    put_shards(folder, SHARDS, samples=20, size=5000)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short pauses between tries, in this process."""
    before = storage.current_settings()
    monkeypatch.setattr(map_job, "settings_of", lambda options: storage.configure(QUICK) or QUICK)
    yield
    storage.configure(before)


def expected(root: Path, tmp_path: Path) -> dict[str, bytes]:
    """What the same job on files writes."""
    run_map(f"{root}/in-@{SHARDS}.tar", tmp_path / "files" / "out-@.tar.gz", UPPER)
    return bytes_of(tmp_path / "files")


def test_nginx_to_nginx_gives_the_bytes_of_files(web: nginx.Nginx, root: Path, tmp_path: Path) -> None:
    (tmp_path / "up.py").write_text(UPPER)
    there = f"{web.base}/{root.name}"
    done = command(["-p", "up.py", f"{there}/in-@{SHARDS}.tar", f"{there}/out-@.tar.gz", "-j", "2"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert bytes_of(root) == expected(root, tmp_path)
    manifest = read_json(root / "out.manifest.json")
    assert manifest["samples"] == 20 * SHARDS
    names = [name for name, _ in pairs_of(0, 20)]
    assert [name for name, _ in tars.tarfile_listing((root / "out-000000.tar.gz").read_bytes())] == names
    # and once more: nothing is left to do
    before = len(web.requests())
    done = command(["-p", "up.py", f"{there}/in-@{SHARDS}.tar", f"{there}/out-@.tar.gz"], tmp_path)
    assert done.returncode == 0
    assert b"3 finished before, 0 to do" in done.stderr
    assert not [line for line in web.requests()[before:] if '"PUT' in line and "out-0" in line]


def test_index_files_lie_beside_the_shards_on_the_server_as_beside_files(
    web: nginx.Nginx, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "up.py").write_text(UPPER)
    there, arguments = f"{web.base}/{root.name}", ["-p", "up.py", "-j", "2", "--index", "wids,energon,dali,sizes,timm"]
    done = command([*arguments, f"{there}/in-@{SHARDS}.tar", f"{there}/out-@.tar"], tmp_path)
    assert done.returncode == 0, done.stderr
    done = command([*arguments, f"{root}/in-@{SHARDS}.tar", "files/out-@.tar"], tmp_path)
    assert done.returncode == 0, done.stderr
    files = {path.relative_to(tmp_path / "files") for path in (tmp_path / "files").rglob("*") if path.is_file()}
    files = {path for path in files if "_tarmill" not in path.parts and path.name != "out.manifest.json"}
    assert len(files) == 3 * SHARDS + 4
    assert {path: (root / path).read_bytes() for path in files} == {
        path: (tmp_path / "files" / path).read_bytes() for path in files
    }


READING: dict[str, list[Fault | None]] = {
    "cuts": [Cut(0), Cut(1), Cut(700), Cut(100_000)],
    "resets": [Reset(0), Reset(5000), Reset(200_000)],
    "refusals": [Answer(503, retry_after="0"), Answer(500), Answer(429, retry_after="0"), Answer(502)],
    "stalls": [None, None, Stall(30_000)],
    "all kinds": [*random_faults(1, 12, 200_000), None],
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("faults", READING)
def test_reading_through_faults_gives_the_same_bytes(web: nginx.Nginx, root: Path, tmp_path: Path, faults: str) -> None:
    with FaultProxy(web.port, READING[faults], only=("GET",)) as proxy:
        report = run_map(f"{proxy.base}/{root.name}/in-@{SHARDS}.tar", tmp_path / "out" / "out-@.tar.gz", UPPER)
        assert proxy.hurt >= min(3, len([fault for fault in READING[faults] if fault]))
    assert report.succeeded
    assert bytes_of(tmp_path / "out") == expected(root, tmp_path)


WRITING: dict[str, list[Fault | None]] = {
    "cut uploads": [None, CutUpload(0), CutUpload(50), CutUpload(900)],
    "lost answers": [LoseAnswer(), LoseAnswer(), None, LoseAnswer()],
    "refusals": [Answer(503, retry_after="0"), None, Answer(500), Answer(429, retry_after="0")],
    "all kinds": [CutUpload(10), LoseAnswer(), Answer(503), CutUpload(700), None, LoseAnswer(), Answer(500)],
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("faults", WRITING)
def test_writing_through_faults_gives_the_same_bytes(web: nginx.Nginx, root: Path, tmp_path: Path, faults: str) -> None:
    with FaultProxy(web.port, WRITING[faults], only=("PUT",)) as proxy:
        there = f"{proxy.base}/{root.name}"
        report = run_map(f"{there}/in-@{SHARDS}.tar", f"{there}/out-@.tar.gz", UPPER)
        assert proxy.hurt >= 3
    assert report.succeeded
    assert bytes_of(root) == expected(root, tmp_path)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", [7, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(20))])
def test_faults_both_ways_with_worker_processes_give_the_same_bytes(
    web: nginx.Nginx, root: Path, tmp_path: Path, seed: int
) -> None:
    faults = [*random_faults(seed, 10, 150_000), CutUpload(100), LoseAnswer(), Stall(seed * 1000)]
    with FaultProxy(web.port, faults) as proxy:
        there = f"{proxy.base}/{root.name}"
        report = run_map(f"{there}/in-@{SHARDS}.tar", f"{there}/out-@.tar.gz", UPPER, options={"workers": 2})
        assert proxy.hurt >= 8
    assert report.succeeded
    assert bytes_of(root) == expected(root, tmp_path)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("at", [100, 515, 9000], ids=["header", "body", "later"])
@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_a_bit_flipped_on_the_way_is_caught_by_the_manifest_and_read_again(
    web: nginx.Nginx, root: Path, tmp_path: Path, at: int, policy: str
) -> None:
    run_map(f"{root}/in-@{SHARDS}.tar", f"{root}/mid-@{SHARDS}.tar", UPPER)
    # of the GETs the first is the manifest's, the second the trial of one sample
    with FaultProxy(web.port, [None, None, Flip(at)], only=("GET",)) as proxy:
        source = f"{proxy.base}/{root.name}/mid-@{SHARDS}.tar"
        report = run_map(source, tmp_path / "out" / "out-@.tar.gz", UPPER, on_error=policy)
        assert [line.split()[1].rpartition("/")[2] for line in proxy.seen if line.startswith("GET")][:4] == [
            "mid.manifest.json",
            "mid-0.tar",
            "mid-0.tar",
            "mid-1.tar",
        ]
        assert proxy.hurt == 1
    assert report.succeeded
    assert report.counts.read == report.counts.written == 20 * SHARDS
    assert bytes_of(tmp_path / "out") == expected(root, tmp_path)


@pytest.mark.parametrize("way", ["none", "size", "hash"])
def test_uploads_are_verified_as_asked(web: nginx.Nginx, root: Path, tmp_path: Path, way: str) -> None:
    there = f"{web.base}/{root.name}"
    report = run_map(
        f"{there}/in-@{SHARDS}.tar", f"{there}/out-@.tar.gz", UPPER, options={"verify_uploads": way, "workers": 1}
    )
    assert report.succeeded
    assert bytes_of(root) == expected(root, tmp_path)


def test_an_output_that_was_replaced_on_the_server_is_made_again(web: nginx.Nginx, root: Path, tmp_path: Path) -> None:
    there = f"{web.base}/{root.name}"
    run_map(f"{there}/in-@{SHARDS}.tar", f"{there}/out-@.tar.gz", UPPER)
    (root / "out-000001.tar.gz").write_bytes(b"something else")
    report = run_map(f"{there}/in-@{SHARDS}.tar", f"{there}/out-@.tar.gz", UPPER)
    assert report.shards_resumed == SHARDS - 1
    assert bytes_of(root) == expected(root, tmp_path)


def test_a_shard_that_is_not_on_the_server_is_named(web: nginx.Nginx, root: Path, tmp_path: Path) -> None:
    (tmp_path / "up.py").write_text(UPPER)
    done = command(["-p", "up.py", f"{web.base}/{root.name}/in-@9.tar", "out-@.tar"], tmp_path)
    assert done.returncode == 1
    assert b"in-3.tar (number 4 of 9) is not there" in done.stderr


def test_passwords_in_urls_work_and_are_found_nowhere(web: nginx.Nginx, root: Path, tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(
        "def process_sample(record):\n"
        "    if record['key'].endswith('-003'): raise ValueError(record['__url__'])\n"
        "    record['url'] = record['__url__']\n"
        "    return record\n"
    )
    secret = quote(nginx.PASSWORD, safe="")
    there = f"http://{nginx.USER}:{secret}@127.0.0.1:{web.port}/secret/{root.name}"
    arguments = ["-p", "s.py", f"{there}/in-@{SHARDS}.tar", f"{there}/out-@.tar", "--on-error", "skip", "-j", "2"]
    done = command([*arguments, "--rejected", "rejected.jsonl", "--report", "report.json"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "rejected.jsonl").read_bytes().splitlines()) == SHARDS
    again = command([*arguments, "--exists", "fail", "--log-format", "json"], tmp_path)
    assert again.returncode == 2
    texts = [done.stdout + done.stderr, again.stdout + again.stderr]
    texts += [path.read_bytes() for folder in (root, tmp_path) for path in folder.rglob("*") if path.is_file()]
    assert any(f"http://{nginx.USER}:***@127.0.0.1".encode() in text for text in texts)
    for spelling in (secret, nginx.PASSWORD, secret.partition("%")[0]):
        assert not [text for text in texts if spelling.encode() in text]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_tried_again_is_told_in_json_lines_too(
    web: nginx.Nginx, root: Path, tmp_path: Path, workers: str
) -> None:
    (tmp_path / "up.py").write_text(UPPER)
    with FaultProxy(web.port, [Answer(503, "0")] * 6, only=("PUT",)) as proxy:
        there = f"{proxy.base}/{root.name}"
        arguments = ["-p", "up.py", f"{there}/in-@{SHARDS}.tar", f"{there}/out-@.tar", "-j", workers]
        done = command([*arguments, "--log-format", "json"], tmp_path)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    told = [event["message"] for event in events if event["event"] == "log"]
    assert len(told) == 6
    assert all("503" in message for message in told)
