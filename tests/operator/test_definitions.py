"""The custom resource definitions in `crds/`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tarmill.spec import KINDS
from tarmill_operator.crds import all_crds, to_yaml

FOLDER = Path(__file__).parents[2] / "crds"


def test_the_files_are_what_the_specs_say() -> None:
    made = {name: to_yaml(document) for name, document in all_crds().items()}
    found = {path.name: path.read_text().partition("\n")[2] for path in FOLDER.glob("*.yaml")}
    assert found == made, "make crds"
    assert len(made) == len(KINDS)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_definition_fits_into_a_plain_kubectl_apply(path: Path) -> None:
    assert len(json.dumps(yaml.safe_load(path.read_text()))) < 150_000
