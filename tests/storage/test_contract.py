"""What every store promises, one suite over all of them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.bodies import body_of, read_whole
from support.places import Place
from support.waiting import wait_for

from tarmill import storage
from tarmill.errors import ChangedError, NotFoundError, OutputExistsError, StorageError
from tarmill.storage.readahead import PIECE_BYTES
from tarmill.values import replace

PART = 8 << 20  # of an upload to S3 or GCS
SIZES = [
    *(0, 1, 511, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, (1 << 20) + 1, PART - 1, PART, PART + 1, 20_000_003),
    *(pytest.param(size, marks=pytest.mark.long) for size in (2 * PART - 1, 2 * PART, 2 * PART + 1, 5 * PART)),
    *(pytest.param(size, marks=pytest.mark.long) for size in (100_000_000, 300_000_000)),
]
ODD_NAMES = [
    "a b.tar",
    "a+b.tar",
    "100%.tar",
    "a%20b.tar",
    "a?b=c&d.tar",
    "a#b.tar",
    "é漢.tar",
    "a'b\"c;d,e@f:g.tar",
    "~x.tar",
]


@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_is_read_back(place: Place, size: int) -> None:
    url, body = place.url("x.tar"), body_of(size)
    with storage.open_write(url) as out:
        for start in range(0, size, 700_001):
            out.write(body[start : start + 700_001])
    assert out.receipt.size_bytes == size == out.bytes_written
    assert read_whole(url) == body
    assert storage.read_bytes(url) == body
    found = storage.stat(url)
    assert (found.size_bytes, found.version) == (size, out.receipt.version)
    with storage.open_read(url, version=found.version) as stream:
        assert stream.stat.version == found.version


def test_pieces_of_all_buffer_types_are_taken(place: Place) -> None:
    url = place.url("x.tar")
    with storage.open_write(url) as out:
        assert out.write(memoryview(b"ab\0\0")[:2]) == 2
        assert out.write(bytearray(b"cd")) == 2
        assert out.write_all([b"", b"ef", memoryview(b"gh"), *[b"x"] * 3000]) == 3004
        assert out.write(b"") == 0
    assert storage.read_bytes(url) == b"abcdefgh" + b"x" * 3000


@pytest.mark.parametrize("ranges", [
    [], [(0, 0)], [(0, 1)], [(299_999, 1)], [(0, 300_000)], [(5, 3), (0, 3), (5, 3), (6, 1)],
    [(n * 999, 7) for n in range(300)], [(299_000, 1000), (0, 10), (150_000, 0), (150_000, 5)],
])  # fmt: skip
def test_ranges_are_slices_of_the_object(place: Place, ranges: list[tuple[int, int]]) -> None:
    url, body = place.url("x.tar"), body_of(300_000)
    receipt = storage.write_bytes(url, body)
    assert storage.read_ranges(url, ranges, version=receipt.version) == [body[o : o + n] for o, n in ranges]


def test_ranges_far_apart_are_slices_too(place: Place) -> None:
    url, body = place.url("x.tar"), body_of(4_000_000)
    storage.write_bytes(url, body)
    ranges = [(n * 499_999, 100) for n in range(8)]
    assert storage.read_ranges(url, ranges) == [body[o : o + n] for o, n in ranges]


@pytest.mark.parametrize("wrong", [(0, 11), (10, 1), (11, 1), (5_000_000, 5)])
def test_a_range_past_the_end_is_an_error_not_a_short_answer(place: Place, wrong: tuple[int, int]) -> None:
    storage.write_bytes(place.url("x.tar"), b"0123456789")
    with pytest.raises(StorageError, match="10 bytes"):
        storage.read_ranges(place.url("x.tar"), [(0, 2), wrong])


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_kept(place: Place, name: str) -> None:
    storage.write_bytes(place.url(name), b"body")
    assert storage.read_bytes(place.url(name)) == b"body"
    assert [found.url for found in storage.list_urls(place.folder)] == [place.url(name)]
    assert storage.join_url(place.folder, name) == place.url(name)
    storage.delete(place.url(name))
    assert list(storage.list_urls(place.folder)) == []


def test_lists_are_sorted_recursive_and_begin_with_the_prefix(place: Place) -> None:
    names = [
        "b.tar",
        "a/2.tar",
        "a/1.tar",
        "a-1.tar",
        "a/deep/er/3.tar",
        "train-1.tar",
        "train-0.tar",
        "training/x.tar",
    ]
    for name in names:
        storage.write_bytes(place.url(name), name.encode())
    found = list(storage.list_urls(place.folder))
    assert [stat.url for stat in found] == [place.url(name) for name in sorted(names)]
    assert [stat.size_bytes for stat in found] == [len(name) for name in sorted(names)]
    assert [stat.url for stat in storage.list_urls(place.url("train"))] == [
        place.url(name) for name in ("train-0.tar", "train-1.tar", "training/x.tar")
    ]
    assert [stat.url for stat in storage.list_urls(place.url("a/d"))] == [place.url("a/deep/er/3.tar")]
    assert list(storage.list_urls(place.url("nothing/like/this"))) == []
    assert [stat.version for stat in storage.stat_many([stat.url for stat in found])] == [
        storage.stat(stat.url).version for stat in found
    ]


def test_lists_go_on_after_a_thousand_names(place: Place) -> None:
    names = [f"{number:04d}.tar" for number in range(1004)]
    storage.configure(replace(storage.current_settings(), verify_uploads="none", fsync=False))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.write_bytes(place.url(name), name.encode()), names))
    assert [stat.url for stat in storage.list_urls(place.folder)] == [place.url(name) for name in names]
    assert [stat.url for stat in storage.list_urls(place.url("1"))] == [place.url(name) for name in names[1000:]]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit, SystemExit])
def test_an_exception_between_open_and_commit_leaves_nothing(place: Place, error: type[BaseException]) -> None:
    out = storage.open_write(place.url("x.tar"))
    with pytest.raises(error), out:  # noqa: PT012 - the block is the case
        out.write(body_of(place.large_bytes))
        raise error
    with pytest.raises(NotFoundError):
        storage.stat(place.url("x.tar"))
    assert everything_in(place) == []
    with pytest.raises(StorageError, match="aborted"):
        out.write(b"more")
    with pytest.raises(StorageError, match="not committed"):
        _ = out.receipt


def test_an_exception_leaves_what_was_there_before(place: Place) -> None:
    storage.write_bytes(place.url("x.tar"), b"old")
    with pytest.raises(ValueError), storage.open_write(place.url("x.tar")) as out:  # noqa: PT012 - the block is the case
        out.write(b"new")
        raise ValueError
    assert storage.read_bytes(place.url("x.tar")) == b"old"


def test_nothing_is_visible_before_the_commit(place: Place) -> None:
    out = storage.open_write(place.url("x.tar"))
    out.write(body_of(2_000_000))
    assert list(storage.list_urls(place.folder)) == []
    with pytest.raises(NotFoundError):
        storage.open_read(place.url("x.tar"))
    out.commit()
    assert len(storage.read_bytes(place.url("x.tar"))) == 2_000_000
    with pytest.raises(StorageError, match="committed"):
        out.commit()
    out.abort()
    assert storage.stat(place.url("x.tar")).size_bytes == 2_000_000


def test_a_commit_in_the_background_ends_like_one_in_front(place: Place) -> None:
    body = body_of(3_000_000)
    with storage.open_write(place.url("x.tar")) as out:
        out.write(body)
        pending = out.commit_async()
    receipt = pending.result(30)
    assert pending.done()
    assert receipt == out.receipt
    assert storage.read_bytes(place.url("x.tar"), version=receipt.version) == body


WRITER = """
import signal, sys
from tarmill import storage
storage.configure(storage.StorageSettings(spool_memory_bytes=1 << 20))
with storage.open_write(sys.argv[1], owner="job-1") as out:
    out.write(bytes(int(sys.argv[2])))
    print("written", flush=True)
    signal.pause()
"""


def test_a_killed_writer_leaves_nothing_visible_and_nothing_that_sweep_does_not_find(place: Place) -> None:
    if place.can.shared == "process":
        pytest.skip("dies with its process")
    command = [sys.executable, "-c", WRITER, place.url("x.tar"), str(place.large_bytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        if place.scheme == "s3":
            wait_for(place.unfinished, what="the upload to begin")
        writer.kill()
    assert list(storage.list_urls(place.folder)) == []
    left = everything_in(place)
    assert storage.sweep(place.folder, "another-job") == 0
    assert everything_in(place) == left
    if place.scheme == "s3":
        assert storage.sweep(place.folder, "job-1", [place.url("y.tar")]) == 0  # whose it is, only its name tells
    assert storage.sweep(place.folder, "job-1", [place.url("x.tar")]) == len(left)
    assert everything_in(place) == []


def test_a_reader_beside_a_writer_sees_one_version_whole(place: Place) -> None:
    url = place.url("x.tar")
    bodies = [bytes([n]) * (2_000_000 + n) for n in range(6)]
    storage.write_bytes(url, bodies[0])
    failures: list[BaseException] = []
    seen: list[bytes] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                seen.append(read_whole(url))
            except ChangedError:
                pass
            except BaseException as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for body in bodies[1:] * 3:
        storage.write_bytes(url, body)
    done.set()
    reader.join()
    assert failures == []
    assert all(body in bodies for body in seen)
    assert read_whole(url) == bodies[-1]


def test_an_object_replaced_during_a_read_is_one_version_or_an_error(place: Place) -> None:
    url, old = place.url("x.tar"), b"o" * 30_000_000
    storage.write_bytes(url, old)
    stream = storage.open_read(url)
    buffer = bytearray(100_000)
    got = bytearray(buffer[: stream.readinto(buffer)])
    storage.write_bytes(url, b"n" * 30_000_001)
    try:
        while count := stream.readinto(buffer):
            got += buffer[:count]
        stream.close()
    except ChangedError:
        return
    assert got == old


def test_a_pinned_version_that_is_gone_is_an_error(place: Place) -> None:
    url = place.url("x.tar")
    pinned = storage.write_bytes(url, b"old").version
    storage.write_bytes(url, b"newer")
    with pytest.raises(ChangedError):
        storage.open_read(url, version=pinned)
    with pytest.raises(ChangedError):
        storage.read_ranges(url, [(0, 1)], version=pinned)
    with pytest.raises(ChangedError):
        storage.read_ranges(url, [(0, 1), (1, 1), (2, 1)], version=pinned)


def test_what_is_missing_is_not_found(place: Place) -> None:
    url = place.url("no/such.tar")
    for call in (storage.stat, storage.open_read, storage.read_bytes):
        with pytest.raises(NotFoundError) as caught:
            call(url)
        assert url in str(caught.value)
    with pytest.raises(NotFoundError):
        storage.read_ranges(url, [(0, 1)])


def test_deleting_twice_is_fine(place: Place) -> None:
    storage.write_bytes(place.url("x.tar"), b"x")
    storage.delete(place.url("x.tar"))
    storage.delete(place.url("x.tar"))
    with pytest.raises(NotFoundError):
        storage.stat(place.url("x.tar"))


def test_exclusive_writes_do_not_replace(place: Place) -> None:
    url = place.url("x.tar")
    storage.write_bytes(url, b"first", exclusive=True)
    with pytest.raises(OutputExistsError, match="exists already"):
        storage.write_bytes(url, b"second", exclusive=True)
    assert storage.read_bytes(url) == b"first"
    assert len(everything_in(place)) == 1


def test_of_racing_exclusive_writers_one_wins(place: Place) -> None:
    if not place.can.exclusive_create:
        pytest.skip("this store can only look before")
    barrier = threading.Barrier(8)
    won: list[int] = []

    def write(number: int) -> None:
        barrier.wait()
        try:
            storage.write_bytes(place.url("x.tar"), b"%d" % number, exclusive=True)
        except OutputExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read_bytes(place.url("x.tar")) == b"%d" % won[0]


def everything_in(place: Place) -> list[str]:
    """Every name in the place, hidden ones too, asked of the disk where there is one."""
    return sorted(_names(place))


def _names(place: Place) -> Iterator[str]:
    yield from place.unfinished()
    if not place.disk:
        yield from (stat.url for stat in storage.list_urls(place.folder))
        return
    for _, _, files in os.walk(place.disk):
        yield from files
