"""A small web server and forward proxy that writes down what it is asked, for what nginx cannot be made to do.

    with WebServer({"/x.tar": Reply(200, b"body")}) as server:
        storage.read_bytes(f"{server.base}/x.tar")
    server.asked[0].headers["Authorization"]

A key may name a method too ("HEAD /x.tar"). Absolute-URI requests and CONNECT tunnels are passed on, as HTTP_PROXY
servers do; a reply for "CONNECT" refuses tunnels. Names of headers are noted in Title-Case.
"""

from __future__ import annotations

import http.client
import select
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Reply:
    """What a path answers; `chunked` hides the length, `bare` ends by closing."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    chunked: bool = False
    bare: bool = False


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: WebServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _note(self) -> Asked:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = Asked(self.command, self.path, {name.title(): value for name, value in self.headers.items()}, body)
        self.server.owner.asked.append(asked)
        return asked

    def _handle(self) -> None:
        asked = self._note()
        if self.path.startswith("http://"):
            reply = _forward(asked)
        else:
            path = self.path.partition("?")[0]
            replies = self.server.owner.replies
            reply = replies.get(f"{self.command} {path}") or replies.get(path) or Reply(404)
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif reply.bare:
            self.send_header("Connection", "close")
            self.close_connection = True
        elif "Content-Length" not in reply.headers:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if reply.chunked:
            for start in range(0, len(reply.body), 70_000):
                piece = reply.body[start : start + 70_000]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - http.server's names

    def do_CONNECT(self) -> None:
        self._note()
        host, _, port = self.path.rpartition(":")
        self.close_connection = True
        if self.server.owner.replies.get("CONNECT"):
            self.send_response(self.server.owner.replies["CONNECT"].status)
            self.end_headers()
            return
        with socket.create_connection((host, int(port)), 10) as far:
            self.send_response(200)
            self.end_headers()
            near = self.connection
            while True:
                ready, _, _ = select.select([near, far], [], [], 30)
                for source in ready:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    (far if source is near else near).sendall(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _forward(asked: Asked) -> Reply:
    url = urlsplit(asked.path)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=10)
    headers = {name: value for name, value in asked.headers.items() if not name.lower().startswith("proxy-")}
    path = f"{url.path}?{url.query}" if url.query else url.path
    connection.request(asked.method, path, asked.body or None, headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    kept = ("etag", "last-modified", "content-length", "date")
    return Reply(answer.status, body, {name: value for name, value in answer.headers.items() if name.lower() in kept})


class WebServer:
    """Listens on a free loopback port."""

    def __init__(self, replies: Mapping[str, Reply] | None = None) -> None:
        self.replies = dict(replies or {})
        self.asked: list[Asked] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

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
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
