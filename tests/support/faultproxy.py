"""An HTTP proxy of the tests' own that breaks things on purpose, by a script.

    with FaultProxy(nginx.port, [Cut(after=1000), Answer(503, retry_after="0"), None]) as proxy:
        storage.open_read(f"http://127.0.0.1:{proxy.port}/shard.tar")
    proxy.seen          # request lines, in order
    proxy.hurt          # how many faults took effect

Each request takes the next fault of the script (None = pass on untouched); after the script everything passes. With
`endless=True` the script starts over. One thread per connection, one request per connection ("Connection: close"), so
that the order of faults is the order of requests. `only` picks the methods that faults are for.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Cut:
    """End the connection after so many bytes of the answer's body, as if it were complete."""

    after: int


@dataclass(frozen=True)
class Reset:
    """RST after so many bytes of the answer's body."""

    after: int = 0


@dataclass(frozen=True)
class Stall:
    """Silence after so many bytes of the answer's body, until the client or the test has had enough."""

    after: int = 0


@dataclass(frozen=True)
class Answer:
    """Answer this status without asking the server."""

    status: int
    retry_after: str | None = None
    body: bytes = b"<html><body>out of order</body></html>"


@dataclass(frozen=True)
class CutUpload:
    """RST towards both sides after so many bytes of the request's body."""

    after: int


@dataclass(frozen=True)
class StallUpload:
    """Take no more of the request's body after so many bytes; `FaultProxy.stalled` is set then."""

    after: int


@dataclass(frozen=True)
class LoseAnswer:
    """Let the request through and throw its answer away."""


@dataclass(frozen=True)
class Flip:
    """Change one bit of a body: of the request's if it has one, else of the answer's."""

    at: int


@dataclass(frozen=True)
class Strip:
    """Remove headers of the request before the server sees it (a proxy that ignores Range)."""

    names: tuple[str, ...]


Fault = Cut | Reset | Stall | Answer | CutUpload | StallUpload | LoseAnswer | Flip | Strip


def random_faults(seed: int, count: int, size: int) -> list[Fault]:
    """Choose faults of all reading kinds, the same for the same seed.

    One that strikes after so many bytes does it before `size`: a read of more than `count * size` bytes meets them all.
    """
    draw = random.Random(seed)
    kinds = (
        lambda: Cut(draw.randrange(size)),
        lambda: Reset(draw.randrange(size)),
        lambda: Answer(draw.choice((408, 429, 500, 502, 503, 504)), draw.choice((None, "0"))),
    )
    return [draw.choice(kinds)() for _ in range(count)]


class FaultProxy:
    """Listens on a free loopback port and passes on to one server."""

    def __init__(
        self,
        server_port: int,
        script: Iterable[Fault | None] = (),
        *,
        endless: bool = False,
        only: tuple[str, ...] = ("GET", "PUT"),
    ) -> None:
        self._server_port = server_port
        self._script = list(script)
        self._endless = endless
        self._only = only
        self._lock = threading.Lock()
        self._next = 0
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self.seen: list[str] = []
        self.hurt = 0
        self.stalled = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def base(self) -> str:
        """URL of the root, without the slash."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _take(self, line: str) -> Fault | None:
        with self._lock:
            self.seen.append(line)
            if line.split(" ")[0] not in self._only or not self._script:
                return None
            if self._next >= len(self._script) and not self._endless:
                return None
            fault = self._script[self._next % len(self._script)]
            self._next += 1
            self.hurt += fault is not None
            return fault

    def _serve(self, client: socket.socket) -> None:
        server = None
        with self._lock:
            self._open.add(client)
        try:
            head, body = _read_head(client)
            if not head:
                return
            line, *headers = head.split("\r\n")
            fault = self._take(line)
            if isinstance(fault, Answer):
                _answer(client, fault)
                return
            dropped = ("connection:", *(name.lower() + ":" for name in getattr(fault, "names", ())))
            headers = [header for header in headers if not header.lower().startswith(dropped)]
            server = socket.create_connection(("127.0.0.1", self._server_port), 10)
            with self._lock:
                self._open.add(server)
            server.sendall("\r\n".join([line, *headers, "Connection: close", "", ""]).encode("latin-1"))
            length = next((int(h.split(":")[1]) for h in headers if h.lower().startswith("content-length:")), 0)
            if isinstance(fault, StallUpload):
                server.sendall(body[: fault.after])
                self.stalled.set()
                while client.recv(1 << 16):  # taken, never passed on; ends with the client
                    pass
            elif not _pass_upload(client, server, body, length, fault):
                _reset(client)
                return
            self._pass_answer(client, server, fault if length == 0 or not isinstance(fault, Flip) else None)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open -= {client, server}  # type: ignore[arg-type]
            client.close()
            if server is not None:
                server.close()

    def _pass_answer(self, client: socket.socket, server: socket.socket, fault: Fault | None) -> None:
        head, body = _read_head(server)
        if isinstance(fault, LoseAnswer):
            while server.recv(1 << 16):
                pass
            _reset(client)
            return
        client.sendall((head + "\r\n\r\n").encode("latin-1"))
        limit = fault.after if isinstance(fault, Cut | Reset | Stall) else None
        passed = 0
        while body := body or server.recv(1 << 16):
            if isinstance(fault, Flip):
                body = _flip(body, fault.at - passed)
            if limit is not None:
                body = body[: limit - passed]
            client.sendall(body)
            passed += len(body)
            if limit is not None and passed >= limit:
                break
            body = b""
        if isinstance(fault, Reset):
            _reset(client)
        elif isinstance(fault, Stall):
            client.recv(1)  # returns when the client hangs up, or the test ends


def _read_head(connection: socket.socket) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(1 << 16)
        if not piece:
            return "", b""
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode("latin-1"), rest


def _pass_upload(client: socket.socket, server: socket.socket, body: bytes, length: int, fault: Fault | None) -> bool:
    passed = 0
    while passed < length:
        if not body:
            body = client.recv(1 << 16)
            if not body:
                return False
        if isinstance(fault, Flip):
            body = _flip(body, fault.at - passed)
        if isinstance(fault, CutUpload) and passed + len(body) >= fault.after:
            server.sendall(body[: fault.after - passed])
            return False
        server.sendall(body)
        passed += len(body)
        body = b""
    return True


def _flip(body: bytes, at: int) -> bytes:
    return body if not 0 <= at < len(body) else body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def _answer(client: socket.socket, fault: Answer) -> None:
    after = f"Retry-After: {fault.retry_after}\r\n" if fault.retry_after is not None else ""
    head = f"HTTP/1.1 {fault.status} Scripted\r\n{after}Content-Length: {len(fault.body)}\r\nConnection: close\r\n\r\n"
    client.sendall(head.encode("latin-1") + fault.body)
    client.shutdown(socket.SHUT_WR)
    while client.recv(1 << 16):  # a body that is still coming must not turn our answer into a reset
        pass


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
