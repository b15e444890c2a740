"""Reads and uploads through a proxy that breaks things: what arrives is whole and right, or an error says why not."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support import faultproxy
from support.bodies import body_of, read_whole
from support.faultproxy import Answer, Cut, CutUpload, FaultProxy, Flip, LoseAnswer, Reset, Stall, StallUpload, Strip
from support.nginx import Nginx
from support.waiting import wait_for

from tarmill import storage
from tarmill.errors import AccessError, ChangedError, StorageError
from tarmill.storage.http_write import HttpWriteStream, _Upload
from tarmill.storage.readahead import PIECE_BYTES
from tarmill.values import replace

pytestmark = pytest.mark.real
SIZE = 2_000_003
BODY = body_of(SIZE)


@pytest.fixture
def shard(web: Nginx, request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of a stored shard."""
    name = f"faults-{abs(hash(request.node.name))}.tar"
    (web.root / name).write_bytes(BODY)
    yield name
    (web.root / name).unlink(missing_ok=True)


def settings(**changes: object) -> None:
    storage.configure(replace(storage.current_settings(), **changes))


FAULTS = {
    "cut before the first byte": [Cut(0)],
    "cut in the middle": [Cut(1_000_000)],
    "cut before the last byte": [Cut(SIZE - 1)],
    "cut again and again": [Cut(100_000)] * 15,
    "reset at once": [Reset(0)] * 3,
    "reset in the middle": [Reset(777_777), Reset(1), Reset(300_000)],
    "500, 502, 503, 504": [Answer(500), Answer(502), Answer(503), Answer(504)],
    "429 with Retry-After": [Answer(429, "0"), Answer(408)],
    "503 between two cuts": [Cut(500_000), Answer(503, "0"), Cut(500_000)],
    "a date as Retry-After": [Answer(503, "Wed, 21 Oct 2015 07:28:00 GMT")],
    "no ranges after a cut": [Cut(1_000_000), Strip(("Range", "If-Match"))],
    "no ranges, cut twice": [Cut(900_000), Strip(("Range", "If-Match")), None],
}


@pytest.mark.parametrize("script", FAULTS.values(), ids=FAULTS.keys())
def test_a_broken_read_ends_byte_identical(web: Nginx, shard: str, script: list[faultproxy.Fault]) -> None:
    with FaultProxy(web.port, script) as proxy:
        assert read_whole(f"{proxy.base}/{shard}") == BODY
        assert proxy.hurt == sum(fault is not None for fault in script)


@pytest.mark.parametrize("seed", range(5))
def test_random_faults_do_not_change_a_byte(web: Nginx, shard: str, seed: int) -> None:
    script = faultproxy.random_faults(seed, 12, SIZE // 13)
    with FaultProxy(web.port, script) as proxy:
        assert read_whole(f"{proxy.base}/{shard}") == BODY
        assert proxy.hurt == 12


def test_a_silent_server_is_left_after_the_time_limit(web: Nginx, shard: str) -> None:
    settings(read_timeout_s=0.3)
    with FaultProxy(web.port, [Stall(0), Stall(600_000)]) as proxy:
        assert read_whole(f"{proxy.base}/{shard}") == BODY
        assert proxy.hurt == 2


def test_reads_go_on_at_their_offset(web: Nginx, shard: str) -> None:
    with FaultProxy(web.port, [Cut(1_000_000)]) as proxy:
        assert read_whole(f"{proxy.base}/{shard}") == BODY
        assert len(proxy.seen) == 2
    lines = wait_for(lambda: len(found := [line for line in web.requests() if shard in line]) == 2 and found)
    sent = [int(line.split('" ')[1].split()[1]) for line in lines]
    assert SIZE - 1_000_000 <= sent[-1] < SIZE - 1_000_000 + PIECE_BYTES  # the piece that broke off is asked for again


def test_ranges_are_read_through_faults(web: Nginx, shard: str) -> None:
    settings(merge_gap_bytes=1)
    ranges = [(n * 200_000, 60_000) for n in range(9)]
    script = [Cut(10_000), Answer(503), Reset(5), Cut(59_999), None, Answer(500)]
    with FaultProxy(web.port, script) as proxy:
        found = storage.read_ranges(f"{proxy.base}/{shard}", ranges)
        assert proxy.hurt == 5
    assert found == [BODY[o : o + n] for o, n in ranges]


def test_an_endless_503_is_given_up_with_the_reason(web: Nginx, shard: str) -> None:
    settings(retry_budget_s=0.1)
    with FaultProxy(web.port, [Answer(503)], endless=True) as proxy:
        with pytest.raises(StorageError, match=r"answered 503.*out of order.*gave up after \d+ tries") as caught:
            storage.open_read(f"{proxy.base}/{shard}")
        assert len(proxy.seen) == caught.value.tries >= 4


def test_a_connection_that_always_breaks_is_given_up(web: Nginx, shard: str) -> None:
    settings(retry_budget_s=0.1)
    with FaultProxy(web.port, [Reset(0)], endless=True) as proxy, pytest.raises(StorageError, match="gave up"):
        storage.open_read(f"{proxy.base}/{shard}").readall()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 412])
def test_what_waiting_cannot_mend_is_asked_once(web: Nginx, shard: str, status: int) -> None:
    with FaultProxy(web.port, [Answer(status)], endless=True) as proxy:
        with pytest.raises(StorageError):
            storage.open_read(f"{proxy.base}/{shard}")
        assert len(proxy.seen) == 1


def test_a_wait_that_is_too_long_is_told_not_slept(web: Nginx, shard: str) -> None:
    with (
        FaultProxy(web.port, [Answer(429, "86400")]) as proxy,
        pytest.raises(StorageError, match="asks to wait 86400 s"),
    ):
        storage.open_read(f"{proxy.base}/{shard}")


@pytest.mark.parametrize("view", ["", "noetag/"])
def test_an_object_replaced_before_the_resumption_is_an_error_never_a_mix(web: Nginx, shard: str, view: str) -> None:
    with FaultProxy(web.port, [Cut(1_000_000)]) as proxy:
        with storage.open_read(f"{proxy.base}/{view}{shard}") as stream:
            (web.root / shard).write_bytes(b"other" + BODY)
            with pytest.raises(ChangedError, match="replaced while it was being read"):
                stream.readall()
        assert len(proxy.seen) == 2


def test_without_etags_reads_go_on_by_time_and_size(web: Nginx, shard: str) -> None:
    with FaultProxy(web.port, [Cut(1_000_000)]) as proxy:
        assert read_whole(f"{proxy.base}/noetag/{shard}") == BODY
        assert storage.stat(f"{proxy.base}/noetag/{shard}").version.startswith("modified:")


def test_without_any_version_a_broken_read_is_an_error(web: Nginx, shard: str) -> None:
    with FaultProxy(web.port, [Cut(1_000_000)]) as proxy:
        with pytest.raises(StorageError, match="neither ETag nor Last-Modified"):
            read_whole(f"{proxy.base}/novalidator/{shard}")
        assert read_whole(f"{proxy.base}/novalidator/{shard}") == BODY


UPLOADS = {
    "upload cut": [CutUpload(0), CutUpload(1_000_000), CutUpload(SIZE)],
    "reset before the answer": [Reset(0)],
    "answers lost": [LoseAnswer(), LoseAnswer()],
    "errors": [Answer(503, "0"), Answer(500), Answer(429), Answer(408)],
}


@pytest.mark.parametrize("script", UPLOADS.values(), ids=UPLOADS.keys())
@pytest.mark.parametrize("verify", ["size", "hash"])
def test_a_broken_upload_ends_whole(web: Nginx, script: list[faultproxy.Fault], verify: str, tmp_path: object) -> None:
    settings(verify_uploads=verify)
    name = f"up-{abs(hash((tuple(script), verify)))}.tar"
    with FaultProxy(web.port, script, only=("PUT",)) as proxy:
        with storage.open_write(f"{proxy.base}/{name}") as out:
            for start in range(0, SIZE, 300_000):
                out.write(BODY[start : start + 300_000])
        assert proxy.hurt == len(script)
    assert (web.root / name).read_bytes() == BODY
    assert out.receipt.size_bytes == SIZE


@pytest.mark.parametrize(("elapsed_s", "puts"), [(100.0, 1), (0.5, 2)])
def test_a_lost_answer_is_looked_up_and_the_body_sent_again_only_in_doubt(
    web: Nginx, elapsed_s: float, puts: int
) -> None:
    """Times are whole seconds on the wire: what is younger than the try can be ours only if the try took longer."""
    ticks = itertools.count(0, elapsed_s)
    name = f"lost-{puts}.tar"
    with FaultProxy(web.port, [LoseAnswer()], only=("PUT",)) as proxy:
        out = HttpWriteStream(f"{proxy.base}/{name}", storage.current_settings(), False, None)
        out.write(BODY)
        receipt = _Upload(out, lambda: next(ticks)).run()
        out.abort()
        assert len([line for line in proxy.seen if line.startswith("PUT")]) == puts
    assert receipt.size_bytes == SIZE
    assert (web.root / name).read_bytes() == BODY


def test_a_broken_upload_never_shows_a_part(web: Nginx) -> None:
    settings(retry_budget_s=0.1)
    with (
        FaultProxy(web.port, [CutUpload(1_000_000)], endless=True) as proxy,
        pytest.raises(StorageError, match="gave up"),
    ):
        storage.write_bytes(f"{proxy.base}/part.tar", BODY)
    assert not (web.root / "part.tar").exists()


def test_a_writer_killed_in_its_upload_leaves_nothing(web: Nginx) -> None:
    program = "import sys; from tarmill import storage; storage.write_bytes(sys.argv[1], bytes(3_000_000))"
    with (
        FaultProxy(web.port, [StallUpload(1_000_000)]) as proxy,
        subprocess.Popen([sys.executable, "-c", program, f"{proxy.base}/killed.tar"]) as writer,
    ):
        assert proxy.stalled.wait(60)
        writer.kill()
    assert not (web.root / "killed.tar").exists()


def test_a_flipped_bit_in_an_upload_is_found_by_reading_back(web: Nginx) -> None:
    settings(verify_uploads="hash")
    with FaultProxy(web.port, [Flip(1_234_567)], only=("PUT",)) as proxy:
        storage.write_bytes(f"{proxy.base}/flipped.tar", BODY)
        assert proxy.hurt == 1
    assert (web.root / "flipped.tar").read_bytes() == BODY


def test_a_path_that_always_damages_uploads_leaves_no_file(web: Nginx) -> None:
    settings(verify_uploads="hash")
    with FaultProxy(web.port, [Flip(0)], endless=True, only=("PUT",)) as proxy:
        with pytest.raises(StorageError, match=r"read back is not what was sent.*tried 3 times, it was removed"):
            storage.write_bytes(f"{proxy.base}/damaged.tar", BODY)
        assert proxy.hurt == 3
    assert not (web.root / "damaged.tar").exists()


def test_a_server_that_stores_less_than_it_accepts_is_caught_by_size(web: Nginx) -> None:
    lie = Answer(201, body=b"")  # says stored, and stored nothing: the older object stays
    (web.root / "lie.tar").write_bytes(b"old")
    with FaultProxy(web.port, [lie, lie], only=("PUT",)) as proxy:
        storage.write_bytes(f"{proxy.base}/lie.tar", BODY)
        assert proxy.hurt == 2
    assert (web.root / "lie.tar").read_bytes() == BODY
    with (
        FaultProxy(web.port, [lie], endless=True, only=("PUT",)) as proxy,
        pytest.raises(StorageError, match=f"4 bytes were sent and accepted, the server has {SIZE}"),
    ):
        storage.write_bytes(f"{proxy.base}/lie.tar", b"mine")


def test_an_upload_that_is_refused_is_not_repeated(web: Nginx) -> None:
    with FaultProxy(web.port, [Answer(403, body=b"go away")], endless=True) as proxy:
        with pytest.raises(AccessError, match=r"403.*go away"):
            storage.write_bytes(f"{proxy.base}/x.tar", BODY)
        assert len(proxy.seen) == 1


def test_a_background_upload_fails_when_it_is_asked(web: Nginx) -> None:
    with FaultProxy(web.port, [Answer(403)]) as proxy:
        with storage.open_write(f"{proxy.base}/x.tar") as out:
            out.write(b"x")
            pending = out.commit_async()
        with pytest.raises(AccessError):
            pending.result(30)
        with pytest.raises(StorageError, match="not committed"):
            _ = out.receipt


def test_a_background_upload_can_be_cancelled(web: Nginx) -> None:
    with FaultProxy(web.port, [Answer(503)], endless=True) as proxy:
        settings(backoff_first_s=100.0, backoff_most_s=100.0, retry_budget_s=1000.0)
        out = storage.open_write(f"{proxy.base}/cancelled.tar")
        out.write(b"x")
        pending = out.commit_async()
        with pytest.raises(TimeoutError):
            pending.result(0.05)
        assert pending.cancel()
        assert pending.done()
    assert not (web.root / "cancelled.tar").exists()


def test_a_flipped_bit_in_a_plain_http_read_passes_unseen_and_a_known_hash_tells(web: Nginx, shard: str) -> None:
    with FaultProxy(web.port, [Flip(1000)]) as proxy:
        damaged = read_whole(f"{proxy.base}/{shard}")
    assert len(damaged) == SIZE
    assert [at for at in range(SIZE) if damaged[at] != BODY[at]] == [1000]


def test_closing_in_the_middle_of_a_silence_does_not_wait_for_it(web: Nginx, shard: str) -> None:
    settings(read_timeout_s=600.0)
    with FaultProxy(web.port, [Stall(600_000)]) as proxy:
        stream = storage.open_read(f"{proxy.base}/{shard}")
        window = memoryview(bytearray(100_000))
        got = 0
        while got < 500_000:
            got += stream.readinto(window)
        thread = stream._thread  # type: ignore[attr-defined]
        stream.close()
        assert not thread.is_alive()
