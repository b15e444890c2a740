"""The web storage of `nginx/` as its image runs it, by start.sh and without rights; and a plain one to compare with.

    with WebStore() as store, PlainStore() as plain:
        store.ask("PUT", "/a/b.tar", b"body").status      # 201
        store.put("c.tar", b"there already")              # a file on its volume

Both know one user: USER, PASSWORD. `plain` is what one finds in the web: WebDAV with all its methods on `/`, one folder
that needs a password to write, and an alias.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from support import nginx

FOLDER = Path(__file__).parents[2] / "nginx"
START = FOLDER / "start.sh"
USER = "me"
PASSWORD = "pa55w0rd-of-the-tests"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
IMAGE_USER = 101  # needs no entry in /etc/passwd
MAX_BODY_BYTES = 1 << 20
CONNECTIONS = 40

PLAIN = """
daemon off; master_process off; pid {work}/nginx.pid; error_log {work}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log {work}/access.log;
  client_body_temp_path {root}/.upload; proxy_temp_path {work}/p; fastcgi_temp_path {work}/f;
  uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;
  client_max_body_size 0;
  server {{
    listen 127.0.0.1:{port};
    root {root};
    dav_methods PUT DELETE MKCOL COPY MOVE; create_full_put_path on; dav_access user:rw group:rw all:r;
    autoindex on; autoindex_format json;
    location /protected/ {{
      limit_except GET HEAD {{ auth_basic "writers"; auth_basic_user_file {work}/htpasswd; }}
    }}
    location /files {{ alias {root}/; }}
  }}
}}
"""


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def htpasswd(user: str = USER, password: str = PASSWORD) -> str:
    """Give a line of a password file, in a form that nginx itself understands."""
    return f"{user}:{{SHA}}{base64.b64encode(hashlib.sha1(password.encode()).digest()).decode()}\n"


def as_image_user() -> dict[str, Any]:
    """Give the arguments that make Popen start a process without rights; nothing to do where this one has none."""
    return {"user": IMAGE_USER, "group": IMAGE_USER, "extra_groups": []} if os.getuid() == 0 else {}


def give(path: Path) -> None:
    """Hand a file or an empty folder to the user of the image."""
    if os.getuid() == 0:
        os.chown(path, IMAGE_USER, IMAGE_USER)


class Volume:
    """Folders for data, secrets and run that the user of the image can reach, which pytest's own are not."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tarmill-store-"))
        self.folder.chmod(0o711)
        self.root = self.folder / "data"
        self.secrets = self.folder / "secrets"
        self.run = self.folder / "run"
        for path in (self.root, self.secrets, self.run):
            path.mkdir()
            give(path)
        (self.secrets / "htpasswd").write_text(htpasswd())

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def put(self, name: str, body: bytes) -> Path:
        """Write a file on the volume as if it had been uploaded."""
        path = self.root / name
        for parent in reversed(path.relative_to(self.root).parents[:-1]):
            if not (self.root / parent).is_dir():
                (self.root / parent).mkdir()
                give(self.root / parent)
        path.write_bytes(body)
        give(path)
        return path

    def environment(self, **variables: str) -> dict[str, str]:
        """Give the environment in which start.sh finds these folders."""
        places = {"STORE_DATA": str(self.root), "STORE_SECRETS": str(self.secrets), "STORE_RUN": str(self.run)}
        return {"PATH": os.environ["PATH"], **places, "STORE_ACCESS_LOG": str(self.run / "access.log"), **variables}


class _Server(Volume):
    """One of the two servers; the context manager ends it."""

    scheme = "http"

    def __init__(self) -> None:
        super().__init__()
        self.port = 0
        self.out = self.folder / "out"
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def _user(self) -> dict[str, Any]:
        return as_image_user()

    @property
    def base(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def __enter__(self) -> Self:
        for _ in range(5):  # another process may take the port between our look and nginx's bind
            self.port = nginx.free_port()
            with self.out.open("wb") as out:
                self._process = subprocess.Popen(
                    self._command(),
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    **self._user(),
                )
            if nginx.listens(self._process, self.port):
                return self
            nginx.end(self._process)
        said = self.out.read_text()
        self.remove()
        raise RuntimeError(f"the server did not start:\n{said}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        nginx.end(self.process)
        self.remove()

    def logs(self) -> str:
        """Everything that was logged so far."""
        texts = [self.out, self.run / "access.log", self.run / "error.log"]
        return "".join(path.read_text() for path in texts if path.exists())

    def connect(self, tls: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
        if tls is not None:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=tls)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def url(self, name: str) -> str:
        """URL of an object, quoted."""
        return f"{self.base}/{quote(name)}"

    def ask(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        login: str | None = BASIC,
        tls: ssl.SSLContext | None = None,
    ) -> Answer:
        """Send one request, its target as it is, and give the answer."""
        connection = self.connect(tls)
        try:
            sent = {"Authorization": login} if login else {}
            connection.request(method, target, body, {**sent, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()


class WebStore(_Server):
    """The storage that we ship, by its start script.

    Args:
        prepare: called before the start, with the store, to put files where it looks for them.
        variables: STORE_... without the prefix.
    """

    def __init__(self, prepare: Callable[[WebStore], None] | None = None, **variables: str) -> None:
        super().__init__()
        self.variables = {f"STORE_{name}": value for name, value in variables.items()}
        self.scheme = "https" if variables.get("TLS") == "on" else "http"
        if prepare is not None:
            prepare(self)

    def _command(self) -> list[str]:
        return [str(START)]

    def _environment(self) -> dict[str, str]:
        return self.environment(STORE_LISTEN=f"127.0.0.1:{self.port}", **self.variables)


class PlainStore(_Server):
    """nginx with WebDAV as one finds it in the web."""

    def _command(self) -> list[str]:
        (self.run / "htpasswd").write_text(htpasswd())
        config = self.run / "nginx.conf"
        config.write_text(PLAIN.format(work=self.run, root=self.root, port=self.port))
        return nginx.command(config, self.run)
