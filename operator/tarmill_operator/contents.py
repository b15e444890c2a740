"""What is put into objects at the moment they are made: certificates into Secrets, scripts into ConfigMaps."""

from __future__ import annotations

import json

from tarmill_operator.api import Api, ApiError
from tarmill_operator.certificates import make_certificates
from tarmill_operator.model import Cause, Ref, Resource
from tarmill_operator.names import HOSTS_ANNOTATION, SCRIPTS_ANNOTATION


async def filled(api: Api, wanted: Resource) -> Resource | Cause:
    """Give an object with all that it is to hold, or what is lacking.

    Args:
        api: where scripts are read; a run keeps them as they are now.
        wanted: the object.

    Raises:
        ApiError: a script could not be read.
    """
    annotations = wanted["metadata"].get("annotations") or {}
    if HOSTS_ANNOTATION in annotations:
        return {**wanted, "stringData": make_certificates(annotations[HOSTS_ANNOTATION].split(","))}
    for name, source in json.loads(annotations.get(SCRIPTS_ANNOTATION, "{}")).items():
        content = await _content_of(api, wanted["metadata"]["namespace"], source)
        if isinstance(content, Cause):
            return content
        field, text = content
        wanted = {**wanted, field: {**wanted.get(field, {}), name: text}}
    return wanted


async def _content_of(api: Api, namespace: str, source: dict[str, str]) -> tuple[str, str] | Cause:
    """Read a key of a ConfigMap: in which field it is, and its value."""
    name, key = source["name"], source["key"]
    try:
        there = await api.get(namespace, Ref("v1", "ConfigMap", name))
    except ApiError as error:
        if error.status == 404:
            return Cause("ConfigMapMissing", f'ConfigMap "{name}", which holds the script, is not there; create it')
        raise
    for field in ("data", "binaryData"):
        if key in (there.get(field) or {}):
            return field, there[field][key]
    return Cause("ConfigMapMissing", f'ConfigMap "{name}" has no key "{key}", which is to hold the script; add it')
