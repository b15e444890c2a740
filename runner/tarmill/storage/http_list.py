"""Folder listings of web servers: nginx's JSON (`autoindex_format json`), else the links of an HTML index (pure)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from typing import NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

from tarmill.errors import StorageError
from tarmill.storage.urls import mask

CURE = (
    "name the shards by number (shard-{000000..000999}.tar) or in a list (@shards.txt); "
    "for nginx set `autoindex on; autoindex_format json;`"
)


class Entry(NamedTuple):
    """One line of a listing; `name` as a person writes it, folders end in `/`; the rest None where not told."""

    name: str
    size_bytes: int | None = None
    mtime_s: float | None = None


def parse_index(body: bytes, content_type: str, folder_url: str) -> list[Entry]:
    """Read a folder's index of either kind.

    Raises:
        StorageError: it is neither.
    """
    if "json" in content_type.lower():
        return list(_from_json(body, folder_url))
    if "html" in content_type.lower():
        links = _Links()
        links.feed(body.decode("utf-8", "surrogateescape"))
        return list(_from_links(links.found, folder_url))
    raise StorageError(
        f"{mask(folder_url)} cannot be listed: the server sent {content_type or 'something without a type'}, "
        f"expected a JSON or HTML index; {CURE}",
        url=mask(folder_url),
    )


def _from_json(body: bytes, folder_url: str) -> Iterator[Entry]:
    try:
        rows = json.loads(body.decode("utf-8", "surrogateescape"))
        for row in rows:
            name = str(row["name"])
            if row["type"] == "directory":
                yield Entry(name + "/")
            elif row["type"] == "file":
                yield Entry(name, int(row["size"]), parsedate_to_datetime(row["mtime"]).timestamp())
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"{mask(folder_url)} cannot be listed: its JSON is not that of nginx's autoindex; {CURE}",
            url=mask(folder_url),
        ) from error


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def _from_links(links: list[str], folder_url: str) -> Iterator[Entry]:
    """Keep the links that lead one step down; sorting links (`?C=N`), the parent and foreign sites are none."""
    here = urlsplit(folder_url)
    base = here.path or "/"
    seen: set[str] = set()
    for link in links:
        there = urlsplit(urljoin(folder_url, link))
        if there.netloc != here.netloc or there.query or not unquote(there.path).startswith(unquote(base)):
            continue
        name = unquote(there.path, errors="surrogateescape")[len(unquote(base, errors="surrogateescape")) :]
        if name and "/" not in name[:-1] and name != "/" and name not in seen:
            seen.add(name)
            yield Entry(name)


def child_url(folder_url: str, name: str) -> str:
    """Give the URL of an entry of a folder (its URL ends in `/`), quoted."""
    return folder_url + quote(name, errors="surrogateescape")


def split_prefix(prefix_url: str) -> tuple[str, str]:
    """Cut a prefix into the folder to ask for and the beginning of names in it.

    Raises:
        StorageError: it has a query, after which no folder can be made out.
    """
    if "?" in prefix_url:
        raise StorageError(f"{mask(prefix_url)} cannot be listed, since it has a query; {CURE}", url=mask(prefix_url))
    start = prefix_url.index("://") + 3
    cut = prefix_url.rfind("/", start) + 1
    return (prefix_url[:cut], unquote(prefix_url[cut:])) if cut else (prefix_url + "/", "")
