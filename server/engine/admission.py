"""Take a request or refuse it at once: pure policy, before any compute.

A request that would be answered after its deadline costs the device as much as
one that is answered in time, and helps nobody. So the estimate of its wait is
held against the time it has left, with the speed that the device has shown.

Nobody may fill the queue for everybody else. A request holds at most a share of it, and
the rest of a larger one waits outside, as text. BATCH work and large requests leave some of
the queue to the others, so that a small interactive request finds room beside them.
"""

from server.engine.scheduler import Priority
from server.errors import Overloaded

__all__ = ["Admission", "Throughput"]

MIN_RETRY_AFTER_S = 0.05
MAX_RETRY_AFTER_S = 30.0
# Estimates are off by some percent, and a request that is admitted and then late has
# cost as much as one in time: better to refuse the few that would only just make it.
SAFETY = 1.1
DEFAULT_QUEUE_SHARE = 1 / 4
# How far the queue may be filled by BATCH requests, and by large ones of any priority.
BATCH_ROOM = 1 / 2
LARGE_ROOM = 3 / 4
# Shares of the queue from which a request is large.
LARGE_SHARE = 1 / 32


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
    """Says whether one more request fits.

    Args:
        max_queued_tokens: the size of the queue.
        throughput: the device's speed.
        queue_share: how much of the queue one request may hold.
    """

    def __init__(
        self, max_queued_tokens: int, throughput: Throughput, queue_share: float = DEFAULT_QUEUE_SHARE
    ) -> None:
        self._max_queued_tokens = max_queued_tokens
        self._throughput = throughput
        self.most_held_tokens = max(1, int(queue_share * max_queued_tokens))
        """Of one request; more of it is queued as room appears."""

    def check(
        self,
        *,
        priority: Priority,
        tokens: int,
        queued_tokens: int,
        tokens_ahead: int,
        running_tokens: int,
        batch_tokens: int,
        time_left_s: float | None,
    ) -> None:
        """Refuse a request of `tokens` that finds no room or can't be answered in time.

        `queued_tokens` is what the queue holds, `tokens_ahead` the work that goes first,
        `running_tokens` what is on the device now, and `batch_tokens` a full batch: the
        request's last pair leaves the device in the company of others. An empty queue takes
        a request of any size, in parts.

        Raises:
            Overloaded: with the time after which a retry has a chance.
        """
        speed = self._throughput.tokens_per_second
        held_tokens = min(tokens, self.most_held_tokens)
        room_tokens = self._room_tokens(priority, tokens)
        excess = queued_tokens + held_tokens - room_tokens
        if queued_tokens > 0 and excess > 0:
            raise Overloaded(
                f"the queue is full: {queued_tokens:,} tokens wait and this request adds {held_tokens:,}; "
                f"the limit is {room_tokens:,} {self._of_whom(priority, tokens)}(--max-queued-tokens)",
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

    def _room_tokens(self, priority: Priority, tokens: int) -> int:
        if priority is Priority.BATCH:
            return int(BATCH_ROOM * self._max_queued_tokens)
        if self._is_large(tokens):
            return int(LARGE_ROOM * self._max_queued_tokens)
        return self._max_queued_tokens

    def _of_whom(self, priority: Priority, tokens: int) -> str:
        if priority is Priority.BATCH:
            return "for BATCH requests "
        return "for requests of this size " if self._is_large(tokens) else ""

    def _is_large(self, tokens: int) -> bool:
        return tokens > LARGE_SHARE * self._max_queued_tokens


def _bounded(seconds: float) -> float:
    return min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, seconds))
