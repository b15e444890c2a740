"""The thread that reads ahead, over sources of our own."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bodies import body_of

from tarmill.errors import StorageError
from tarmill.storage import Stat
from tarmill.storage.readahead import PIECE_BYTES, ReadAhead


class Pieces:
    """A source of given pieces; blocks where there are none left and the end is not allowed."""

    def __init__(self, pieces: list[bytes], error: Exception | None = None, block: bool = False) -> None:
        self.pieces = list(pieces)
        self.error = error
        self.block = block
        self.given = 0
        self.asked = threading.Condition()
        self.interrupted = threading.Event()
        self.closed = False

    def read(self, amount: int) -> bytes:
        with self.asked:
            self.given += 1
            self.asked.notify_all()
        if self.pieces:
            piece = self.pieces.pop(0)
            assert len(piece) <= amount
            return piece
        if self.block:
            self.interrupted.wait(60)
        if self.error:
            raise self.error
        return b""

    def wait_for_reads(self, count: int) -> None:
        with self.asked:
            assert self.asked.wait_for(lambda: self.given >= count, 60)

    def interrupt(self) -> None:
        self.interrupted.set()

    def close(self) -> None:
        self.closed = True


UNKNOWN = Stat("mem://x", None, "", None)


def reading_ahead() -> set[threading.Thread]:
    """The threads that read ahead; a count of all threads would follow those of other tests as they end."""
    return {thread for thread in threading.enumerate() if thread.name == "read-ahead"}


def drain(stream: ReadAhead, size: int) -> bytes:
    window = memoryview(bytearray(size))
    pieces = []
    while count := stream.readinto(window):
        pieces.append(bytes(window[:count]))
    return b"".join(pieces)


@given(sizes=st.lists(st.integers(1, 3000), max_size=20), window=st.integers(1, 4000))
def test_pieces_and_windows_of_any_size_give_the_same_bytes(sizes: list[int], window: int) -> None:
    pieces = [body_of(size, n) for n, size in enumerate(sizes)]
    source = Pieces(pieces)
    with ReadAhead(source, UNKNOWN, 1) as stream:
        assert drain(stream, window) == b"".join(pieces)
        assert stream.readinto(bytearray(1)) == 0
    assert source.closed


def test_no_more_is_fetched_than_the_buffer_holds() -> None:
    piece = bytes(PIECE_BYTES)
    source = Pieces([piece] * 100)
    with ReadAhead(source, UNKNOWN, 4 * PIECE_BYTES) as stream:
        stream.readinto(bytearray(1))
        source.wait_for_reads(5)  # one in hand, four in the buffer
        assert source.given == 5
        assert len(drain(stream, PIECE_BYTES)) == 100 * PIECE_BYTES - 1


def test_what_arrived_before_a_failure_is_given_before_it() -> None:
    with ReadAhead(Pieces([b"abc", b"def"], StorageError("broken")), UNKNOWN, 1) as stream:
        window = bytearray(10)
        assert stream.readinto(window) == 3
        assert stream.readinto(window) == 3
        for _ in range(2):
            with pytest.raises(StorageError, match="broken"):
                stream.readinto(window)


@pytest.mark.parametrize("pieces", [[], [b"x"], [bytes(PIECE_BYTES)] * 50])
def test_closing_in_the_middle_ends_the_thread(pieces: list[bytes]) -> None:
    before = reading_ahead()
    source = Pieces(pieces, block=True)
    stream = ReadAhead(source, UNKNOWN, 1)
    if pieces:
        stream.readinto(bytearray(1))
    stream.close()
    assert source.closed
    assert reading_ahead() <= before
    with pytest.raises(ValueError):
        stream.readinto(bytearray(1))


def test_a_forgotten_stream_ends_its_thread() -> None:
    before = reading_ahead()
    stream = ReadAhead(Pieces([bytes(PIECE_BYTES)] * 50), UNKNOWN, 1)
    stream.readinto(bytearray(1))
    assert len(reading_ahead() - before) == 1
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert gone() is None
    assert reading_ahead() <= before


def test_small_objects_need_no_thread() -> None:
    before = reading_ahead()
    with ReadAhead(Pieces([b"abc"]), Stat("mem://x", 3, "", None), 1 << 20) as stream:
        assert stream.readinto(bytearray(2)) == 2
        assert reading_ahead() <= before
        assert drain(stream, 5) == b"c"
