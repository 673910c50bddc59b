"""What the ratios are meant to reach. Results are held against these and never made of them."""

from dataclasses import dataclass

__all__ = ["GOALS", "Goal"]


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio's meaning and bound."""

    meaning: str
    bound: float
    at_most: bool = False

    def is_met(self, value: float) -> bool:
        """Whether the value is on the right side of the bound."""
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:,g}"


GOALS = {
    "engine_vs_predict": Goal("our engine / CrossEncoder.predict, pairs per second", 1.9),
    "engine_vs_peak": Goal("our engine / the machine's peak of a linear layer, GFLOP/s", 0.75),
    "service_vs_engine": Goal("our service through gRPC and Nginx / our engine alone", 0.95),
    "service_vs_fastapi": Goal("our service / the plain FastAPI app", 2.3),
    "service_vs_infinity": Goal("our service / Infinity", 3.0),
    "http_vs_grpc": Goal("our service through HTTP and JSON / through gRPC, both behind Nginx", 0.85),
    "int8_vs_predict": Goal("our engine in int8 / CrossEncoder.predict in float32", 4.0),
    "int8_mrr_loss": Goal("what int8 costs in mean reciprocal rank", 0.005, at_most=True),
    "small_request_p99_vs_idle": Goal(
        "10 documents beside 1,000: 99th percentile / median on an idle server", 4.0, at_most=True
    ),
    "cached_pairs_per_s": Goal("pairs per second from the cache, on one core", 100_000),
    "cached_http_ms": Goal("milliseconds of a cached call over HTTP, median", 2.0, at_most=True),
    "cached_http_nginx_ms": Goal("the same through Nginx and TLS", 3.0, at_most=True),
}
