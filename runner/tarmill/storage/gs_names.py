"""How objects of Google Cloud Storage are named: in URLs, in paths of its JSON interface, and by generation (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from tarmill.errors import SpecError
from tarmill.storage.base import Stat
from tarmill.storage.urls import mask

_GENERATION = "generation:"


def split_url(url: str, *, whole_bucket: bool = False) -> tuple[str, str]:
    """Split `gs://bucket/name` into bucket and name; names are taken as they stand, nothing is unquoted.

    Raises:
        SpecError: there is no bucket, or no name where one is needed.
    """
    bucket, _, name = url.partition("://")[2].partition("/")
    if not bucket or not (name or whole_bucket):
        raise SpecError(
            f"{mask(url)!r} names no object; expected gs://BUCKET/NAME, such as gs://my-bucket/train-0000.tar",
            field="url",
            value=mask(url),
        )
    return bucket, name


def object_path(bucket: str, name: str) -> str:
    """Give the path of an object below the server's address."""
    return f"/storage/v1/b/{quote(bucket, safe='')}/o/{quote(name, safe='')}"


def bucket_path(bucket: str) -> str:
    """Give the path of a bucket's list of objects."""
    return f"/storage/v1/b/{quote(bucket, safe='')}/o"


def upload_path(bucket: str) -> str:
    """Give the path that uploads to a bucket go to."""
    return f"/upload/storage/v1/b/{quote(bucket, safe='')}/o"


def version_of(generation: object) -> str:
    """Make a version of a generation."""
    return f"{_GENERATION}{generation}" if generation else ""


def generation_of(version: str | None) -> str | None:
    """Give the generation that a version names; None where it names none."""
    if not version or not version.startswith(_GENERATION):
        return None
    return version[len(_GENERATION) :]


def resource_stat(url: str, resource: Mapping[str, Any]) -> Stat:
    """Make a stat of what the JSON interface tells of an object."""
    size = resource.get("size")
    updated = resource.get("updated")
    mtime_s = None
    if updated:
        try:
            mtime_s = datetime.fromisoformat(str(updated)).timestamp()
        except ValueError:
            mtime_s = None
    return Stat(url, None if size is None else int(size), version_of(resource.get("generation")), mtime_s)
