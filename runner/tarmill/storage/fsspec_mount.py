"""The fsspec file systems of this process: which class serves a scheme, and one instance for each place and settings.

Instances hold connections, credentials and event loops: they are made where they are used, and never cross a fork.
"""

from __future__ import annotations

import inspect
import json
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import fsspec
from fsspec.registry import known_implementations

from tarmill.errors import SpecError, StorageError
from tarmill.storage.fsspec_call import within
from tarmill.storage.fsspec_errors import translated
from tarmill.storage.settings import StorageSettings
from tarmill.storage.urls import scheme_of

T = TypeVar("T")
# These show another file system in another way, or are no storage at all.
_WRAPPERS = frozenset(
    {"async_wrapper", "asyncwrapper", "blockcache", "cached", "data", "dir", "filecache", "generic", "git", "github"}
    | {"gist", "http", "https", "libarchive", "pyscript", "reference", "simplecache", "tar", "zip", "dask", "jlab"}
    | {"jupyter"}
)
_S3 = ("s3", "s3a")
SLOW_BYTES_PER_S = 100_000
"""A store that moves fewer bytes is taken for silent."""

_lock = threading.Lock()
_mounts: dict[tuple[object, ...], Mount] = {}
_left_behind: list[object] = []


def _forget_mounts() -> None:
    """Start anew in a forked child; the parent's are kept, since ending them would touch its connections."""
    global _lock, _mounts
    _left_behind.append(_mounts)
    _lock = threading.Lock()
    _mounts = {}


os.register_at_fork(after_in_child=_forget_mounts)


def class_for(scheme: str) -> Any:
    """Find the file system class of a scheme; None where fsspec knows none that stores anything.

    Raises:
        SpecError: fsspec knows it, and the package it needs is not installed.
    """
    if scheme in _WRAPPERS:
        return None
    try:
        return fsspec.get_filesystem_class(scheme)
    except ValueError:
        return None
    except ImportError as error:
        cure = known_implementations.get(scheme, {}).get("err") or f"install the package {error.name}"
        raise SpecError(
            f"{scheme}:// needs a package that is not installed: {cure} ({_first_line(error)})",
            field="url",
            value=f"{scheme}://",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class Mount:
    """One file system instance; calls into it have a time limit and our errors.

    Args:
        fs: the instance.
        silence_s: longest wait for a call that moves no bytes.
    """

    def __init__(self, fs: Any, silence_s: float) -> None:
        self.fs = fs
        self._silence_s = silence_s
        # Those without an event loop often have one connection for everything.
        self._lock = nullcontext() if getattr(fs, "async_impl", False) else threading.RLock()

    def limit_s(self, size_bytes: int = 0) -> float:
        """Give the longest wait for a call that moves so many bytes."""
        return self._silence_s + size_bytes / SLOW_BYTES_PER_S

    def locked(self, function: Callable[[], T]) -> Callable[[], T]:
        """Make a call wait for its turn, where the file system takes one at a time."""

        def call() -> T:
            with self._lock:
                return function()

        return call

    def do(self, function: Callable[[], T], url: str, doing: str, size_bytes: int = 0) -> T:
        """Call into the file system.

        Raises:
            StorageError and its kinds, for whatever the library raises, and for a call that takes too long.
        """
        try:
            return translated(lambda: within(self.limit_s(size_bytes), self.locked(function)), url, doing)
        except StorageError as error:
            self.failed(error)
            raise

    def failed(self, error: StorageError) -> None:
        """Let the next call have an instance of its own, where this one's only connection may be dead."""
        if error.facts.get("network") and not getattr(self.fs, "async_impl", False):
            forget(self)


def forget(mount: Mount) -> None:
    """Use a new instance from now on; the old one is kept, since ending it may wait for its connection."""
    with _lock:
        keys = [key for key, known in _mounts.items() if known is mount]
        _left_behind.extend(_mounts.pop(key) for key in keys)


def mount_for(url: str, settings: StorageSettings) -> Mount:
    """Give this process's file system for a URL.

    Raises:
        SpecError: an option that its class does not take. AccessError, StorageError: it cannot be reached.
    """
    scheme = scheme_of(url)
    kind = class_for(scheme)
    assert kind is not None, "for_scheme looked"
    place = dict(kind._get_kwargs_from_urls(url))
    options = settings.options_of(scheme)
    arguments = {**_from_settings(scheme, kind, settings, options), **_typed(options), **place}
    # what stands in the environment is read once, so a change of it is another place
    environment = tuple(sorted((name, os.environ[name]) for name in os.environ if name.startswith("AWS_")))
    key = (kind, repr(sorted(arguments.items())), environment if scheme in _S3 else (), settings.read_timeout_s)
    with _lock:
        mount = _mounts.get(key)
    if mount is None:
        mount = _connect(scheme, kind, arguments, url, settings)
        with _lock:
            mount = _mounts.setdefault(key, mount)
    return mount


def _connect(scheme: str, kind: Any, arguments: dict[str, Any], url: str, settings: StorageSettings) -> Mount:
    def make() -> Any:
        try:
            return kind(use_listings_cache=False, skip_instance_cache=True, **arguments)
        except TypeError as error:
            names = ", ".join(sorted(settings.options_of(scheme))) or "none"
            raise SpecError(
                f"the file system of {scheme}:// cannot be made with these options ({names}): {error}",
                field="store_option",
                value=scheme,
            ) from error

    limit_s = settings.connect_timeout_s + settings.read_timeout_s
    return Mount(translated(lambda: within(limit_s, make), url, "connecting to"), settings.read_timeout_s)


def _from_settings(scheme: str, kind: Any, settings: StorageSettings, options: dict[str, str]) -> dict[str, Any]:
    """Say in a class's own words what our settings say, where it has words for it; takes those from `options`."""
    known = inspect.signature(kind.__init__).parameters
    found: dict[str, Any] = {}
    if settings.anonymous and "anon" in known:
        found["anon"] = True
    if settings.requester_pays and "requester_pays" in known:
        found["requester_pays"] = True
    if scheme in _S3:
        found["config_kwargs"] = {
            "connect_timeout": settings.connect_timeout_s,
            "read_timeout": settings.read_timeout_s,
        }
        if settings.s3_endpoint:
            found["endpoint_url"] = settings.s3_endpoint
        client = {"verify": settings.ca_file, "region_name": options.pop("region", None)}
        found["client_kwargs"] = {name: value for name, value in client.items() if value is not None}
    return found


def _typed(options: dict[str, str]) -> dict[str, Any]:
    """Read numbers, true, false and null as such; all else is text, and so is what is quoted (pure)."""
    found: dict[str, Any] = {}
    for name, text in options.items():
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found
