"""What the operator tells Prometheus of itself."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from tarmill_operator.cache import Cache
from tarmill_operator.work_queue import WorkQueue

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counts what the operator does."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._looks = Counter(
            "tarmill_operator_reconciles",
            "Looks at a resource, by how they ended: done, changed, api error, error.",
            ("outcome",),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "tarmill_operator_reconcile_seconds",
            "Seconds that a look at a resource took, with its calls.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._calls = Counter(
            "tarmill_operator_api_calls",
            "Calls to the API server, by verb and HTTP status; status 0 where no answer came.",
            ("verb", "status"),
            registry=self.registry,
        )
        self._pulls = Counter(
            "tarmill_operator_progress_pulls",
            "Runners that were asked how it goes, by whether they answered.",
            ("answered",),
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)

    def looked(self, outcome: str, seconds: float) -> None:
        """Count a look at a resource."""
        self._looks.labels(outcome).inc()
        self._seconds.observe(seconds)

    def called(self, verb: str, status: int) -> None:
        """Count a call to the API server."""
        self._calls.labels(verb, str(status)).inc()

    def pulled(self, answered: bool) -> None:
        """Count a runner that was asked."""
        self._pulls.labels("yes" if answered else "no").inc()

    def watch(self, cache: Cache, queue: WorkQueue, is_leader: list[bool]) -> None:
        """Tell of what is in cache and queue when someone asks, and whether we lead (`is_leader` holds that)."""
        self.registry.register(_Now(cache, queue, is_leader))

    def text(self) -> bytes:
        """Give all of it as Prometheus reads it."""
        return generate_latest(self.registry)


class _Now(Collector):
    def __init__(self, cache: Cache, queue: WorkQueue, is_leader: list[bool]) -> None:
        self._cache = cache
        self._queue = queue
        self._is_leader = is_leader

    def collect(self) -> Iterator[Metric]:
        length = GaugeMetricFamily("tarmill_operator_queue_length", "Resources that wait to be looked at.")
        length.add_metric([], len(self._queue))
        yield length
        leads = GaugeMetricFamily("tarmill_operator_leader", "Whether this operator is the one that acts.")
        leads.add_metric([], float(bool(self._is_leader and self._is_leader[0])))
        yield leads
        resources = GaugeMetricFamily("tarmill_resources", "Resources by kind and phase.", labels=("kind", "phase"))
        for (kind, phase), count in sorted(self._cache.count().items()):
            resources.add_metric([kind, phase], count)
        yield resources
