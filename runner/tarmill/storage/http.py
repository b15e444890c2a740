"""Web servers: reading from any, writing to those that take PUT (nginx with its WebDAV module, Apache, gateways).

Credentials: see `http_auth`. Proxies: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY. Authorities: the system's,
SSL_CERT_FILE, and `StorageSettings.ca_file`.
"""

from __future__ import annotations

from collections.abc import Iterator

from urllib3.exceptions import HTTPError

from tarmill.errors import AccessError, NotFoundError, SpecError, StorageError
from tarmill.storage.base import Capabilities, Stat
from tarmill.storage.http_client import exchange
from tarmill.storage.http_errors import raise_network_error
from tarmill.storage.http_list import CURE, Entry, child_url, parse_index, split_prefix
from tarmill.storage.http_objects import head, remove
from tarmill.storage.http_read import HttpBody
from tarmill.storage.http_write import HttpWriteStream
from tarmill.storage.remote import RemoteStore
from tarmill.storage.retry import Retrier, with_retries
from tarmill.storage.settings import StorageSettings, current_settings
from tarmill.storage.urls import mask

_MAX_INDEX_BYTES = 256 << 20
_MAX_DEPTH = 32


class HttpStore(RemoteStore):
    """http:// and https:// URLs."""

    schemes = ("http", "https")
    capabilities = Capabilities(strong_versions=False, exclusive_create=False)

    def stat(self, url: str) -> Stat:
        """Look at one object by HEAD."""
        return head(url, current_settings())

    def _body(
        self, url: str, settings: StorageSettings, start: int = 0, end: int | None = None, version: str | None = None
    ) -> HttpBody:
        return HttpBody(url, settings, start, end, version)

    def open_write(
        self, url: str, *, owner: str = "", exclusive: bool = False, content_type: str | None = None
    ) -> HttpWriteStream:
        """Begin an object that is put when it is complete."""
        _must_name_an_object(url)
        return HttpWriteStream(url, current_settings(), exclusive, content_type)

    def list(self, prefix_url: str) -> Iterator[Stat]:
        """List by the server's folder indexes; versions are not known from these, sizes only from JSON ones."""
        folder, start = split_prefix(prefix_url)
        found: list[tuple[str, Stat]] = []
        _walk(folder, "", start, found, 0)
        return iter([stat for _, stat in sorted(found, key=lambda item: item[0])])

    def delete(self, url: str) -> None:
        """Remove an object; a missing one is fine."""
        _must_name_an_object(url)
        remove(url, current_settings())


def _must_name_an_object(url: str) -> None:
    """Refuse folders: a web server may take DELETE of one for all that is in it."""
    if url.partition("?")[0].endswith("/"):
        raise SpecError(f"{mask(url)!r} names a folder; expected a file name at its end", field="url", value=mask(url))


def _walk(folder_url: str, path: str, start: str, found: list[tuple[str, Stat]], depth: int) -> None:
    """Collect (path below the first folder, stat) of what begins with `start`."""
    if depth > _MAX_DEPTH:
        raise StorageError(f"{mask(folder_url)}: more than {_MAX_DEPTH} folders deep; {CURE}", url=mask(folder_url))
    for entry in _index(folder_url):
        name = path + entry.name
        if not name.startswith(start):
            continue
        url = child_url(folder_url, entry.name)
        if entry.name.endswith("/"):
            _walk(url, name, start, found, depth + 1)
        else:
            found.append((name, Stat(url, entry.size_bytes, "", entry.mtime_s)))


def _index(folder_url: str) -> list[Entry]:
    settings = current_settings()
    shown = mask(folder_url)

    def ask() -> tuple[bytes, str]:
        response = exchange("GET", folder_url, settings)
        try:
            body = response.read(_MAX_INDEX_BYTES)
            if len(body) == _MAX_INDEX_BYTES:
                raise StorageError(f"the listing of {shown} is larger than {_MAX_INDEX_BYTES} bytes; {CURE}", url=shown)
            return body, response.headers.get("Content-Type", "")
        except (HTTPError, OSError) as error:
            raise_network_error(error, "GET", folder_url)
        finally:
            response.release_conn() if response.closed else response.close()

    try:
        body, content_type = with_retries(ask, Retrier(settings))
    except NotFoundError:
        return []
    except AccessError as error:
        raise AccessError(f"{shown} cannot be listed: {error.message}; {CURE}", **error.facts) from error
    return parse_index(body, content_type, folder_url)
