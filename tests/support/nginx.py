"""A real nginx of the tests' own: WebDAV, listings, passwords, TLS; on a free loopback port, ended by its pid.

    with Nginx(folder) as server:
        server.url("a b.tar")          # -> http://127.0.0.1:PORT/a%20b.tar
        server.root / "a b.tar"        # the file behind it

Views of the same root beside the writable one: `/html/` (HTML listing), `/nolist/` (no listing), `/readonly/` (no PUT),
`/secret/` (basic auth: USER, PASSWORD), `/bearer/` (TOKEN), `/forbidden/` (403), `/noetag/` (Last-Modified only),
`/novalidator/` (neither).
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

USER = "me"
PASSWORD = "pa55w:rd@/é"
TOKEN = "t0ken-of-the-tests"

CONFIG = """
daemon off; master_process off; pid {work}/nginx.pid; error_log {work}/error.log warn;
{user}
events {{ worker_connections 256; }}
http {{
  access_log {work}/access.log;
  client_body_temp_path {root}/.upload 1 2; proxy_temp_path {work}/p; fastcgi_temp_path {work}/f;
  uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;
  sendfile on; tcp_nopush off; keepalive_requests 100000; client_max_body_size 1g;
  default_type application/octet-stream;
  server {{
    listen 127.0.0.1:{port}{tls};
    {certificate}
    root {root};
    location / {{
      dav_methods PUT DELETE; create_full_put_path on; dav_access user:rw group:r all:r; max_ranges 1;
      autoindex on; autoindex_format json;
    }}
    location /html/ {{ alias {root}/; autoindex on; }}
    location /nolist/ {{ alias {root}/; }}
    location /readonly/ {{ alias {root}/; autoindex on; autoindex_format json; }}
    location /secret/ {{
      alias {root}/; auth_basic "writers"; auth_basic_user_file {work}/htpasswd; autoindex on; autoindex_format json;
      dav_methods PUT DELETE; create_full_put_path on;
    }}
    location /bearer/ {{
      alias {root}/;
      if ($http_authorization != "Bearer {token}") {{ return 401 "you said $http_authorization"; }}
    }}
    location /forbidden/ {{ return 403 "<html><body><h1>Keep out</h1></body></html>"; }}
    location /small/ {{ alias {root}/; dav_methods PUT; client_max_body_size 1k; }}
    location /noetag/ {{ alias {root}/; etag off; }}
    location /novalidator/ {{ alias {root}/; etag off; add_header Last-Modified ""; }}
    location /moved/ {{ rewrite ^/moved/(.*)$ $scheme://$http_host/$1 redirect; }}
    location ~ ^/moved307/(.*)$ {{ return 307 $scheme://$http_host/$1; }}
    location /loop/ {{ return 302 /loop/; }}
  }}
}}
"""


def free_port() -> int:
    """Find a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def available() -> bool:
    """Tell whether nginx is on this machine (Debian: nginx-light)."""
    return _binary() is not None


def _binary() -> str | None:
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def command(config: Path, work: Path) -> list[str]:
    """Give the command line of an nginx that logs its errors into `work`."""
    binary = _binary()
    assert binary is not None
    return [binary, "-c", str(config), "-p", str(work), "-e", str(work / "error.log")]


def listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until a server takes connections; False where it ended instead."""
    deadline_s = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return process.poll() is None
    return False


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and wait for it."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Certificate:
    """PEM files of a server."""

    certificate_file: Path
    key_file: Path


class Nginx:
    """One nginx process, single and in the foreground; the context manager ends it."""

    def __init__(self, folder: Path, certificate: Certificate | None = None, root: Path | None = None) -> None:
        self.root = root or folder / "root"
        self._work = folder / "work"
        self._certificate = certificate
        self.port = 0
        self.scheme = "https" if certificate else "http"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> str:
        """URL of the root, without the slash."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def url(self, name: str = "") -> str:
        """URL of a file below the root, quoted."""
        return f"{self.base}/{quote(name)}"

    def requests(self) -> list[str]:
        """Request lines that were answered so far ("GET /x HTTP/1.1" 200 ...)."""
        return (self._work / "access.log").read_text().splitlines()

    @property
    def pid(self) -> int:
        """Process id, to measure it."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True, exist_ok=True)
        self._work.mkdir(parents=True, exist_ok=True)
        digest = base64.b64encode(hashlib.sha1(PASSWORD.encode()).digest()).decode()
        (self._work / "htpasswd").write_text(f"{USER}:{{SHA}}{digest}\n")  # a form that nginx itself understands
        for _ in range(5):  # another process may take the port between our look and nginx's bind
            self.port = free_port()
            if self._start():
                return self
        raise RuntimeError(f"nginx did not start:\n{(self._work / 'out').read_text()}")

    def _start(self) -> bool:
        certificate = self._certificate
        config = self._work / "nginx.conf"
        config.write_text(
            CONFIG.format(
                work=self._work,
                root=self.root,
                port=self.port,
                token=TOKEN,
                user="user root;" if os.getuid() == 0 else "",
                tls=" ssl" if certificate else "",
                certificate=(
                    f"ssl_certificate {certificate.certificate_file}; ssl_certificate_key {certificate.key_file};"
                    if certificate
                    else ""
                ),
            )
        )
        with (self._work / "out").open("wb") as out:
            self._process = subprocess.Popen(
                command(config, self._work), stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        if listens(self._process, self.port):
            return True
        self.stop()
        return False

    def stop(self) -> None:
        """End nginx and wait for it."""
        if self._process is not None:
            end(self._process)
            self._process = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
