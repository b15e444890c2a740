"""Uploads as the tests see them: files on disk, the job in this process, and what other readers find in shards."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from support import tars
from tarmill import storage
from tarmill.formats.keys import base_plus_ext
from tarmill.jobs import upload
from tarmill.jobs.report import Report
from tarmill.jobs.upload import run
from tarmill.spec import RunOptions, UploadSpec


def put_files(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write files below a folder, by name."""
    for name, body in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(body if isinstance(body, bytes) else body.encode())
    return folder


def many_files(samples: int = 6, folders: int = 2, size: int = 10) -> dict[str, bytes]:
    """Files of so many samples in all: d0/s000.txt, d0/s000.cls, ..."""
    return {
        f"d{number % folders}/s{number:03d}.{field}": f"{field} {number} ".encode() + b"x" * size
        for number in range(samples)
        for field in ("txt", "cls")
    }


def run_upload(sources: Any, output: str | Path, **fields: Any) -> Report:
    """Run an upload in this process; RunOptions in `options`, `listener`, everything else is a field of the spec."""
    options, listener = fields.pop("options", {}), fields.pop("listener", None)
    named = [sources] if isinstance(sources, str | Path) else sources
    spec = UploadSpec(sources=tuple(map(str, named)), output=str(output), **fields)
    return run(spec, RunOptions(**{"workers": 1, **options}), listener)


def after_the_plan(monkeypatch: pytest.MonkeyPatch, change: Callable[[], Any]) -> None:
    """Do something when all files are listed and none is read."""
    make_tasks = upload.make_tasks

    def changed(work: Any) -> Any:
        tasks = make_tasks(work)
        change()
        return tasks

    monkeypatch.setattr(upload, "make_tasks", changed)


def shards_of(folder: Path, name: str = "out") -> list[Path]:
    """The shards of a data set in a folder, in order."""
    return sorted(path for path in folder.glob(f"{name}-*") if path.suffix != ".json")


def members_of(shards: Iterable[Path | str]) -> list[tuple[str, bytes]]:
    """Names and contents of all members of shards, in order, as Python's tarfile finds them."""
    return [pair for shard in shards for pair in tars.tarfile_listing(storage.read_bytes(str(shard)))]


def keys_of(shards: Iterable[Path | str]) -> list[str]:
    """Keys in the order in which they stand in shards, once each."""
    pairs = (base_plus_ext(name) for name, _ in members_of(shards))
    return list(dict.fromkeys(pair[0] if pair else "" for pair in pairs))


def tar_of(pairs: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar as Python's tarfile writes it, in pax format."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, body in pairs:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()
