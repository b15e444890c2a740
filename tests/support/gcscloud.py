"""What Google Cloud Storage does and no emulator shows: credentials, preconditions, checksums, resumed chunks.

    with GcsCloud() as cloud:
        cloud.use(monkeypatch, tmp_path)      # a service account of its own
        cloud.say(Saying(503), None, Saying(429, {"Retry-After": "0"}))   # for the next requests; None = as usual
        cloud.asked                           # requests, in order

Buckets: `shards`; `public` (to be read by everybody); `readonly`; `payer` (who asks pays). Rules from
https://cloud.google.com/storage/docs/json_api/v1/objects and .../performing-resumable-uploads.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c
import pytest

from support.nginx import Certificate

ACCOUNT = "tests@project.iam.gserviceaccount.com"
TOKEN = "ya29.secret-token-of-the-tests"
BUCKETS = ("shards", "public", "readonly", "payer")
_OBJECT = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)")
_LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
_UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")


@dataclass(frozen=True)
class Saying:
    """An answer that is given instead of the usual one, or after it was worked out and lost (`after`)."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    reason: str = "backendError"
    message: str = "out of order"
    after: bool = False
    keeps: int | None = None
    """A chunk of which only so many bytes are kept."""


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    size: int


@dataclass
class Session:
    bucket: str
    name: str
    exclusive: bool
    data: bytes = b""
    stored: dict[str, Any] | None = None


class Refusal(Exception):
    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.reason = status, message, reason


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


@cache
def _private_key() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


class GcsCloud:
    """Objects in memory behind a free loopback port."""

    def __init__(self, certificate: Certificate | None = None) -> None:
        self.objects: dict[tuple[str, str], tuple[bytes, int]] = {}
        self.sessions: dict[str, Session] = {}
        self.asked: list[Asked] = []
        self.damage = 0
        """So many objects that come next are stored with a bit flipped."""
        self.token = TOKEN
        self.refuses_key = False
        self._sayings: list[Saying | None] = []
        self._count = itertools.count(1_700_000_000_000_001)
        self._lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.cloud = self
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.certificate_file, certificate.key_file)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.base = f"http{'s' if certificate else ''}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def use(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, str]:
        """Give this process a service account of the cloud; returns the store options that lead there."""
        key = {
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "1",
            "private_key": _private_key(),
            "client_email": ACCOUNT,
            "client_id": "1",
            "token_uri": f"{self.base}/token",
        }
        (folder / "key.json").write_text(json.dumps(key))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(folder / "key.json"))
        return {"gs.endpoint_url": self.base}

    def say(self, *sayings: Saying | None) -> None:
        self._sayings.extend(sayings)

    def put(self, bucket: str, name: str, data: bytes) -> int:
        """Store an object; gives its generation."""
        with self._lock:
            generation = next(self._count)
            self.objects[bucket, name] = (data, generation)
            return generation

    def count(self, method: str, part: str = "") -> int:
        return len([asked for asked in self.asked if asked.method == method and part in asked.path])

    def next_saying(self) -> Saying | None:
        with self._lock:
            return self._sayings.pop(0) if self._sayings else None

    # What the handler asks; raises Refusal

    def answer(self, asked: Asked, body: bytes, keeps: int | None) -> tuple[int, dict[str, str], bytes]:
        with self._lock:
            if asked.path == "/token":
                if self.refuses_key:
                    return 400, {}, b'{"error":"invalid_grant","error_description":"Invalid JWT Signature."}'
                return 200, {}, json.dumps({"access_token": self.token, "expires_in": 3600}).encode()
            if match := _OBJECT.fullmatch(asked.path):
                return self._object(asked, match[1], unquote(match[2]))
            if match := _LIST.fullmatch(asked.path):
                return self._list(asked, match[1])
            if match := _UPLOAD.fullmatch(asked.path):
                return self._upload(asked, match[1], body, keeps)
            raise Refusal(404, "Not Found")

    def _admit(self, asked: Asked, bucket: str, writes: bool) -> None:
        if bucket not in BUCKETS:
            raise Refusal(404, "The specified bucket does not exist.", "notFound")
        who = asked.headers.get("Authorization")
        if who is None and not (bucket == "public" and not writes):
            raise Refusal(401, "Anonymous caller does not have storage.objects.get access to the object.", "required")
        if who is not None and who != f"Bearer {TOKEN}":
            raise Refusal(401, "Invalid Credentials", "authError")
        if bucket == "readonly" and writes:
            raise Refusal(403, f"{ACCOUNT} does not have storage.objects.create access to the object.", "forbidden")
        if bucket == "payer" and "userProject" not in asked.query:
            raise Refusal(400, "Bucket is a requester pays bucket but no user project provided.", "required")

    def _object(self, asked: Asked, bucket: str, name: str) -> tuple[int, dict[str, str], bytes]:
        self._admit(asked, bucket, asked.method == "DELETE")
        found = self.objects.get((bucket, name))
        wanted = asked.query.get("generation")
        if found is None or (wanted and wanted != str(found[1])):
            raise Refusal(404, f"No such object: {bucket}/{name}", "notFound")
        data, generation = found
        if asked.query.get("ifGenerationMatch", str(generation)) != str(generation):
            raise Refusal(412, "At least one of the pre-conditions you specified did not hold.", "conditionNotMet")
        if asked.method == "DELETE":
            del self.objects[bucket, name]
            return 204, {}, b""
        if asked.query.get("alt") != "media":
            return 200, {}, json.dumps(self._resource(bucket, name)).encode()
        headers = {"X-Goog-Generation": str(generation), "Content-Type": "application/octet-stream"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("Range", ""))
        if not match:
            return 200, headers, data
        start, end = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
        if start >= len(data):
            raise Refusal(416, "Requested range not satisfiable", "requestedRangeNotSatisfiable")
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return 206, headers, data[start : end + 1]

    def _resource(self, bucket: str, name: str) -> dict[str, Any]:
        data, generation = self.objects[bucket, name]
        told = {"name": name, "bucket": bucket, "size": str(len(data)), "generation": str(generation)}
        return {**told, "crc32c": crc32c(data), "updated": "2026-01-02T03:04:05.678Z"}

    def _list(self, asked: Asked, bucket: str) -> tuple[int, dict[str, str], bytes]:
        self._admit(asked, bucket, False)
        names = sorted(name for place, name in self.objects if place == bucket)
        names = [name for name in names if name.startswith(asked.query.get("prefix", ""))]
        start, most = int(asked.query.get("pageToken") or 0), int(asked.query.get("maxResults", 1000))
        page: dict[str, Any] = {"items": [self._resource(bucket, name) for name in names[start : start + most]]}
        if start + most < len(names):
            page["nextPageToken"] = str(start + most)
        return 200, {}, json.dumps(page).encode()

    def _upload(self, asked: Asked, bucket: str, body: bytes, keeps: int | None) -> tuple[int, dict[str, str], bytes]:
        session = asked.query.get("upload_id")
        if session is not None:
            return self._chunk(asked, session, body, keeps)
        self._admit(asked, bucket, True)
        exclusive = asked.query.get("ifGenerationMatch") == "0"
        if asked.query["uploadType"] == "resumable":
            name = json.loads(body)["name"]
            self._must_not_exist(bucket, name, exclusive)
            session = f"session-{next(self._count)}"
            self.sessions[session] = Session(bucket, name, exclusive)
            return 200, {"Location": f"{self.base}{asked.path}?upload_id={session}"}, b""
        mark = re.search(r'boundary="?([^";]+)', asked.headers["Content-Type"])
        assert mark is not None
        _, told, part, _ = body.split(f"--{mark[1]}".encode())
        meta = json.loads(told.partition(b"\r\n\r\n")[2])
        return self._store(bucket, meta["name"], part.partition(b"\r\n\r\n")[2][:-2], exclusive, meta.get("crc32c"))

    def _must_not_exist(self, bucket: str, name: str, exclusive: bool) -> None:
        if exclusive and (bucket, name) in self.objects:
            raise Refusal(412, "At least one of the pre-conditions you specified did not hold.", "conditionNotMet")

    def _store(
        self, bucket: str, name: str, data: bytes, exclusive: bool, told: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        self._must_not_exist(bucket, name, exclusive)
        if told is not None and told != crc32c(data):
            raise Refusal(400, f"Provided CRC32C {told!r} doesn't match calculated CRC32C {crc32c(data)!r}.", "invalid")
        if self.damage:
            self.damage -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        self.put(bucket, name, data)
        return 200, {}, json.dumps(self._resource(bucket, name)).encode()

    def _chunk(self, asked: Asked, name: str, body: bytes, keeps: int | None) -> tuple[int, dict[str, str], bytes]:
        session = self.sessions.get(name)
        if session is None:
            raise Refusal(404, "No such upload", "notFound")
        if asked.method == "DELETE":
            del self.sessions[name]
            raise Refusal(499, "Client Closed Request")
        if session.stored is not None:
            return 200, {}, json.dumps(session.stored).encode()
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", asked.headers["Content-Range"])
        assert match is not None
        start = int(match[1])
        assert start <= len(session.data), "a gap"
        if keeps is not None:
            body = body[:keeps]
        session.data += body[len(session.data) - start :]  # what is there already is passed over
        if match[3] == "*" or int(match[3]) != len(session.data):
            assert match[3] != "*" or (int(match[2]) + 1) % (256 << 10) == 0, "chunks are multiples of 256 KiB"
            headers = {"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {}
            return 308, headers, b""
        told = asked.headers.get("X-Goog-Hash", "").partition("crc32c=")[2] or None
        answer = self._store(session.bucket, session.name, session.data, session.exclusive, told)
        session.stored = json.loads(answer[2])
        return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    cloud: GcsCloud

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # who does not trust our certificate hangs up


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _handle(self) -> None:
        cloud = self.server.cloud
        body = self._body()
        url = urlsplit(self.path)
        headers = {name.title(): value for name, value in self.headers.items()}
        asked = Asked(self.command, url.path, dict(parse_qsl(url.query)), headers, len(body))
        cloud.asked.append(asked)
        saying = cloud.next_saying() if url.path != "/token" else None
        try:
            if saying is not None and not saying.after and saying.keeps is None:
                raise Refusal(saying.status, saying.message, saying.reason)
            status, told, text = cloud.answer(asked, body, saying.keeps if saying else None)
        except Refusal as refusal:
            what = {"code": refusal.status, "message": refusal.message, "errors": [{"reason": refusal.reason}]}
            status, told, text = (
                refusal.status,
                dict(saying.headers if saying else {}),
                json.dumps({"error": what}).encode(),
            )
        if saying is not None and saying.after:
            self.close_connection = True  # the answer is lost
            return
        self.send_response_only(status)
        for name, value in told.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    do_GET = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: object) -> None:
        pass
