"""Objects of stores and of the web, fetched some ahead of the sample that is written, not too many from one host."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit

from tarmill import storage
from tarmill.errors import ChangedError, LimitError, TarmillError
from tarmill.planning.upload_listing import Entry, Part
from tarmill.spec import UploadSpec

LARGE_BYTES = 16 << 20
"""Objects that are known to be larger are read when their turn has come, and not held."""
Fetched = dict[str, bytes | TarmillError]

_WINDOW_BYTES = 64 << 20
_BLOCK_BYTES = 256 << 10
_WINDOW = 4  # samples that wait, for each fetch at once


class _Later(Exception):
    """An object turned out to be so large that it is not held."""


class Pool:
    """Threads that call functions, at most so many at once, and at most so many for one host.

    They are daemons: whoever ends the process does not wait for a server that is silent.
    """

    def __init__(self, most: int, most_per_host: int) -> None:
        self._most, self._most_per_host = most, most_per_host
        self._queues: OrderedDict[str, deque[tuple[Callable[[], bytes], Future[bytes]]]] = OrderedDict()
        self._busy: Counter[str] = Counter()
        self._threads = 0
        self._idle = 0
        self._closed = False
        self._changed = threading.Condition()
        self.held_bytes = 0
        """Of results that nobody has taken yet."""

    def submit(self, host: str, call: Callable[[], bytes]) -> Future[bytes]:
        """Have a function called when it is its turn; "" is a host without a limit of its own."""
        future: Future[bytes] = Future()
        with self._changed:
            self._queues.setdefault(host, deque()).append((call, future))
            # an idle thread may have been woken for another call already
            if sum(map(len, self._queues.values())) > self._idle and self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._work, name=f"fetch-{self._threads}", daemon=True).start()
            self._changed.notify()
        return future

    def take(self, future: Future[bytes]) -> bytes:
        """Wait for a result; raises what the function raised."""
        data = future.result()
        with self._changed:
            self.held_bytes -= len(data)
        return data

    def close(self) -> None:
        """Forget what has not begun."""
        with self._changed:
            self._closed = True
            self._queues.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while (host := self._next_host()) is None and not self._closed:
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                if host is None:
                    return
                call, future = self._queues[host].popleft()
                if not self._queues[host]:
                    del self._queues[host]
                self._busy[host] += 1
            try:
                data = call()
            except BaseException as error:  # a thread has nobody to tell
                future.set_exception(error)
                data = b""
            else:
                future.set_result(data)
            with self._changed:
                self.held_bytes += len(data)
                self._busy[host] -= 1
                self._changed.notify_all()

    def _next_host(self) -> str | None:
        return next((host for host in self._queues if not host or self._busy[host] < self._most_per_host), None)


def is_object(part: Part) -> bool:
    """Tell whether a field lies in a store or on the web."""
    return part[1] is not None and not isinstance(part[4], int)


def with_objects(entries: Iterable[Entry], spec: UploadSpec) -> Generator[tuple[Entry, Fetched], None, None]:
    """Give entries, each with its fetched fields, or what has gone wrong with them; large ones are left out."""
    pool = Pool(spec.fetches, spec.fetches_per_host)
    waiting: deque[tuple[Entry, dict[str, Future[bytes]]]] = deque()
    try:
        for entry in entries:
            futures = {
                part[0]: pool.submit(_host_of(str(part[1])), _fetching(part, spec.max_member))
                for part in entry[2]
                if is_object(part) and part[2] <= LARGE_BYTES
            }
            waiting.append((entry, futures))
            while len(waiting) > _WINDOW * spec.fetches or (waiting and pool.held_bytes > _WINDOW_BYTES):
                yield _taken(pool, *waiting.popleft())
        while waiting:
            yield _taken(pool, *waiting.popleft())
    finally:
        pool.close()


def _fetching(part: Part, limit: int) -> Callable[[], bytes]:
    def call() -> bytes:
        with open_object(part) as stream:
            if (stream.stat.size_bytes or 0) > LARGE_BYTES:
                raise _Later
            return _read(stream, limit)

    return call


def _taken(pool: Pool, entry: Entry, futures: dict[str, Future[bytes]]) -> tuple[Entry, Fetched]:
    found: Fetched = {}
    for name, future in futures.items():
        try:
            found[name] = pool.take(future)
        except _Later:
            pass
        except TarmillError as error:
            found[name] = error
    return entry, found


def _host_of(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2] if storage.scheme_of(url) in ("http", "https") else ""


def fetch(part: Part, limit: int) -> bytes:
    """Read an object into memory.

    Raises:
        LimitError: it is larger than `limit` bytes.
        ChangedError: it is not the object that was listed.
        StorageError: it cannot be had.
    """
    with open_object(part) as stream:
        return _read(stream, limit)


def _read(stream: storage.ReadStream, limit: int) -> bytes:
    data = b"".join(blocks_of(stream, limit))
    stream.verify()
    return data


def open_object(part: Part) -> storage.ReadStream:
    """Open an object, in the version that was listed where that is known. Raises StorageError and its kinds."""
    _, url, size, version, mtime_s = part
    assert url is not None
    stream = storage.open_read(url, version=version or None)
    found = stream.stat
    same_size = size < 0 or found.size_bytes in (None, size)
    same_time = version or mtime_s is None or found.mtime_s is None or int(found.mtime_s) == int(mtime_s)
    if not (same_size and same_time):
        stream.close()
        shown = storage.mask(url)
        raise ChangedError(f"{shown} is not the object that was listed: it was changed since; run it again", url=shown)
    return stream


def blocks_of(stream: storage.ReadStream, limit: int) -> Iterator[Any]:
    """Give an object's contents in blocks; LimitError where there is more than `limit`."""
    total = 0
    window = memoryview(bytearray(_BLOCK_BYTES))
    while count := stream.readinto(window):
        total += count
        if total > limit:
            shown = storage.mask(stream.stat.url)
            raise LimitError(
                f"{shown} has more than {limit} bytes and does not tell its size; raise --max-member to hold it in "
                "memory",
                url=shown,
                limit_bytes=limit,
            )
        yield bytes(window[:count])
