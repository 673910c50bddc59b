"""The engine's figures for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from server.engine.engine import Engine
from server.ops.logging import dropped_log_lines

__all__ = ["EngineMetrics"]


class EngineMetrics:
    """Implements `server.engine.observer.EngineObserver`."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._batches = Counter("rerank_batches", "Batches scored", registry=self.registry)
        self._batch_tokens = Histogram(
            "rerank_batch_tokens",
            "Tokens of a batch",
            buckets=[2**power for power in range(6, 18)],
            registry=self.registry,
        )
        self._computed_pairs = Counter("rerank_computed_pairs", "Pairs scored", registry=self.registry)
        self._computed_tokens = Counter("rerank_computed_tokens", "Tokens scored", registry=self.registry)
        self._busy_seconds = Counter(
            "rerank_device_busy_seconds", "Time on the device", registry=self.registry
        )
        self._wasted_tokens = Counter(
            "rerank_wasted_tokens",
            "Tokens scored for requests that were gone by then",
            registry=self.registry,
        )
        self._dropped_tokens = Counter(
            "rerank_dropped_tokens", "Tokens of gone requests dropped before scoring", registry=self.registry
        )
        self._refused = Counter(
            "rerank_refused_requests", "Requests refused at admission", ["reason"], registry=self.registry
        )
        self._found = Counter(
            "rerank_pairs_found",
            "Distinct pairs by where their score came from",
            ["source"],
            registry=self.registry,
        )
        self._out_of_memory = Counter(
            "rerank_out_of_memory", "Batches that did not fit into device memory", registry=self.registry
        )
        self._failed_pairs = Counter("rerank_failed_pairs", "Pairs that failed alone", registry=self.registry)
        self._budget = Gauge("rerank_token_budget", "Tokens of a batch at most", registry=self.registry)
        self.registry.register(_DroppedLogLines())

    def watch(self, engine: Engine) -> None:
        """Read the engine's own figures whenever Prometheus asks."""
        for name, description, read in (
            ("rerank_queued_tokens", "Tokens that wait", lambda: engine.queued_tokens),
            ("rerank_tokens_per_second", "Learned speed of the device", lambda: engine.tokens_per_second),
            ("rerank_requests_in_progress", "Requests admitted", lambda: engine.requests_in_progress),
            ("rerank_pair_cache_bytes", "Memory of the pair cache", lambda: engine.cache_bytes),
        ):
            Gauge(name, description, registry=self.registry).set_function(read)

    def batch_done(self, *, pairs: int, tokens: int, seconds: float, token_budget: int) -> None:
        """See EngineObserver."""
        self._batches.inc()
        self._batch_tokens.observe(tokens)
        self._computed_pairs.inc(pairs)
        self._computed_tokens.inc(tokens)
        self._busy_seconds.inc(seconds)
        self._budget.set(token_budget)

    def tokens_wasted(self, tokens: int) -> None:
        """See EngineObserver."""
        self._wasted_tokens.inc(tokens)

    def tokens_dropped(self, tokens: int) -> None:
        """See EngineObserver."""
        self._dropped_tokens.inc(tokens)

    def request_refused(self, reason: str) -> None:
        """See EngineObserver."""
        self._refused.labels(reason).inc()

    def pairs_found(self, *, cached: int, joined: int, missed: int) -> None:
        """See EngineObserver."""
        self._found.labels("cache").inc(cached)
        self._found.labels("in_flight").inc(joined)
        self._found.labels("model").inc(missed)

    def out_of_memory(self, token_budget: int) -> None:
        """See EngineObserver."""
        self._out_of_memory.inc()
        self._budget.set(token_budget)

    def pair_failed(self, reason: str) -> None:
        """See EngineObserver."""
        self._failed_pairs.inc()


class _DroppedLogLines(Collector):
    """Read when Prometheus asks: the log counts by itself, with or without metrics."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(
            "rerank_log_lines_dropped",
            "Log lines that nobody took, such as a pipe whose reader has stopped",
            value=dropped_log_lines(),
        )
