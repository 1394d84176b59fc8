"""What `/metrics` shows, for Prometheus. One registry per application, so that two of them in one process stay
apart."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app import __version__

CONTENT_TYPE = CONTENT_TYPE_LATEST

_LATENCY_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The counters of one application. `route` is always the template (`/v1/plans/{plan_id}`), never a path as sent."""

    def __init__(self, pool_sizes: Callable[[], Mapping[str, int]]) -> None:
        """`pool_sizes` tells the connections to the database by state, whenever it is asked."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_DatabasePool(pool_sizes))
        build = Gauge("tonnage_build_info", "Version of the service", ["version"], registry=self._registry)
        build.labels(__version__).set(1)
        self.requests = self._counter("http_requests", "Requests answered", "method", "route", "status")
        self.request_seconds = Histogram(
            "tonnage_http_request_seconds",
            "Time from the request's first byte to the answer's last",
            ["method", "route"],
            buckets=_LATENCY_BUCKETS_SECONDS,
            registry=self._registry,
        )
        self.in_flight = Gauge("tonnage_http_requests_in_flight", "Requests being answered", registry=self._registry)
        self.refused_tokens = self._counter("authentication_failures", "Requests without a usable token", "reason")
        self.plans = self._counter("plan_changes", "Plans changed", "change")
        self.reports = self._counter("node_reports", "Node reports received", "outcome")
        self.hub_requests = self._counter("hub_requests", "Models asked for at the model hub", "outcome")
        self.hub_lookups = self._counter("hub_lookups", "Models beyond the catalogue, by origin", "origin")

    def exposition(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self._registry)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"tonnage_{name}", description, labels, registry=self._registry)


class _DatabasePool(Collector):
    def __init__(self, sizes: Callable[[], Mapping[str, int]]) -> None:
        self._sizes = sizes

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("tonnage_database_connections", "Connections of the pool", labels=["state"])
        for state, count in self._sizes().items():
            family.add_metric([state], count)
        yield family
