"""What tests of s3:// share: one SeaweedFS for all that run in a process, and a place of its own for each test."""

from __future__ import annotations

import os

import pytest

from support.places import Place
from support.seaweed import BUCKET, SeaweedFS
from tarmill.storage import s3_client

PARAM = pytest.param("s3", marks=[pytest.mark.real, pytest.mark.xdist_group("s3")])
MARKS = [pytest.mark.real, pytest.mark.xdist_group("s3")]


def isolate(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    """Have these variables and nothing else of AWS, neither files nor clients of earlier tests."""
    for name in os.environ:
        if name.startswith("AWS_") or name.upper().endswith("_PROXY") or name == "SSL_CERT_FILE":
            monkeypatch.delenv(name)
    for name, value in {
        "AWS_CONFIG_FILE": os.devnull + "/none",
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull + "/none",
        "AWS_EC2_METADATA_DISABLED": "true",
        **environment,
    }.items():
        monkeypatch.setenv(name, value)
    s3_client.forget_clients()


def place(request: pytest.FixtureRequest, name: str) -> Place:
    """Give a folder of the bucket to a test."""
    server: SeaweedFS = request.getfixturevalue("seaweed")
    isolate(request.getfixturevalue("monkeypatch"), server.environment())
    folder = f"s3://{BUCKET}/{name}/"
    return Place("s3", lambda one: folder + one, folder, "", lambda: server.uploads(f"{name}/"), 20_000_000)
