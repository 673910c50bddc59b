"""When this package itself sends a request again; pure policy.

gRPC repeats attempts below this (`_retry.py`), with two exceptions that are made up for here:

- A connection that broke in the middle of an answer, or that broke under another name than
  UNAVAILABLE. gRPC takes both for final.
- A device that died of a batch with the request in it. The request may be the reason, so one
  more server is asked and no third. gRPC can't know that one request has several attempts
  when it is hedged; servers leave this to whoever sends `rerank-attempt`.
"""

import random
import threading
from collections.abc import Callable

from rerank._errors import DeviceLostError, RerankError
from rerank._retry import JITTER, THROTTLE_RATIO, THROTTLE_TOKENS, RetryPolicy
from rerank._translate import CONNECTION_BROKEN

__all__ = ["RepeatThrottle", "Repeats"]


class RepeatThrottle:
    """Stops the repeats of a client when hardly anything succeeds, by gRPC's own rule.

    May be used from many threads.
    """

    def __init__(self) -> None:
        self._tokens = float(THROTTLE_TOKENS)
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """Earn a share of a repeat."""
        with self._lock:
            self._tokens = min(THROTTLE_TOKENS, self._tokens + THROTTLE_RATIO)

    def failed(self) -> bool:
        """Pay for a failure; return whether it may be repeated."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1.0)
            return self._tokens > THROTTLE_TOKENS / 2


class Repeats:
    """What one request has been through, and whether it may be sent again.

    All times are on one clock, of which `ends_at` is the call's deadline.
    """

    def __init__(
        self,
        retry: RetryPolicy,
        throttle: RepeatThrottle,
        *,
        ends_at: float,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._retry = retry
        self._throttle = throttle
        self._ends_at = ends_at
        self._spread = spread
        self.made = 0
        """Repeats so far."""
        self._lost_a_device = False

    def again_at(self, error: RerankError, now: float, *, others_out: bool = False) -> float | None:
        """Take a failure; return when the request is to be sent again, or None if not by itself.

        `others_out` says that another attempt at the same request is still under way: it
        takes the place of a repeat.
        """
        if self._lost_a_device:
            return None
        if isinstance(error, DeviceLostError):
            self._lost_a_device = True
            # Others were in that batch, of which all but one are innocent. Spread out, they are
            # less likely to meet the guilty one again.
            pause_s = self._spread(self._retry.initial_backoff_s, self._retry.max_backoff_s)
        elif error.reason == CONNECTION_BROKEN:
            pause_s = self._retry.backoff_s(self.made + 1) * self._spread(1 - JITTER, 1 + JITTER)
        else:
            return None
        if others_out or self.made + 1 >= self._retry.max_attempts or now + pause_s >= self._ends_at:
            return None
        if not self._throttle.failed():
            return None
        self.made += 1
        return now + pause_s
