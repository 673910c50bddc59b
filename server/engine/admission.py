"""Take a request or refuse it at once: pure policy, before any compute.

A request that would be answered after its deadline costs the device as much as
one that is answered in time, and helps nobody. So the estimate of its wait is
held against the time it has left, with the speed that the device has shown.
"""

from server.errors import Overloaded

__all__ = ["Admission", "Throughput"]

MIN_RETRY_AFTER_S = 0.05
MAX_RETRY_AFTER_S = 30.0
# Estimates are off by some percent, and a request that is admitted and then late has
# cost as much as one in time: better to refuse the few that would only just make it.
SAFETY = 1.1


class Throughput:
    """Tokens per second of the device, learned as it goes.

    An exponential average over computed time: the last `memory_s` of computing
    decide, however many batches that was.
    """

    def __init__(self, initial_tokens_per_second: float, *, memory_s: float = 10.0) -> None:
        self._memory_s = memory_s
        self._tokens = initial_tokens_per_second * memory_s
        self._seconds = memory_s

    @property
    def tokens_per_second(self) -> float:
        """The present estimate."""
        return self._tokens / self._seconds

    def record(self, tokens: int, seconds: float) -> None:
        """One batch of `tokens` kept the device busy for `seconds`."""
        self._tokens += tokens
        self._seconds += seconds
        if self._seconds > self._memory_s:
            self._tokens *= self._memory_s / self._seconds
            self._seconds = self._memory_s


class Admission:
    """Says whether one more request fits."""

    def __init__(self, max_queued_tokens: int, throughput: Throughput) -> None:
        self._max_queued_tokens = max_queued_tokens
        self._throughput = throughput

    def check(
        self,
        *,
        tokens: int,
        queued_tokens: int,
        tokens_ahead: int,
        running_tokens: int,
        batch_tokens: int,
        time_left_s: float | None,
    ) -> None:
        """Refuse a request of `tokens` that can't be answered in time.

        `queued_tokens` is everything that waits, `tokens_ahead` the part of it that
        goes first, `running_tokens` what is on the device now, and `batch_tokens` a full
        batch: the request's last pair leaves the device in the company of others. An
        empty queue takes a request of any size: no later moment would suit it better.

        Raises:
            Overloaded: with the time after which a retry has a chance.
        """
        speed = self._throughput.tokens_per_second
        excess = queued_tokens + tokens - self._max_queued_tokens
        if queued_tokens > 0 and excess > 0:
            raise Overloaded(
                f"the queue is full: {queued_tokens:,} tokens wait and this request adds {tokens:,}; "
                f"the limit is {self._max_queued_tokens:,} (--max-queued-tokens)",
                retry_after_s=_bounded(excess / speed),
            )
        # An idle device takes it whatever the estimate says: it learns only from what runs, so one
        # that has become too low would otherwise refuse everything for good.
        if time_left_s is None or queued_tokens + running_tokens == 0:
            return
        wait_s = SAFETY * (tokens_ahead + running_tokens + tokens + batch_tokens) / speed
        if wait_s > time_left_s:
            raise Overloaded(
                f"the answer would take about {wait_s:.2f} s; "
                f"the deadline leaves {max(0.0, time_left_s):.2f} s",
                retry_after_s=_bounded(wait_s - time_left_s),
            )


def _bounded(seconds: float) -> float:
    return min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, seconds))
