"""A person's pod template over the operator's: maps merge, lists of named things merge by name (pure)."""

from __future__ import annotations

from typing import Any

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "ports": "containerPort",
}
"""Lists whose items are told apart by a field, as Kubernetes' own merge does; all others are replaced whole."""


def merged(below: Any, above: Any, name: str = "") -> Any:
    """Lay one JSON value over another; neither is changed.

    Args:
        below: what holds where `above` says nothing; null in `above` removes a field of a map.
        above: what a person wrote.
        name: of the field that holds them.
    """
    if isinstance(below, dict) and isinstance(above, dict):
        result = dict(below)
        for key, value in above.items():
            if value is None:
                result.pop(key, None)
            else:
                result[key] = merged(below[key], value, key) if key in below else value
        return result
    if isinstance(below, list) and isinstance(above, list) and name in _KEYS:
        return _merged_lists(below, above, _KEYS[name])
    return above


def _merged_lists(below: list[Any], above: list[Any], key: str) -> list[Any]:
    result = list(below)
    places = {item.get(key): place for place, item in enumerate(result) if isinstance(item, dict)}
    for item in above:
        place = places.get(item.get(key)) if isinstance(item, dict) else None
        if place is None:
            result.append(item)
        else:
            result[place] = merged(result[place], item)
    return result
