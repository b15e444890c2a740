"""Which store serves a URL, and the calls that jobs make without minding which."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from tarmill.errors import SpecError
from tarmill.storage.base import Capabilities, ReadStream, Stat, Store, WriteStream
from tarmill.storage.settings import current_settings
from tarmill.storage.urls import mask, scheme_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Modules are imported with the first URL of their scheme: --help and local jobs never load a network library.
_STORES = {
    "file": ("tarmill.storage.file", "FileStore"),
    "-": ("tarmill.storage.stdio", "StdioStore"),
    "mem": ("tarmill.storage.mem", "MemStore"),
    "http": ("tarmill.storage.http", "HttpStore"),
    "https": ("tarmill.storage.http", "HttpStore"),
    "gs": ("tarmill.storage.gs", "GsStore"),
    "gcs": ("tarmill.storage.gs", "GsStore"),
    "s3": ("tarmill.storage.s3", "S3Store"),
    "s3a": ("tarmill.storage.s3", "S3Store"),
}
# Without its library the fsspec file system of a scheme serves it, if that is installed.
_LIBRARIES = {"s3": "obstore", "s3a": "obstore"}
_EXTRAS = {"gs": "gs", "gcs": "gs", "s3": "s3", "s3a": "s3"}


@cache
def _store_of_scheme(scheme: str) -> Store | None:
    """Make the store of a scheme; None where nothing knows it."""
    from importlib.util import find_spec

    if scheme in _STORES and (scheme not in _LIBRARIES or find_spec(_LIBRARIES[scheme])):
        module, name = _STORES[scheme]
        try:
            store: Store = getattr(import_module(module), name)()
        except ModuleNotFoundError as error:
            if scheme not in _EXTRAS or (error.name or "").startswith("tarmill"):
                raise
            raise _not_installed(scheme, error.name or "") from error
        return store
    if scheme in _LIBRARIES and not find_spec("s3fs"):
        raise _not_installed(scheme, _LIBRARIES[scheme])
    try:
        from tarmill.storage.fsspec_store import FsspecStore
    except ModuleNotFoundError as error:
        if error.name != "fsspec":
            raise
        return None
    return FsspecStore.for_scheme(scheme)


def _not_installed(scheme: str, package: str) -> SpecError:
    return SpecError(
        f"{scheme}:// needs the library {package}, which is not installed; pip install 'tarmill[{_EXTRAS[scheme]}]'",
        field="url",
        value=f"{scheme}://",
    )


def store_for(url: str) -> Store:
    """Find the store that serves a URL; nothing is asked of it yet.

    Raises:
        SpecError: `pipe:` URLs, and schemes that no store knows.
    """
    scheme = scheme_of(url)
    if scheme != "pipe" and (store := _store_of_scheme(scheme)):
        return store
    shown = mask(url)
    if scheme == "pipe":
        raise SpecError(
            f"{shown!r}: `pipe:` URLs are not run, since a shell command hides its failures: a download that breaks "
            "off looks like a shorter shard. Name the file or http(s) URL itself, or write `command | tool - ...` with "
            "`set -o pipefail`",
            field="url",
            value=shown,
        )
    raise SpecError(
        f"{shown!r}: unknown scheme {scheme!r}; known are plain paths, `-`, "
        + ", ".join(f"{name}://" for name in sorted(_STORES) if name != "-")
        + ", and what an installed fsspec file system serves (pip install 'tarmill[fsspec]')",
        field="url",
        value=shown,
    )


def capabilities(url: str) -> Capabilities:
    """Tell what the store of a URL can do."""
    return store_for(url).capabilities


def stat(url: str) -> Stat:
    """Look at one object: size, version, time. Raises NotFoundError, AccessError, StorageError."""
    return store_for(url).stat(url)


def stat_many(urls: Sequence[str]) -> Iterator[Stat]:
    """Look at many objects, several at a time where they are remote; in the order given.

    Raises:
        StorageError: at the first object that cannot be looked at.
    """
    if all(scheme_of(url) in ("file", "mem") for url in urls):
        yield from map(stat, urls)
        return
    from concurrent.futures import ThreadPoolExecutor  # dear, and local jobs need no threads

    pool = ThreadPoolExecutor(current_settings().parallel_requests, thread_name_prefix="stat")
    try:
        yield from pool.map(stat, urls)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def open_read(url: str, *, version: str | None = None) -> ReadStream:
    """Open an object from its start, pinned to one version (see `Store.open_read`)."""
    return store_for(url).open_read(url, version=version)


def read_ranges(url: str, ranges: Sequence[tuple[int, int]], *, version: str | None = None) -> list[bytes]:
    """Read ranges (offset, length) of one version of an object (see `Store.read_ranges`)."""
    return store_for(url).read_ranges(url, ranges, version=version)


def open_write(url: str, *, owner: str = "", exclusive: bool = False, content_type: str | None = None) -> WriteStream:
    """Begin an object that appears whole on a clean exit, or not at all (see `Store.open_write`)."""
    return store_for(url).open_write(url, owner=owner, exclusive=exclusive, content_type=content_type)


def list_urls(prefix_url: str) -> Iterator[Stat]:
    """List what begins with the prefix, sorted by name (see `Store.list`)."""
    return store_for(prefix_url).list(prefix_url)


def delete(url: str) -> None:
    """Remove an object; a missing one is fine."""
    store_for(url).delete(url)


def sweep(folder_url: str, owner: str, outputs: Container[str] = ()) -> int:
    """Remove what killed processes of `owner` left in a folder (see `Store.sweep`)."""
    return store_for(folder_url).sweep(folder_url, owner, outputs)


def read_bytes(url: str, *, version: str | None = None) -> bytes:
    """Read a whole (small) object."""
    with open_read(url, version=version) as stream:
        return stream.readall()


def write_bytes(
    url: str, data: ReadableBuffer | Iterable[ReadableBuffer], *, owner: str = "", exclusive: bool = False
) -> Stat:
    """Store a whole (small) object, or leave what was there untouched; returns its stat."""
    with open_write(url, owner=owner, exclusive=exclusive) as stream:
        if isinstance(data, bytes | bytearray | memoryview):
            stream.write(data)
        else:
            stream.write_all(data)  # type: ignore[arg-type]
    return stream.receipt
