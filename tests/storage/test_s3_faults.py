"""s3:// through a proxy that breaks things: what arrives is whole and right, or an error says why not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from support import faultproxy, s3_places
from support.bodies import body_of, read_whole
from support.faultproxy import Answer, Cut, CutUpload, FaultProxy, Flip, LoseAnswer, Reset, Stall, StallUpload
from support.places import Place
from support.seaweed import BUCKET, SeaweedFS

from tarmill import storage
from tarmill.errors import AccessError, ChangedError, NotFoundError, StorageError
from tarmill.storage import s3_list
from tarmill.values import replace

pytestmark = s3_places.MARKS
SIZE = 2_000_003
BODY = body_of(SIZE)
LARGE = body_of(20_000_003)  # three parts

Through = Callable[..., FaultProxy]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return s3_places.place(request, tmp_path_factory.mktemp("faults").name)


@pytest.fixture
def shard(place: Place) -> str:
    storage.write_bytes(place.url("shard.tar"), BODY)
    return place.url("shard.tar")


@contextmanager
def through(
    server: SeaweedFS,
    script: Sequence[faultproxy.Fault | None],
    only: str = "GET",
    *,
    endless: bool = False,
    **changes: object,
) -> Iterator[FaultProxy]:
    """Send what this process asks through a proxy."""
    before = storage.current_settings()
    with FaultProxy(server.port, script, endless=endless, only=tuple(only.split())) as proxy:
        storage.configure(replace(before, s3_endpoint=proxy.base, **changes))
        try:
            yield proxy
        finally:
            storage.configure(before)


def slow_down(retry_after: str | None = None) -> Answer:
    return Answer(503, retry_after, b"<Error><Code>SlowDown</Code><Message>Please reduce your rate</Message></Error>")


LISTS: dict[str, list[faultproxy.Fault | None]] = {
    "the first page is cut before its first byte": [Cut(0), Cut(0)],
    "a later page is cut before its first byte": [None, Cut(0), Cut(0)],
    "pages are cut in the middle": [Cut(1), None, Cut(40), Cut(300)],
    "an answer is empty": [Answer(200, body=b""), None, Answer(200, body=b"")],
    "an answer is another one's": [Answer(200, body=b"<html></html>"), None, Answer(200, body=b"<Error></Error>")],
    "an answer is lost": [LoseAnswer(), None, LoseAnswer()],
    "refused, reset": [slow_down(), None, Reset(0), Reset(100)],
}


@pytest.mark.parametrize("script", LISTS.values(), ids=LISTS.keys())
def test_a_listing_through_faults_misses_nothing(
    seaweed: SeaweedFS, place: Place, script: list[faultproxy.Fault | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer without a word in it was once taken for the end of the list."""
    urls = [place.url(f"{number:02d}.tar") for number in range(5)]
    for url in urls:
        storage.write_bytes(url, b"x")
    monkeypatch.setattr(s3_list, "PAGE", {"MaxKeys": 2})
    with through(seaweed, script) as proxy:
        assert [stat.url for stat in storage.list_urls(place.folder)] == urls
        assert proxy.hurt == len([fault for fault in script if fault])
        assert len(proxy.seen) == 3 + proxy.hurt


def test_unfinished_uploads_are_found_through_faults(seaweed: SeaweedFS, place: Place) -> None:
    client = seaweed.client()
    for name in ("a.tar", "b.tar", "c.tar"):
        client.create_multipart_upload(Bucket=BUCKET, Key=place.url(name).removeprefix(f"s3://{BUCKET}/"))
    script = [Cut(0), Cut(0), Answer(200, body=b""), Answer(503), Reset(0)]  # the first meets the look before
    with through(seaweed, script) as proxy:
        assert storage.sweep(place.folder, "any", [place.url("a.tar"), place.url("c.tar")]) == 2
        assert proxy.hurt == len(script)
    assert [name.rpartition("/")[2] for name in place.unfinished()] == ["b.tar"]


FAULTS = {
    "cut before the first byte": [Cut(0)],
    "cut in the middle": [Cut(1_000_000)],
    "cut before the last byte": [Cut(SIZE - 1)],
    "cut again and again": [Cut(100_000)] * 15,
    "reset at once": [Reset(0)] * 3,
    "reset in the middle": [Reset(777_777), Reset(1), Reset(300_000)],
    "500, 502, 503, 504": [Answer(500), Answer(502), slow_down(), Answer(504)],
    "429 with Retry-After": [Answer(429, "0"), Answer(408)],
    "503 between two cuts": [Cut(500_000), slow_down("0"), Cut(500_000)],
}


@pytest.mark.parametrize("script", FAULTS.values(), ids=FAULTS.keys())
def test_a_broken_read_ends_byte_identical(seaweed: SeaweedFS, shard: str, script: list[faultproxy.Fault]) -> None:
    with through(seaweed, script) as proxy:
        assert read_whole(shard) == BODY
        assert proxy.hurt == len(script)


@pytest.mark.parametrize("seed", range(3))
def test_random_faults_do_not_change_a_byte(seaweed: SeaweedFS, shard: str, seed: int) -> None:
    with through(seaweed, faultproxy.random_faults(seed, 12, SIZE // 13)) as proxy:
        assert read_whole(shard) == BODY
        assert proxy.hurt == 12


def test_a_silent_server_is_left_after_the_time_limit(seaweed: SeaweedFS, shard: str) -> None:
    with through(seaweed, [Stall(0), Stall(600_000)], read_timeout_s=0.3) as proxy:
        assert read_whole(shard) == BODY
        assert proxy.hurt == 2


def test_ranges_are_read_through_faults(seaweed: SeaweedFS, shard: str) -> None:
    ranges = [(n * 200_000, 60_000) for n in range(9)]
    script = [Cut(10_000), Answer(503), Reset(5), Cut(59_999), None, Answer(500)]
    with through(seaweed, script, merge_gap_bytes=1) as proxy:
        found = storage.read_ranges(shard, ranges)
        assert proxy.hurt == 5
    assert found == [BODY[o : o + n] for o, n in ranges]


def test_an_endless_503_is_given_up_with_the_reason(seaweed: SeaweedFS, shard: str) -> None:
    with through(seaweed, [slow_down()], endless=True, retry_budget_s=0.1) as proxy:
        with pytest.raises(StorageError, match=r"503 SlowDown \(Please reduce.*gave up after \d+ tries") as caught:
            storage.open_read(shard)
        assert len(proxy.seen) == caught.value.tries >= 4


@pytest.mark.parametrize(("status", "kind"), [(400, StorageError), (401, AccessError), (403, AccessError)])
def test_what_waiting_cannot_mend_is_asked_once(
    seaweed: SeaweedFS, shard: str, status: int, kind: type[StorageError]
) -> None:
    with through(seaweed, [Answer(status)], endless=True) as proxy:
        with pytest.raises(kind):
            storage.open_read(shard)
        assert len(proxy.seen) == 1


def test_an_object_replaced_before_the_resumption_is_an_error_never_a_mix(seaweed: SeaweedFS, shard: str) -> None:
    with through(seaweed, [Cut(1_000_000)]) as proxy:
        with storage.open_read(shard) as stream:
            seaweed.put(shard.removeprefix(f"s3://{BUCKET}/"), BODY[::-1])
            with pytest.raises(ChangedError, match="replaced while it was being read"):
                stream.readall()
        assert len(proxy.seen) == 2


def test_lists_looks_and_deletions_are_tried_again(seaweed: SeaweedFS, shard: str, place: Place) -> None:
    with through(seaweed, [slow_down("0"), Reset(0), Cut(10), None, slow_down(), Reset(0)], "GET HEAD DELETE") as proxy:
        assert [stat.url for stat in storage.list_urls(place.folder)] == [shard]
        assert storage.stat(shard).size_bytes == SIZE
        storage.delete(shard)
        assert proxy.hurt >= 5
    assert list(storage.list_urls(place.folder)) == []


UPLOADS = {
    "upload cut": [CutUpload(0), CutUpload(1_000_000), CutUpload(300)],
    "reset before the answer": [Reset(0)],
    "answers lost": [LoseAnswer(), LoseAnswer()],
    "errors": [slow_down("0"), Answer(500), Answer(429), Answer(408)],
    "all kinds": [CutUpload(10), slow_down(), LoseAnswer(), None, Reset(0), Answer(500), CutUpload(7_000_000)],
}


@pytest.mark.parametrize("script", UPLOADS.values(), ids=UPLOADS.keys())
@pytest.mark.parametrize("body", [BODY, LARGE], ids=["one request", "parts"])
def test_a_broken_upload_ends_whole(
    seaweed: SeaweedFS, place: Place, script: list[faultproxy.Fault], body: bytes
) -> None:
    with through(seaweed, script, "PUT") as proxy:
        with storage.open_write(place.url("up.tar")) as out:
            for start in range(0, len(body), 300_000):
                out.write(body[start : start + 300_000])
        assert proxy.hurt >= min(len(script), 3)
    assert read_whole(place.url("up.tar")) == body
    assert out.receipt == storage.stat(place.url("up.tar"))
    assert place.unfinished() == []


COMPLETIONS = {
    "lost": [None, LoseAnswer()],
    "refused for now": [None, slow_down(), Answer(500)],
    "an error with 200": [
        None,
        Answer(200, body=b"<Error><Code>InternalError</Code><Message>try again</Message></Error>"),
    ],
}


@pytest.mark.parametrize("script", COMPLETIONS.values(), ids=COMPLETIONS.keys())
def test_a_completion_whose_answer_fails_is_repeated(
    seaweed: SeaweedFS, place: Place, script: list[faultproxy.Fault | None]
) -> None:
    with through(seaweed, script, "POST") as proxy:
        storage.write_bytes(place.url("up.tar"), LARGE)
        assert proxy.hurt >= 1
    assert read_whole(place.url("up.tar")) == LARGE
    assert place.unfinished() == []


def test_a_completion_that_is_refused_although_it_was_made_is_known_by_its_mark(
    seaweed: SeaweedFS, place: Place
) -> None:
    """As S3 does where the answer is lost: the repetition finds no upload of that id."""
    gone = Answer(404, body=b"<Error><Code>NoSuchUpload</Code></Error>")
    with through(seaweed, [None, LoseAnswer(), gone], "POST") as proxy:
        receipt = storage.write_bytes(place.url("up.tar"), LARGE)
        assert proxy.hurt == 2
    assert receipt == storage.stat(place.url("up.tar"))


def test_an_upload_that_somebody_aborted_is_to_be_made_again(seaweed: SeaweedFS, place: Place) -> None:
    storage.write_bytes(place.url("up.tar"), LARGE)
    gone = Answer(404, body=b"<Error><Code>NoSuchUpload</Code></Error>")
    with through(seaweed, [None, gone], "POST"), pytest.raises(StorageError, match="NoSuchUpload") as caught:
        storage.write_bytes(place.url("up.tar"), LARGE[::-1])
    assert caught.value.retryable
    assert read_whole(place.url("up.tar")) == LARGE


@pytest.mark.parametrize("answer", [Answer(403, body=b"no"), Answer(400, body=b"no"), Answer(404, body=b"no")])
@pytest.mark.parametrize("only", ["PUT", "POST"])
def test_an_upload_that_is_refused_ends_with_nothing(
    seaweed: SeaweedFS, place: Place, answer: Answer, only: str
) -> None:
    script = [None, answer, answer, answer] if only == "POST" else [answer] * 3  # of the POSTs the second completes
    with (
        through(seaweed, script, only) as proxy,
        pytest.raises(StorageError, match=f"{answer.status}|does not exist") as caught,
    ):
        storage.write_bytes(place.url("up.tar"), LARGE)
    assert proxy.hurt
    assert not caught.value.retryable
    assert place.unfinished() == []
    with pytest.raises(NotFoundError):
        storage.stat(place.url("up.tar"))


def test_a_throttled_upload_is_given_up_when_the_budget_ends(seaweed: SeaweedFS, place: Place) -> None:
    with (
        through(seaweed, [slow_down()], "PUT", endless=True, retry_budget_s=0.2),
        pytest.raises(StorageError, match=r"503 SlowDown.*gave up after \d+ tries") as caught,
    ):
        storage.write_bytes(place.url("up.tar"), LARGE)
    assert not caught.value.retryable
    assert place.unfinished() == []


def test_an_upload_that_gets_stuck_is_cut_and_sent_again(seaweed: SeaweedFS, place: Place) -> None:
    stuck = [StallUpload(1000)]
    # the answer to a part is waited for as long as a slow line needs: that is what must not be waited for here
    with through(seaweed, stuck, "PUT", read_timeout_s=3) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setattr("tarmill.storage.s3_options._SLOW_UPLINK_BYTES_PER_S", 1e9)
        storage.write_bytes(place.url("up.tar"), LARGE)
        assert proxy.hurt == 1
    assert read_whole(place.url("up.tar")) == LARGE


def test_a_flipped_bit_is_refused_by_the_server_and_sent_again(seaweed: SeaweedFS, place: Place) -> None:
    with through(seaweed, [Flip(1_234_567)], "PUT") as proxy:
        storage.write_bytes(place.url("up.tar"), BODY)
        assert proxy.hurt == 1
    assert read_whole(place.url("up.tar")) == BODY


def test_a_flipped_bit_in_a_part_fails_so_that_the_shard_is_made_again(seaweed: SeaweedFS, place: Place) -> None:
    """The bytes are gone by then; jobs try a task again whose error says that this may help."""
    with through(seaweed, [None, Flip(1_234_567)], "PUT") as proxy:
        with pytest.raises(StorageError, match="BadDigest") as caught:
            storage.write_bytes(place.url("up.tar"), LARGE)
        assert proxy.hurt == 1
    assert caught.value.retryable
    assert place.unfinished() == []
    with pytest.raises(NotFoundError):
        storage.stat(place.url("up.tar"))


def test_a_path_that_always_damages_uploads_leaves_no_object(seaweed: SeaweedFS, place: Place) -> None:
    with through(seaweed, [Flip(0)], "PUT", endless=True) as proxy:
        with pytest.raises(StorageError, match=r"BadDigest.*tried 3 times"):
            storage.write_bytes(place.url("up.tar"), BODY)
        assert proxy.hurt == 3
    with pytest.raises(NotFoundError):
        storage.stat(place.url("up.tar"))


def test_what_was_stored_is_read_back_when_asked(seaweed: SeaweedFS, place: Place) -> None:
    with through(seaweed, [Flip(77)], verify_uploads="hash") as proxy:  # on the way back, once
        storage.write_bytes(place.url("up.tar"), BODY)
        assert proxy.hurt == 1
        assert len([line for line in proxy.seen if line.startswith("PUT")]) == 2
        storage.write_bytes(place.url("large.tar"), LARGE)
    assert read_whole(place.url("up.tar")) == BODY


def test_an_object_of_another_upload_is_no_receipt(seaweed: SeaweedFS, place: Place) -> None:
    """The server says stored, and has what another writer put there, of the same size."""
    seaweed.put(place.url("up.tar").removeprefix(f"s3://{BUCKET}/"), LARGE[::-1])
    lie = Answer(200, body=b"<CompleteMultipartUploadResult><ETag>x-3</ETag></CompleteMultipartUploadResult>")
    with through(seaweed, [None, lie], "POST"), pytest.raises(StorageError, match="from another upload") as caught:
        storage.write_bytes(place.url("up.tar"), LARGE)
    assert caught.value.retryable


@pytest.mark.parametrize(("script", "puts"), [([LoseAnswer()], 2), ([slow_down(), Reset(0)], 3)])
def test_an_exclusive_output_whose_answer_was_lost_is_known_by_its_mark(
    seaweed: SeaweedFS, place: Place, script: list[faultproxy.Fault], puts: int
) -> None:
    with through(seaweed, script, "PUT") as proxy:
        storage.write_bytes(place.url("lock"), LARGE, exclusive=True)
        assert len([line for line in proxy.seen if line.startswith("PUT")]) == puts
    assert read_whole(place.url("lock")) == LARGE


WRITER = """
import sys
from tarmill import storage
storage.configure(storage.StorageSettings(s3_endpoint=sys.argv[2]))
storage.write_bytes(sys.argv[1], bytes(20_000_000))
"""


def test_a_writer_killed_in_its_upload_leaves_nothing_visible(seaweed: SeaweedFS, place: Place) -> None:
    with (
        FaultProxy(seaweed.port, [None, StallUpload(1_000_000)], only=("PUT",)) as proxy,
        subprocess.Popen([sys.executable, "-c", WRITER, place.url("killed.tar"), proxy.base]) as writer,
    ):
        assert proxy.stalled.wait(60)
        writer.kill()
    assert list(storage.list_urls(place.folder)) == []
    assert len(place.unfinished()) == 1
    assert storage.sweep(place.folder, "any", [place.url("killed.tar")]) == 1
    assert place.unfinished() == []


def test_a_background_upload_fails_when_it_is_asked(seaweed: SeaweedFS, place: Place) -> None:
    with through(seaweed, [Answer(403)], "PUT"):
        with storage.open_write(place.url("x.tar")) as out:
            out.write(LARGE)
            pending = out.commit_async()
        with pytest.raises(AccessError):
            pending.result(30)
        with pytest.raises(StorageError, match="not committed"):
            _ = out.receipt
    assert place.unfinished() == []


def test_a_background_upload_can_be_cancelled(seaweed: SeaweedFS, place: Place) -> None:
    with through(seaweed, [Answer(503)], "PUT", endless=True, backoff_first_s=100.0, backoff_most_s=100.0):
        out = storage.open_write(place.url("cancelled.tar"))
        out.write(b"x")
        pending = out.commit_async()
        with pytest.raises(TimeoutError):
            pending.result(0.05)
        assert pending.cancel()
    with pytest.raises(NotFoundError):
        storage.stat(place.url("cancelled.tar"))
