"""tarmill: map-reduce for sharded tar files.

The public names are below, imported when they are first used, so that `import tarmill` costs nothing:

    open_shards, ShardWriter        samples in and out, for training loops and notebooks
    ShardPattern                    the notation for many shards
    MapSpec, ExtractSpec, ShuffleSpec, SortSpec, UploadSpec, RunOptions, ReorderOptions, run
                                    the jobs, as the command line runs them
    TarmillError and its kinds      in `tarmill.errors`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tarmill.errors import TarmillError as TarmillError
    from tarmill.formats.shards import ShardPattern as ShardPattern
    from tarmill.jobs.api import ShardWriter as ShardWriter
    from tarmill.jobs.api import open_shards as open_shards
    from tarmill.jobs.api import run as run
    from tarmill.spec import FORMAT_VERSION as FORMAT_VERSION
    from tarmill.spec import ExtractSpec as ExtractSpec
    from tarmill.spec import MapSpec as MapSpec
    from tarmill.spec import ReorderOptions as ReorderOptions
    from tarmill.spec import RunOptions as RunOptions
    from tarmill.spec import ShuffleSpec as ShuffleSpec
    from tarmill.spec import SortSpec as SortSpec
    from tarmill.spec import UploadSpec as UploadSpec

_PLACES = {
    "TarmillError": "tarmill.errors",
    "ShardPattern": "tarmill.formats.shards",
    "ShardWriter": "tarmill.jobs.api",
    "open_shards": "tarmill.jobs.api",
    "run": "tarmill.jobs.api",
    "ExtractSpec": "tarmill.spec",
    "FORMAT_VERSION": "tarmill.spec",
    "MapSpec": "tarmill.spec",
    "ReorderOptions": "tarmill.spec",
    "RunOptions": "tarmill.spec",
    "ShuffleSpec": "tarmill.spec",
    "SortSpec": "tarmill.spec",
    "UploadSpec": "tarmill.spec",
}

__all__ = [
    "ExtractSpec",
    "MapSpec",
    "ReorderOptions",
    "RunOptions",
    "ShardPattern",
    "ShardWriter",
    "ShuffleSpec",
    "SortSpec",
    "TarmillError",
    "UploadSpec",
    "open_shards",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'tarmill' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
