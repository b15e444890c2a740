"""What the operator is told by its environment."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from tarmill.errors import UsageError


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of the process.

    Attributes:
        namespaces: that are watched; all where there are none.
        namespace: that the operator runs in; "" outside a cluster, where no leader is elected.
        name: of this process, in Events and in the Lease.
        image: of runner and workers, where a resource names none.
        image_pull_policy: likewise.
        cluster_domain: suffix of Service names.
        progress_s: how often a runner is asked how it goes.
        workers: resources that are dealt with at a time.
        api_calls_per_second: most calls to the API server in the long run.
        relist_s: how often everything is listed to correct what watches told.
        elect_leader: whether several operators agree by a Lease on the one that acts.
        lease: its name.
        port: of probes and metrics.
        log_format: "text" or "json".
        log_level: as Python names them.
    """

    image: str
    namespaces: tuple[str, ...] = ()
    namespace: str = ""
    name: str = ""
    image_pull_policy: str = "IfNotPresent"
    cluster_domain: str = "cluster.local"
    progress_s: float = 5.0
    workers: int = 8
    api_calls_per_second: float = 100.0
    relist_s: float = 300.0
    elect_leader: bool = True
    lease: str = "tarmill-operator"
    port: int = 8080
    log_format: str = "text"
    log_level: str = "INFO"


def from_environment(environment: Mapping[str, str]) -> Config:
    """Read the settings from variables `TARMILL_*`.

    Raises:
        UsageError: one is missing, or is not what it should be.
    """
    read = _Reader(environment)
    image = read.text("IMAGE", "")
    if not image:
        raise UsageError("TARMILL_IMAGE is not set; it names the image of runner and workers")
    return Config(
        image=image,
        namespaces=tuple(name for part in read.text("WATCH_NAMESPACES", "").split(",") if (name := part.strip())),
        namespace=read.text("NAMESPACE", ""),
        name=read.text("POD_NAME", "") or socket.gethostname(),
        image_pull_policy=read.choice("IMAGE_PULL_POLICY", "IfNotPresent", ("Always", "IfNotPresent", "Never")),
        cluster_domain=read.text("CLUSTER_DOMAIN", "cluster.local"),
        progress_s=read.number("PROGRESS_SECONDS", 5.0, at_least=0.5),
        workers=int(read.number("WORKERS", 8, at_least=1)),
        api_calls_per_second=read.number("API_CALLS_PER_SECOND", 100.0, at_least=1),
        relist_s=read.number("RELIST_SECONDS", 300.0, at_least=1),
        elect_leader=read.choice("ELECT_LEADER", "true", ("true", "false")) == "true",
        lease=read.text("LEASE", "tarmill-operator"),
        port=int(read.number("PORT", 8080, at_least=0)),
        log_format=read.choice("LOG_FORMAT", "text", ("text", "json")),
        log_level=read.choice("LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR")),
    )


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def text(self, name: str, default: str) -> str:
        return self._environment.get(f"TARMILL_{name}", "").strip() or default

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.text(name, default)
        if value not in choices:
            raise UsageError(f"TARMILL_{name} is {value!r}; expected one of {', '.join(choices)}")
        return value

    def number(self, name: str, default: float, *, at_least: float) -> float:
        value = self.text(name, str(default))
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not at_least <= number < 1e9:
            raise UsageError(f"TARMILL_{name} is {value!r}; expected a number of at least {at_least:g}")
        return number
