"""What a release publishes is what the chart, the manifests and the pages point at."""

from __future__ import annotations

from typing import Any

import yaml
from support.helm import CHART, ROOT

import tarmill

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yaml").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
ABOUT = yaml.safe_load((CHART / "Chart.yaml").read_text())


def test_the_charts_are_of_the_codes_version() -> None:
    [definitions] = ABOUT["dependencies"]
    about = yaml.safe_load((CHART / "charts" / definitions["name"] / "Chart.yaml").read_text())
    for version in (
        ABOUT["version"],
        ABOUT["appVersion"],
        definitions["version"],
        about["version"],
        about["appVersion"],
    ):
        assert version == tarmill.__version__


def test_each_image_of_the_chart_is_one_that_is_published() -> None:
    published: list[dict[str, Any]] = WORKFLOW["jobs"]["images"]["strategy"]["matrix"]["include"]
    named = {VALUES[key]["repository"] for key in ("image", "runnerImage")} | {VALUES["storage"]["image"]["repository"]}
    assert {f"ghcr.io/tarmill/{image['name']}" for image in published} == named
    for image in published:
        assert (ROOT / image["dockerfile"]).is_file()
        assert (ROOT / image["context"]).is_dir()


def test_the_chart_is_where_pages_and_manifests_look_for_it() -> None:
    steps = WORKFLOW["jobs"]["chart"]["steps"]
    place = next(step["run"] for step in steps if "helm push" in step.get("run", "")).split("helm push ")[1].split()[1]
    assert f"{place}/tarmill" in (ROOT / "docs" / "kubernetes" / "install.md").read_text()
    flux = list(yaml.safe_load_all((ROOT / "deploy" / "flux" / "operator.yaml").read_text()))
    assert flux[1]["spec"]["url"] == f"{place}/tarmill"
    argo = yaml.safe_load((ROOT / "deploy" / "argocd" / "operator.yaml").read_text())["spec"]["source"]
    assert f"oci://{argo['repoURL']}/{argo['chart']}" == f"{place}/tarmill"
    assert argo["targetRevision"] == ABOUT["version"]
    guide = (ROOT / "docs" / "kubernetes" / "index.md").read_text()
    assert f"FROM {VALUES['runnerImage']['repository']}:{tarmill.__version__}\n" in guide
