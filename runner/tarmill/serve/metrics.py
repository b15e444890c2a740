"""A job's numbers in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tarmill.serve.status import Status

_COUNTERS = {
    "shards_done": "Shards that are finished, those of earlier runs among them.",
    "shards_failed": "Shards that failed for good.",
    "samples_read": "Samples that were read.",
    "samples_written": "Samples that were written.",
    "bytes_read": "Bytes that were read, over all passes.",
    "bytes_written": "Bytes that were written.",
}


def metrics(status: Status) -> tuple[str, bytes]:
    """Give content type and text of what is to be scraped."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(status))
    return CONTENT_TYPE_LATEST, generate_latest(registry)


class _Collector:
    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Any]:
        found = self._status.to_dict()
        kind = self._status.report.kind if self._status.report else ""
        about = {"job_id": found["job"], "kind": kind, "phase": found["phase"], "stage": found["stage"]}
        yield InfoMetricFamily("tarmill_job", "The job that runs here.", value=about)
        for name, value in self._status.peaks().items():
            yield CounterMetricFamily(f"tarmill_{name}", _COUNTERS[name], value=value)
        gauges = {
            "tarmill_shards": ("Shards of the job.", found["shards"]["total"]),
            "tarmill_shards_running": ("Tasks that run now.", found["shards"]["running"]),
            "tarmill_workers": ("Workers that are there now.", found["workers"]),
            "tarmill_seconds_since_progress": ("For how long nothing changed.", self._status.seconds_since_progress),
        }
        if found["bytes"]["total"] is not None:
            gauges["tarmill_bytes_expected"] = ("Bytes to be read in all.", found["bytes"]["total"])
        if found["etaSeconds"] is not None:
            gauges["tarmill_eta_seconds"] = ("Seconds that are left, about.", found["etaSeconds"])
        for name, (told, value) in gauges.items():
            yield GaugeMetricFamily(name, told, value=value)
