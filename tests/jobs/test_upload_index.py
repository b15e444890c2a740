"""`htupload --index`: the same files for other readers as `tarmill index` writes, for old shards and new."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tarmill.errors import SpecError
from tarmill.jobs.sidecars import run as run_index
from tarmill.jobs.upload import run
from tarmill.spec import RunOptions, UploadSpec

KINDS = ("wids", "energon", "dali", "sizes", "timm")


def files_of(folder: Path) -> dict[str, bytes]:
    """Read all small files that other readers begin with."""
    names = [path for path in folder.rglob("*") if path.suffix in (".idx", ".json") and "_tarmill" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in names if ".manifest." not in path.name}


def upload(source: Path, folder: Path, **options: object) -> None:
    spec = UploadSpec(sources=(str(source),), output=f"{folder}/p-@.tar", index=KINDS, samples_per_shard=2, **options)  # type: ignore[arg-type]
    run(spec, RunOptions(workers=1))


def test_its_files_are_those_of_tarmill_index_also_after_an_append(tmp_path: Path) -> None:
    for number, name in enumerate(("old", "new")):
        (tmp_path / name).mkdir()
        for item in range(5):
            (tmp_path / name / f"{number}{item}.txt").write_text(f"text {item}")
    upload(tmp_path / "old", tmp_path / "out")
    upload(tmp_path / "new", tmp_path / "out", append=True)
    found = files_of(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "p.manifest.json").read_text())["index"] == sorted(KINDS)
    for name in found:
        (tmp_path / "out" / name).unlink()
    run_index(f"{tmp_path}/out/p-{{000000..000005}}.tar", KINDS, RunOptions(workers=1))
    assert files_of(tmp_path / "out") == found


def test_what_comes_on_standard_input_is_not_indexed_in_passing() -> None:
    spec = UploadSpec(sources=("-",), output="p-@.tar", index=("sizes",))
    with pytest.raises(SpecError, match="--index"):
        run(spec, RunOptions())
