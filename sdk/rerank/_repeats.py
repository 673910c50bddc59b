"""When this package itself sends a request again; pure policy.

gRPC repeats attempts below this (`_retry.py`), with two exceptions that are made up for here:

- A connection that broke in the middle of an answer, or that broke under another name than
  UNAVAILABLE. gRPC takes both for final.
- A device that died of a batch with a request of the call in it. The call may be the reason, so
  one more server is asked and no third. gRPC can't know what belongs together when a request
  is hedged or a long list is cut; servers leave this to whoever sends `rerank-attempt`.

gRPC may attempt each of these sendings as often as the policy says, and nothing tells how often
it did. So they are few: one request reaches servers MOST_SENDINGS * max_attempts times at most.
"""

import random
import threading
from collections.abc import Callable

from rerank._errors import DeviceLostError, RerankError
from rerank._retry import JITTER, THROTTLE_RATIO, THROTTLE_TOKENS, RetryPolicy
from rerank._translate import CONNECTION_BROKEN, is_retryable

__all__ = ["MOST_SENDINGS", "RepeatThrottle", "Repeats", "error_to_tell"]

# Of one request by this package, hedges included.
MOST_SENDINGS = 3


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
    """What the requests of one call have been through, and whether one may be sent again.

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
        self._lost: DeviceLostError | None = None

    def may_send(self, sent: int) -> bool:
        """Whether a request that was sent so often may be sent at all."""
        return sent < min(MOST_SENDINGS, self._retry.max_attempts)

    def again_at(
        self, error: RerankError, now: float, *, sent: int, others_out: bool = False
    ) -> float | None:
        """Take a failure; return when the request is to be sent again, or None if not by itself.

        `sent` is how often that request has been sent. `others_out` says that another attempt
        at it is still under way: it takes the place of a repeat.
        """
        if self._lost:
            return None
        if isinstance(error, DeviceLostError):
            self._lost = error
            # Others were in that batch, of which all but one are innocent. Spread out, they are
            # less likely to meet the guilty one again.
            pause_s = self._spread(self._retry.initial_backoff_s, self._retry.max_backoff_s)
        elif error.reason == CONNECTION_BROKEN:
            pause_s = self._retry.backoff_s(sent) * self._spread(1 - JITTER, 1 + JITTER)
        else:
            return None
        if others_out or not self.may_send(sent) or now + pause_s >= self._ends_at:
            return None
        return now + pause_s if self._throttle.failed() else None

    def error_to_tell(self, error: RerankError) -> RerankError:
        """Return what the caller is told when the call fails by this error."""
        return error_to_tell(error, self._lost)


def error_to_tell(error: RerankError, lost: DeviceLostError | None) -> RerankError:
    """Return the loss before an error that would invite the caller to send the same again."""
    if lost and is_retryable(error) and not isinstance(error, DeviceLostError):
        return lost
    return error
