"""Where bytes come from and go to: files, `-`, http(s), memory, behind one interface with one set of promises.

Reads are pinned to one version and end only where the object ends. Writes appear whole or not at all. Errors are
StorageError and its kinds, and hold no secret.
"""

from tarmill.storage.base import Capabilities, PendingCommit, PositionalReads, ReadStream, Stat, Store, WriteStream
from tarmill.storage.registry import (
    capabilities,
    delete,
    list_urls,
    open_read,
    open_write,
    read_bytes,
    read_ranges,
    stat,
    stat_many,
    store_for,
    sweep,
    write_bytes,
)
from tarmill.storage.settings import StorageSettings, configure, current_settings
from tarmill.storage.urls import join_url, mask, scheme_of

__all__ = [
    "Capabilities",
    "PendingCommit",
    "PositionalReads",
    "ReadStream",
    "Stat",
    "StorageSettings",
    "Store",
    "WriteStream",
    "capabilities",
    "configure",
    "current_settings",
    "delete",
    "join_url",
    "list_urls",
    "mask",
    "open_read",
    "open_write",
    "read_bytes",
    "read_ranges",
    "scheme_of",
    "stat",
    "stat_many",
    "store_for",
    "sweep",
    "write_bytes",
]
