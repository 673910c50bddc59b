"""How often a failed attempt is repeated, in the words of gRPC's service config.

The channel itself repeats attempts, below everything else in this package. What it takes
for final although another server would answer is repeated by `_repeats.py`, under the same
policy. RerankStream is an exception as well: gRPC stops retrying a stream once its first
answer has come, so `_stream.py` reopens it instead.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

import grpc

__all__ = ["RETRYABLE_CODES", "LoadBalancing", "RetryPolicy", "service_config"]

SERVICE = "rerank.v1.RerankService"

LoadBalancing = Literal["pick_first", "round_robin"]

# Reranking is a pure function, so repeating it is always safe. CANCELLED is what a
# grpc.aio server answers to the calls that its stop() cuts off.
RETRYABLE_CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
)

# gRPC stops retrying when half of the tokens are gone; a failure takes one, a success
# returns a tenth. Fifty failures at once are what a client with many requests in flight
# sees when one server dies, and must survive; a fleet in trouble is spared all the same,
# since from then on at most every tenth call is a retry.
THROTTLE_TOKENS = 100
THROTTLE_RATIO = 0.1

# gRPC spreads its own retries by a fifth to either side; so do the repeats above it.
JITTER = 0.2

# A shorter pause of gRPC's own can end before gRPC has noted that it began, and then the call
# stands still until its deadline (grpc#41036).
LEAST_CHANNEL_BACKOFF_S = 0.01

# gRPC allows no more attempts than this, and silently lowers a greater number.
MOST_ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how soon a call that hit a busy or vanished server is attempted again.

    A server that names its own delay is obeyed. All attempts together stay within the
    call's timeout_s. max_attempts=1 turns retries off.

    Example:
        RerankClient("lb:443", retry=RetryPolicy(max_attempts=5, max_backoff_s=3.0))
    """

    max_attempts: int = 4
    initial_backoff_s: float = 0.05
    max_backoff_s: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= MOST_ATTEMPTS:
            raise ValueError(f"max_attempts: must be from 1 to {MOST_ATTEMPTS}, not {self.max_attempts}")
        if not 0 < self.initial_backoff_s <= self.max_backoff_s:
            raise ValueError(
                "initial_backoff_s: must be above 0 and at most max_backoff_s "
                f"({self.max_backoff_s}), not {self.initial_backoff_s}"
            )

    def backoff_s(self, attempts_made: int) -> float:
        """Return the longest wait after so many attempts; the actual one is drawn below it."""
        return min(self.max_backoff_s, self.initial_backoff_s * 2.0 ** max(0, attempts_made - 1))


def service_config(retry: RetryPolicy, load_balancing: LoadBalancing) -> str:
    """Return the channel's service config as JSON."""
    calls: dict[str, Any] = {"name": [{"service": SERVICE}]}
    if retry.max_attempts > 1:
        calls["retryPolicy"] = {
            "maxAttempts": retry.max_attempts,
            "initialBackoff": f"{max(LEAST_CHANNEL_BACKOFF_S, retry.initial_backoff_s):.3f}s",
            "maxBackoff": f"{max(LEAST_CHANNEL_BACKOFF_S, retry.max_backoff_s):.3f}s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": [code.name for code in RETRYABLE_CODES],
        }
    streams = {"name": [{"service": SERVICE, "method": "RerankStream"}]}
    config: dict[str, Any] = {
        "retryThrottling": {"maxTokens": THROTTLE_TOKENS, "tokenRatio": THROTTLE_RATIO},
        "loadBalancingConfig": [{load_balancing: {}}],
        "methodConfig": [calls, streams],
    }
    if load_balancing == "round_robin":
        # Without a proxy in between, the servers' own health says which of them to use.
        config["healthCheckConfig"] = {"serviceName": SERVICE}
    return json.dumps(config)
