"""Which requests of a call to send when, and what their ends mean; pure policy.

Both clients drive this one class: it never waits, sends or looks at a clock. A request
of a call is named by its position, an attempt by (position, number): attempt 0 is the
first, later ones are its hedge and its repeats.
"""

from collections import deque
from typing import NamedTuple

from rerank._errors import DeviceLostError, RerankError
from rerank._hedging import HedgeBudget
from rerank._repeats import Repeats, RepeatThrottle
from rerank._retry import RetryPolicy
from rerank._translate import is_retryable

__all__ = ["Attempt", "Scatter"]


class Attempt(NamedTuple):
    """One sending of one request."""

    position: int
    number: int


class Scatter:
    """Sends at most max_in_flight requests at a time until each has an answer.

    Drive it so, until `finished`: start what `due` names; wait for one end, at most
    `wait_s`; report the end to `succeeded` or `failed`; cancel what is `abandoned`.

    Once one of them has lost a device, what all have in common may be why. What is under way
    elsewhere is called back, and the rest is sent one by one, so that at most one more is lost.
    """

    def __init__(
        self,
        requests: int,
        *,
        max_in_flight: int,
        retry: RetryPolicy,
        throttle: RepeatThrottle,
        ends_at: float,
        hedging: HedgeBudget | None = None,
    ) -> None:
        self._waiting = deque(range(requests))
        self._running: dict[int, set[Attempt]] = {}
        self._sent = [0] * requests
        self._abandoned: set[Attempt] = set()
        self._hedge_at: dict[int, float] = {}
        self._again_at: dict[int, float] = {}
        self._max_in_flight = max_in_flight
        self._throttle = throttle
        self._repeats = Repeats(retry, throttle, ends_at=ends_at)
        self._hedging = hedging

    @property
    def finished(self) -> bool:
        """Whether every request has its answer."""
        return not self._waiting and not self._running

    def due(self, now: float) -> list[Attempt]:
        """Return the attempts to start now, and count them as started."""
        started: list[Attempt] = []
        # Hedges don't take places from first attempts: their budget bounds them already.
        while self._waiting and len(self._running) < self._max_in_flight:
            position = self._waiting.popleft()
            self._running[position] = set()
            if self._hedging:
                self._hedging.record_request()
                self._hedge_at[position] = now + self._hedging.policy.delay_s
            started.append(self._attempt(position))
        second = _take_due(self._again_at, now)
        second += [
            position
            for position in _take_due(self._hedge_at, now)
            if self._hedging and self._hedging.try_spend()
        ]
        return started + [self._attempt(position) for position in second]

    def wait_s(self, now: float) -> float | None:
        """Return after how long `due` has something new although nothing ended, or None."""
        times = (*self._hedge_at.values(), *self._again_at.values())
        return max(0.0, min(times) - now) if times else None

    def is_running(self, attempt: Attempt) -> bool:
        """Whether anybody still waits for this attempt."""
        return attempt in self._running.get(attempt.position, ())

    def abandoned(self) -> set[Attempt]:
        """Return the attempts that nobody waits for any longer, each of them once."""
        abandoned, self._abandoned = self._abandoned, set()
        return abandoned

    def succeeded(self, attempt: Attempt) -> None:
        """Take an answer."""
        self._throttle.succeeded()
        self._abandoned |= self._running.pop(attempt.position) - {attempt}
        self._hedge_at.pop(attempt.position, None)

    def failed(self, attempt: Attempt, error: RerankError, now: float) -> RerankError | None:
        """Take a failure; return the error of the whole call, if it fails by this.

        A failure that another server may not share is forgiven while the other attempt
        at the same request is still out, or if the request may be sent again.
        """
        position = attempt.position
        others = self._running[position]
        others.discard(attempt)
        sent = self._sent[position]
        again_at = self._repeats.again_at(error, now, sent=sent, others_out=bool(others))
        if again_at is not None:
            self._again_at[position] = again_at
            # The repeat is the second attempt that the hedge would have been.
            self._hedge_at.pop(position, None)
        elif not (is_retryable(error) and others):
            return self._repeats.error_to_tell(error)
        if isinstance(error, DeviceLostError) and not self._call_back_all_but(position):
            return error
        return None

    def _call_back_all_but(self, position: int) -> bool:
        """Go on with this request alone, then with one at a time; return whether that is possible."""
        called_back = sorted(self._running.keys() - {position})
        for other in called_back:
            self._abandoned |= self._running.pop(other)
            self._again_at.pop(other, None)
        self._waiting.extendleft(reversed(called_back))
        self._max_in_flight = 1
        self._hedging = None
        self._hedge_at.clear()
        return all(self._repeats.may_send(self._sent[other]) for other in called_back)

    def _attempt(self, position: int) -> Attempt:
        attempt = Attempt(position, self._sent[position])
        self._sent[position] += 1
        self._running[position].add(attempt)
        return attempt


def _take_due(times: dict[int, float], now: float) -> list[int]:
    """Take out the positions whose time has come."""
    due = [position for position, at in times.items() if at <= now]
    for position in due:
        del times[position]
    return due
