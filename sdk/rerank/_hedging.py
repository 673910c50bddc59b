"""Hedging: ask twice when the first answer is slow, within a budget; pure policy."""

import math
import threading
from dataclasses import dataclass

__all__ = ["HedgeBudget", "HedgePolicy"]

# Quiet hours must not save up a storm: this many hedges can be banked, no more.
MOST_BANKED_HEDGES = 10

# The budget is kept in whole millionths, since adding 0.05 twenty times isn't 1.0.
PARTS_PER_HEDGE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgePolicy:
    """When to send a second attempt beside the first; whichever answers first wins.

    `delay_s` should be about the 95th percentile of your latency: then one call in
    twenty is hedged, which cuts the slowest tail for 5% more load. `budget` is the most
    that hedges may add to the load, as a share of it, whatever happens to the latency.

    Example:
        RerankClient("lb:443", hedge=HedgePolicy(delay_s=0.2))
    """

    delay_s: float
    budget: float = 0.05

    def __post_init__(self) -> None:
        if not (math.isfinite(self.delay_s) and self.delay_s >= 0):
            raise ValueError(f"delay_s: must be a number of seconds from 0, not {self.delay_s}")
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget: must be above 0 and at most 1, not {self.budget}")


class HedgeBudget:
    """Counts requests and hedges of one client, so that hedges stay within the policy's share.

    It starts empty: at every moment hedges <= budget * requests, with no burst at the start.
    """

    def __init__(self, policy: HedgePolicy) -> None:
        self.policy = policy
        self._parts = 0
        # Calls of one client may come from many threads.
        self._lock = threading.Lock()

    def record_request(self) -> None:
        """Earn a request's share of a hedge."""
        # Rounded down, so that a budget such as 1/3 is never exceeded by a rounding.
        earned = int(self.policy.budget * PARTS_PER_HEDGE)
        with self._lock:
            self._parts = min(self._parts + earned, MOST_BANKED_HEDGES * PARTS_PER_HEDGE)

    def try_spend(self) -> bool:
        """Take one hedge out of the budget, if there is one."""
        with self._lock:
            if self._parts < PARTS_PER_HEDGE:
                return False
            self._parts -= PARTS_PER_HEDGE
            return True
