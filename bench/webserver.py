"""A real nginx for the http rows: serves a folder over loopback, takes PUT, and leaves when the bench does."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measure import BenchError

CONFIG = """
{user}
worker_processes 2;
pid {home}/nginx.pid;
error_log {home}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    client_max_body_size 0;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        autoindex on;
        location / {{
            dav_methods PUT DELETE;
            create_full_put_path on;
        }}
    }}
}}
"""


def find_nginx() -> str | None:
    """Tell where nginx is; Debian puts it where only root's PATH looks."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serve a folder until the block ends; the value is its URL without a slash at the end.

    Raises:
        BenchError: nginx is missing or does not come up.
    """
    program = find_nginx()
    if program is None:
        raise BenchError("nginx was not found; install it (Debian: apt-get install nginx-light) or use --no-http")
    home = root.parent / f"{root.name}.nginx"
    home.mkdir()
    port = _free_port()
    config = home / "nginx.conf"
    # Workers of a server that root starts become www-data otherwise, which may not write in our folder.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(CONFIG.format(home=home, port=port, root=root, user=user))
    command = [program, "-p", str(home), "-c", str(config), "-e", str(home / "error.log"), "-g", "daemon off;"]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, server, home / "error.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)
        shutil.rmtree(home, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise BenchError(f"nginx did not come up: {log.read_text() if log.exists() else 'no log'}")
