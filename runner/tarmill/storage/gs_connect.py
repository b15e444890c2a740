"""The clients of this process for Google Cloud Storage: one for each account and settings, with credentials found here.

After a fork the child makes its own: an event loop and its connections belong to one process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import threading
from collections.abc import Mapping
from typing import Any

# Before gcsfs is imported: with it, each bucket's kind is asked for over gRPC, which no emulator answers.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

import aiohttp
import gcsfs
from google.auth import exceptions as auth_errors

from tarmill.errors import SpecError
from tarmill.storage.gs_client import GsClient
from tarmill.storage.gs_errors import raise_credentials_error
from tarmill.storage.settings import StorageSettings

OPTIONS = ("endpoint_url", "user_project", "block_size")
_READ_BUFFER_BYTES = 1 << 20
_EMULATOR = "STORAGE_EMULATOR_HOST"

_lock = threading.Lock()
_clients: dict[tuple[object, ...], GsClient] = {}
_left_behind: list[object] = []
# What it would print is told by our errors, without its tracebacks.
if "GCSFS_DEBUG" not in os.environ:
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL + 1)


def _forget_clients() -> None:
    """Start anew in a forked child. The parent's clients are kept, since ending them would touch its event loop."""
    global _lock, _clients
    _left_behind.append(_clients)
    _lock = threading.Lock()
    _clients = {}


os.register_at_fork(after_in_child=_forget_clients)


def client_for(settings: StorageSettings, url: str) -> GsClient:
    """Give this process's client for these settings; `url` is named when there are no credentials.

    Raises:
        AccessError: no credentials are found. SpecError: an option is unknown.
    """
    options = settings.options_of("gs") | settings.options_of("gcs")
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise SpecError(
            f"store option gs.{unknown[0]} is not known; expected one of {', '.join('gs.' + name for name in OPTIONS)}",
            field="store_option",
            value=f"gs.{unknown[0]}",
        )
    emulator = os.environ.get(_EMULATOR, "")
    key = (
        tuple(sorted(options.items())),
        emulator,
        os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"),
        settings.anonymous,
        settings.requester_pays,
        settings.ca_file,
        settings.connect_timeout_s,
        settings.read_timeout_s,
    )
    with _lock:
        client = _clients.get(key)
        if client is None:
            fs = _connect(settings, options, emulator, url)
            own = bool(emulator) or "endpoint_url" in options
            client = _clients[key] = GsClient(fs, settings, options.get("block_size"), own)
    return client


def _connect(settings: StorageSettings, options: Mapping[str, str], emulator: str, url: str) -> gcsfs.GCSFileSystem:
    endpoint = options.get("endpoint_url")
    anonymous = settings.anonymous or (bool(emulator) and endpoint is None)
    session: dict[str, Any] = {
        "auto_decompress": False,  # stored bytes, not an encoding of them
        "read_bufsize": _READ_BUFFER_BYTES,
        "timeout": aiohttp.ClientTimeout(
            total=None,
            connect=settings.connect_timeout_s + settings.read_timeout_s,
            sock_connect=settings.connect_timeout_s,
            sock_read=settings.read_timeout_s,
        ),
    }
    if settings.ca_file is not None:
        session["connector"] = _connector(settings.ca_file)
    try:
        return gcsfs.GCSFileSystem(
            token="anon" if anonymous else "google_default",
            access="read_write",
            endpoint_url=endpoint.rstrip("/") if endpoint else None,
            requester_pays=options.get("user_project") or settings.requester_pays,
            session_kwargs=session,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
    except (auth_errors.GoogleAuthError, ValueError, OSError) as error:
        raise_credentials_error(error, url)


def _connector(ca_file: str) -> aiohttp.TCPConnector:
    from fsspec.asyn import get_loop

    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SpecError(
            f"the CA file {ca_file!r} cannot be used: {error.strerror or error}; expected a PEM file",
            field="ca_file",
            value=ca_file,
        ) from error

    async def make() -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(ssl=context)

    return asyncio.run_coroutine_threadsafe(make(), get_loop()).result()
