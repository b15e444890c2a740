"""What fsspec's file systems tell of an object, in a dozen spellings, as our stat (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tarmill.storage.base import Stat

# What names a content, best first; what follows them says only when it was changed last.
_STRONG = ("generation", "etag", "ETag", "content_md5", "sha256", "blob_id", "xet_hash", "version_id", "VersionId")
_TIMES = (
    *("mtime", "modified", "LastModified", "last_modified", "modificationTime", "updated", "modify", "last_commit"),
    *("created", "creation_time"),
)


def info_stat(url: str, info: Mapping[str, Any]) -> Stat:
    """Make a stat of an `info` or a row of a detailed listing."""
    size = info.get("size")
    mtime_s = None
    when: Any = None
    for name in _TIMES:
        if info.get(name) is not None:
            when = info[name]
            mtime_s = _seconds(when)
            break
    return Stat(url, None if size is None else int(size), _version(info, size, when), mtime_s)


def _version(info: Mapping[str, Any], size: Any, when: Any) -> str:
    for name in _STRONG:
        value = info.get(name)
        if value:
            return f"{name.lower()}:{str(value).strip(chr(34))};{size}"
    if when is None:
        return ""
    inode = f";{info['ino']}" if info.get("ino") else ""
    return f"modified:{when.isoformat() if isinstance(when, datetime) else when};{size}{inode}"


def _seconds(when: Any) -> float | None:
    """Read a time: seconds, milliseconds (as HDFS counts), a datetime, or its text."""
    if isinstance(when, datetime):
        return when.timestamp()
    if isinstance(when, int | float):
        return when / 1000 if when > 1e11 else float(when)
    try:
        return datetime.fromisoformat(str(when)).timestamp()
    except ValueError:
        return None
