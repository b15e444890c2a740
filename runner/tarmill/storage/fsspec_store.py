"""Any other URL that an installed fsspec file system serves: sftp, abfs, hf, memory, ftp, webhdfs, ... in one class.

What is promised depends on the file system; docs/other_stores.md has the table.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Container, Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any, ClassVar, Self

from tarmill.errors import NotFoundError, SpecError
from tarmill.storage.base import Capabilities, Stat
from tarmill.storage.file_write import DEFAULT_OWNER, TEMP_NAME
from tarmill.storage.fsspec_info import info_stat
from tarmill.storage.fsspec_mount import Mount, class_for, mount_for
from tarmill.storage.fsspec_read import FsspecBody, look
from tarmill.storage.fsspec_write import DeferredWriteStream, FsspecWriteStream, PutWriteStream, RenamedWriteStream
from tarmill.storage.remote import RemoteStore
from tarmill.storage.retry import Retrier, with_retries
from tarmill.storage.settings import StorageSettings, current_settings
from tarmill.storage.urls import mask

# Tried: nothing appears before commit(), and nothing stays after discard(). Others ignore `autocommit`.
_DEFERS = frozenset({"s3", "s3a", "gs", "gcs"})
# One call stores the whole object there, or nothing.
_PUTS = frozenset({"memory", "abfs", "abfss", "az", "hf"})
_SHARED = {"memory": "process", "local": "host", "file": "host"}


class FsspecStore(RemoteStore):
    """The URLs of one scheme."""

    schemes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, scheme: str, kind: Any) -> None:
        self._scheme = scheme
        self._kind = kind

    @classmethod
    def for_scheme(cls, scheme: str) -> Self | None:
        """Make the store of a scheme; None where fsspec does not know it.

        Raises:
            SpecError: it knows it, and a package is missing.
        """
        kind = class_for(scheme)
        return None if kind is None else cls(scheme, kind)

    @cached_property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """What is true of every fsspec file system, and who sees the same bytes."""
        return Capabilities(
            strong_versions=False,
            exclusive_create=False,
            shared=_SHARED.get(self._scheme, "everywhere"),  # type: ignore[arg-type]
        )

    def stat(self, url: str) -> Stat:
        """Look at one object."""
        settings = current_settings()
        path = self._path(url)
        return with_retries(lambda: look(mount_for(url, settings), path, url), Retrier(settings))

    def _body(
        self, url: str, settings: StorageSettings, start: int = 0, end: int | None = None, version: str | None = None
    ) -> FsspecBody:
        return FsspecBody(self._path(url), url, settings, start, end, version)

    def open_write(
        self, url: str, *, owner: str = "", exclusive: bool = False, content_type: str | None = None
    ) -> FsspecWriteStream:
        """Begin an object, in the way its file system can do whole or not at all."""
        if url.endswith("/"):
            raise SpecError(f"{mask(url)!r} names a folder; expected a name at its end", field="url", value=mask(url))
        path, settings = self._path(url), current_settings()
        mount = with_retries(lambda: mount_for(url, settings), Retrier(settings))
        if self._scheme in _DEFERS:
            return DeferredWriteStream(mount, path, url, settings, exclusive)
        if self._stores_in_one_call():
            return PutWriteStream(mount, path, url, settings, exclusive)
        return RenamedWriteStream(mount, path, url, settings, exclusive, owner)

    def _stores_in_one_call(self) -> bool:
        """Tell object stores from those that have files: they are asynchronous, and know how to put a body."""
        kind = self._kind
        return self._scheme in _PUTS or (getattr(kind, "async_impl", False) and "_pipe_file" in vars(kind))

    def list(self, prefix_url: str) -> Iterator[Stat]:
        """List by `find`, through all folders below."""
        folder_url = prefix_url[: prefix_url.rindex("/") + 1]
        start = prefix_url[len(folder_url) :]
        settings = current_settings()
        folder = self._path(folder_url, is_folder=True).rstrip("/")

        def find() -> dict[str, dict[str, Any]]:
            mount = mount_for(prefix_url, settings)
            more = {"prefix": start} if start and self._finds_by_prefix() else {}
            return mount.do(lambda: _find(mount, folder, more), prefix_url, "listing")

        found = []
        with suppress(NotFoundError):
            for path, info in with_retries(find, Retrier(settings)).items():
                name = path[len(folder) :].lstrip("/") if folder else path.lstrip("/")
                last = name.rpartition("/")[2]
                if last and name.startswith(start) and not re.fullmatch(TEMP_NAME, last):
                    found.append((name, info_stat(folder_url + name, info)))
        return iter([stat for _, stat in sorted(found, key=lambda item: item[0])])

    def _finds_by_prefix(self) -> bool:
        find = getattr(self._kind, "_find", self._kind.find)
        return "prefix" in inspect.signature(find).parameters

    def delete(self, url: str) -> None:
        """Remove an object; a missing one is fine."""
        if url.endswith("/"):
            raise SpecError(f"{mask(url)!r} names a folder; expected a name at its end", field="url", value=mask(url))
        path, settings = self._path(url), current_settings()

        def remove() -> None:
            mount = mount_for(url, settings)
            mount.do(lambda: mount.fs.rm_file(path), url, "removing")

        with suppress(NotFoundError):
            with_retries(remove, Retrier(settings))

    def sweep(self, folder_url: str, owner: str, outputs: Container[str] = ()) -> int:
        """Remove the temp files of `owner` in this folder; how many that were."""
        folder = self._path(folder_url, is_folder=True)
        mount = mount_for(folder_url, current_settings())

        def remove() -> int:
            count = 0
            mount.fs.invalidate_cache(folder)
            for path in mount.fs.ls(folder, detail=False):
                match = re.fullmatch(TEMP_NAME, path.rstrip("/").rpartition("/")[2])
                if match and match["owner"] == (owner or DEFAULT_OWNER):
                    with suppress(FileNotFoundError):  # its writer finished, or another sweeper was faster
                        mount.fs.rm_file(path)
                        count += 1
            return count

        try:
            return mount.do(remove, folder_url, "sweeping")
        except NotFoundError:
            return 0

    def _path(self, url: str, is_folder: bool = False) -> str:
        """Give what the file system calls a URL.

        Raises:
            SpecError: it would drop a part of the name, as some do with what follows `?`.
        """
        path = str(self._kind._strip_protocol(url))
        name = url.rstrip("/").rpartition("/")[2]
        if not is_folder and not path.endswith(name):
            raise SpecError(
                f"{mask(url)!r}: the file system of {self._scheme}:// reads this name as {mask(path)!r}; "
                "names with `?` or `#` cannot be used there",
                field="url",
                value=mask(url),
            )
        return path


def _find(mount: Mount, folder: str, more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    mount.fs.invalidate_cache()
    found: dict[str, dict[str, Any]] = mount.fs.find(folder, withdirs=False, detail=True, **more)
    return found
