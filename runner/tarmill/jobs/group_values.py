"""The typed key of a group beside its combined samples, in run files: what made it is no longer in them."""

from __future__ import annotations

import base64
import json
from typing import Any

from tarmill.formats.tar_header import BLOCK
from tarmill.formats.tar_write import odd_header

GROUP_FIELD = "__group__"
"""Field of a combined sample in a run file; never written to outputs, since names with "__" are not."""


def group_member(key: str, value: Any) -> bytes:
    """Make the tar member that keeps the typed key of a combined sample's group."""
    body = json.dumps(_to_json(value)).encode()
    name = f"{key}.{GROUP_FIELD}".encode("utf-8", "surrogateescape")
    return odd_header(name, len(body)) + body + bytes(-len(body) % BLOCK)


def group_value(body: bytes) -> Any:
    """Read the typed key of a combined sample's group."""
    return _from_json(json.loads(body))


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"b": base64.b64encode(value).decode()}
    if isinstance(value, str):
        return {"s": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}
    if isinstance(value, tuple | list):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        (kind, text), *_ = value.items()
        raw = base64.b64decode(text)
        return raw if kind == "b" else raw.decode("utf-8", "surrogatepass")
    return tuple(_from_json(item) for item in value) if isinstance(value, list) else value
