"""Google Cloud Storage through a proxy that breaks things, across forks and kills, and in little memory."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable

import pytest
from support import faultproxy
from support.bodies import body_of, read_whole
from support.fakegcs import BUCKET, FakeGcs
from support.faultproxy import Answer, Cut, CutUpload, FaultProxy, LoseAnswer, Reset, Stall, StallUpload

from tarmill import storage
from tarmill.errors import ChangedError, NotFoundError, StorageError
from tarmill.values import replace

pytestmark = pytest.mark.real
SIZE = 2_000_003
BODY = body_of(SIZE)
UPLOADS = ("POST", "PUT")


@pytest.fixture
def shard(gcs: FakeGcs, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a stored shard; uploads are in chunks of 256 KiB."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.base)
    settings(store_options={"gs.block_size": str(256 << 10)})
    url = f"gs://{BUCKET}/faults-{abs(hash(request.node.name))}.tar"
    storage.write_bytes(url, BODY)
    return url


@pytest.fixture
def through(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FaultProxy]:
    """Put a proxy before the server."""

    def make(script: list[faultproxy.Fault | None], **more: object) -> FaultProxy:
        proxy = FaultProxy(gcs.port, script, **more)  # type: ignore[arg-type]
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.base)
        return proxy

    return make


Through = Callable[..., FaultProxy]


def settings(**changes: object) -> None:
    storage.configure(replace(storage.current_settings(), **changes))


FAULTS: dict[str, list[faultproxy.Fault | None]] = {
    "cut before the first byte": [Cut(0)],
    "cut in the middle": [Cut(1_000_000)],
    "cut before the last byte": [Cut(SIZE - 1)],
    "cut again and again": [Cut(100_000)] * 15,
    "reset": [Reset(0), Reset(0), Reset(777_777), Reset(1), Reset(300_000)],
    "500, 502, 503, 504": [Answer(500), Answer(502), Answer(503), Answer(504)],
    "429 with Retry-After": [Answer(429, "0"), Answer(408)],
    "503 between two cuts": [Cut(500_000), Answer(503, "0"), Cut(500_000)],
}


@pytest.mark.parametrize("script", FAULTS.values(), ids=FAULTS.keys())
def test_a_broken_read_ends_byte_identical(shard: str, through: Through, script: list[faultproxy.Fault]) -> None:
    with through(script) as proxy:
        assert read_whole(shard) == BODY
        assert proxy.hurt == len(script)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 20))])
def test_random_faults_do_not_change_a_byte(shard: str, through: Through, seed: int) -> None:
    with through(faultproxy.random_faults(seed, 12, SIZE // 13)) as proxy:
        assert read_whole(shard) == BODY
        assert proxy.hurt == 12


def test_a_silent_server_is_left_after_the_time_limit(shard: str, through: Through) -> None:
    settings(read_timeout_s=0.3)
    with through([Stall(0), Stall(600_000)]) as proxy:
        assert read_whole(shard) == BODY
        assert proxy.hurt == 2


def test_a_stream_is_one_request_so_that_a_distant_server_is_waited_for_once(shard: str, through: Through) -> None:
    with through([]) as proxy:
        assert read_whole(shard) == BODY
        assert len(proxy.seen) == 1


def test_reads_go_on_at_their_offset(shard: str, through: Through) -> None:
    with through([Cut(1_000_000)]) as proxy:
        assert read_whole(shard) == BODY
        assert len(proxy.seen) == 2
        assert "generation=" not in proxy.seen[0]
        assert "generation=" in proxy.seen[1]


def test_ranges_are_read_through_faults(shard: str, through: Through) -> None:
    settings(merge_gap_bytes=1)
    ranges = [(n * 200_000, 60_000) for n in range(9)]
    with through([None, Cut(10_000), Answer(503), Reset(5), Cut(59_999), None, Answer(500)]) as proxy:
        assert storage.read_ranges(shard, ranges) == [BODY[o : o + n] for o, n in ranges]
        assert proxy.hurt == 5


def test_an_object_replaced_before_the_resumption_is_an_error_never_a_mix(
    shard: str, through: Through, gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with through([Cut(1_000_000)]), storage.open_read(shard) as stream:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.base)
        storage.write_bytes(shard, b"other" + BODY)
        with pytest.raises(ChangedError, match="replaced while it was being read"):
            stream.readall()


def test_a_read_that_breaks_and_then_is_refused_is_not_taken_for_complete(shard: str, through: Through) -> None:
    settings(retry_budget_s=0.1)
    with (
        through([Cut(900_000), *[Answer(503)] * 200]),
        storage.open_read(shard) as stream,
        pytest.raises(StorageError, match=r"answered 503.*gave up"),
    ):
        stream.readall()


def test_closing_in_the_middle_of_a_silence_does_not_wait_for_it(shard: str, through: Through) -> None:
    settings(read_timeout_s=600.0)
    with through([Stall(600_000)]):
        stream = storage.open_read(shard)
        window = memoryview(bytearray(100_000))
        got = 0
        while got < 500_000:
            got += stream.readinto(window)
        thread = stream._thread  # type: ignore[attr-defined]
        stream.close()
        assert not thread.is_alive()


WRITING: dict[str, list[faultproxy.Fault | None]] = {
    "cut": [None, CutUpload(0), CutUpload(100_000), None, CutUpload(200_000)],
    "the start's answer lost": [LoseAnswer()],
    "refused": [Answer(503, "0"), None, Answer(500), Answer(429), None, Answer(408)],
}


@pytest.mark.parametrize("script", WRITING.values(), ids=WRITING.keys())
@pytest.mark.parametrize("verify", ["size", "hash"])
def test_a_broken_upload_ends_whole(
    shard: str, through: Through, script: list[faultproxy.Fault | None], verify: str
) -> None:
    settings(verify_uploads=verify)
    url = shard + ".up"
    with through(script, only=UPLOADS) as proxy:
        with storage.open_write(url) as out:
            for start in range(0, SIZE, 300_000):
                out.write(BODY[start : start + 300_000])
        assert proxy.hurt == len([fault for fault in script if fault])
    assert out.receipt.size_bytes == SIZE
    assert_stored(url, BODY)


def assert_stored(url: str, body: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("STORAGE_EMULATOR_HOST")
        patch.setenv("STORAGE_EMULATOR_HOST", os.environ["TARMILL_TEST_GCS"])
        assert storage.read_bytes(url) == body


@pytest.fixture(autouse=True)
def direct_address(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARMILL_TEST_GCS", gcs.base)


def test_a_chunk_that_the_server_took_twice_is_found_out_and_removed(shard: str, through: Through) -> None:
    """The emulator appends what it gets again; the cloud passes over it (see test_gs_cloud)."""
    url = shard + ".twice"
    with through([None, LoseAnswer()], only=UPLOADS):
        with pytest.raises(StorageError, match=r"the server stored 2262147 .*it was removed") as caught:
            storage.write_bytes(url, BODY)
        assert caught.value.retryable
        with pytest.raises(NotFoundError):
            storage.stat(url)


def test_a_stalled_upload_is_left_after_the_time_limit(shard: str, through: Through) -> None:
    settings(read_timeout_s=3, store_options={"gs.block_size": str(64 << 20)})
    body = body_of(30_000_000)  # more than the sockets' buffers hold
    with through([StallUpload(100_000)], only=UPLOADS) as proxy:
        storage.write_bytes(shard + ".up", body)
        assert proxy.stalled.is_set()
    assert_stored(shard + ".up", body)


def test_a_broken_upload_never_shows_a_part(shard: str, through: Through) -> None:
    settings(retry_budget_s=0.1)
    with through([None, CutUpload(100_000), *[CutUpload(50_000)] * 200], only=UPLOADS):
        with pytest.raises(StorageError, match="gave up"):
            storage.write_bytes(shard + ".part", BODY)
        with pytest.raises(NotFoundError):
            storage.stat(shard + ".part")


def test_a_writer_killed_in_its_upload_leaves_nothing(
    shard: str, through: Through, gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import sys; from tarmill import storage; storage.write_bytes(sys.argv[1], bytes(30_000_000))"
    with (
        through([None, None, StallUpload(1_000_000)], only=UPLOADS) as proxy,
        subprocess.Popen([sys.executable, "-c", program, shard + ".killed"]) as writer,
    ):
        assert proxy.stalled.wait(60)
        writer.kill()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.base)
    assert [stat.url for stat in storage.list_urls(shard)] == [shard]


def test_a_background_upload_can_be_cancelled(shard: str, through: Through) -> None:
    settings(backoff_first_s=100.0, backoff_most_s=100.0, retry_budget_s=1000.0)
    with through([Answer(503)] * 9, only=UPLOADS):
        out = storage.open_write(shard + ".cancelled")
        out.write(b"x")
        pending = out.commit_async()
        with pytest.raises(TimeoutError):
            pending.result(0.05)
        assert pending.cancel()
        assert pending.done()
        with pytest.raises(NotFoundError):
            storage.stat(shard + ".cancelled")


def _child(url: str, answers: multiprocessing.Queue[object]) -> None:
    try:
        storage.write_bytes(url + ".child", b"of the child")
        answers.put(storage.read_bytes(url) == BODY)
    except BaseException as error:
        answers.put(repr(error))


def test_a_forked_child_has_connections_of_its_own(shard: str) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    assert storage.read_bytes(shard) == BODY
    open_before = storage.open_read(shard)
    child = context.Process(target=_child, args=(shard, answers))
    child.start()
    assert answers.get(timeout=60) is True
    child.join()
    assert child.exitcode == 0
    assert open_before.readall() == BODY  # the parent's goes on
    assert storage.read_bytes(shard + ".child") == b"of the child"


MEMORY = """
import sys
from tarmill import storage
source, target = sys.argv[1:]
block = bytes(1 << 20)
with storage.open_write(target) as out:
    for _ in range(96):
        out.write(block)
window = memoryview(bytearray(1 << 20))
got = 0
with storage.open_read(source) as stream:
    while count := stream.readinto(window):
        got += count
assert got == 300 << 20, got
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def test_memory_does_not_grow_with_the_object(gcs: FakeGcs, shard: str) -> None:
    """300 MB are read, and 96 MB written, since the emulator hashes all it has with each chunk."""
    address = f"{gcs.base}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=large.tar"
    urllib.request.urlopen(urllib.request.Request(address, bytes(300 << 20), method="POST"), timeout=60).close()
    program = [sys.executable, "-c", MEMORY, f"gs://{BUCKET}/large.tar", f"gs://{BUCKET}/large-too.tar"]
    done = subprocess.run(program, capture_output=True, check=False)
    assert done.stderr == b""
    assert int(done.stdout) < 150 << 10  # KiB
    for name in ("large.tar", "large-too.tar"):
        storage.delete(f"gs://{BUCKET}/{name}")
