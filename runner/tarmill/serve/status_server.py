"""A job's status over HTTP: /progress as JSON, /metrics for Prometheus, /healthz. Read only, and no secrets."""

from __future__ import annotations

import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6
from types import TracebackType
from typing import Any, Self

from tarmill.errors import TarmillError
from tarmill.serve.status import Status

_TIMEOUT_S = 10  # for a client that sends its request slowly, or does not read
_TEXT = "text/plain; charset=utf-8"


class StatusServer:
    """Answers from now on until `close`, in threads that hold nobody up.

    Args:
        host: the address to listen at.
        port: 0 for any that is free.
        status: of the job.

    Raises:
        TarmillError: the port cannot be had.
    """

    def __init__(self, host: str, port: int, status: Status) -> None:
        class Handler(_Handler):
            job = status

        kind = _Server6 if ":" in host else _Server
        try:
            self._server = kind((host, port), Handler)
        except OSError as error:
            raise TarmillError(
                f"status port {host}:{port} cannot be had ({error.strerror}); expected a free port there"
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="tarmill-status")
        self._thread.daemon = True
        self._thread.start()

    def close(self) -> None:
        """Stop to answer, and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def answer(path: str, status: Status) -> tuple[int, str, bytes]:
    """Answer a request: HTTP status, content type, body."""
    match path.partition("?")[0]:
        case "/healthz":
            return 200, _TEXT, b"ok\n"
        case "/progress":
            return 200, "application/json", json.dumps(status.to_dict()).encode() + b"\n"
        case "/metrics":
            try:
                from tarmill.serve.metrics import metrics
            except ImportError:
                return 501, _TEXT, b"prometheus-client is not installed: pip install 'tarmill[serve]'\n"
            return 200, *metrics(status)
        case _:
            return 404, _TEXT, b"here are /progress, /metrics and /healthz\n"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def server_bind(self) -> None:
        """Bind, without asking the DNS for a name that nobody needs."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet of clients that went away."""


class _Server6(_Server):
    address_family = AF_INET6


class _Handler(BaseHTTPRequestHandler):
    timeout = _TIMEOUT_S
    server_version = "tarmill"
    sys_version = ""

    job: Status

    def do_GET(self) -> None:
        """Answer, and close the connection."""
        code, kind, body = answer(self.path, self.job)
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet: the log is the job's."""
