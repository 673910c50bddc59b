"""Which requests of a call to send when, and what their ends mean; pure policy.

Both clients drive this one class: it never waits, sends or looks at a clock. A request
of a call is named by its position, an attempt by (position, number): attempt 0 is the
first, attempt 1 its hedge.
"""

from collections import deque
from typing import NamedTuple

from rerank._hedging import HedgeBudget

__all__ = ["Attempt", "Scatter"]


class Attempt(NamedTuple):
    """One sending of one request."""

    position: int
    number: int


class Scatter:
    """Sends at most max_in_flight requests at a time until each has an answer.

    Drive it so, until `finished`: start what `due` names; wait for one end, at most
    `wait_s`; report the end to `succeeded` or `failed`.
    """

    def __init__(self, requests: int, *, max_in_flight: int, hedging: HedgeBudget | None = None) -> None:
        self._waiting = deque(range(requests))
        self._running: dict[int, set[Attempt]] = {}
        self._hedge_at: dict[int, float] = {}
        self._max_in_flight = max_in_flight
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
            first = Attempt(self._waiting.popleft(), 0)
            self._running[first.position] = {first}
            if self._hedging:
                self._hedging.record_request()
                self._hedge_at[first.position] = now + self._hedging.policy.delay_s
            started.append(first)
        for position in [position for position, at in self._hedge_at.items() if at <= now]:
            del self._hedge_at[position]
            if self._hedging and self._hedging.try_spend():
                hedge = Attempt(position, 1)
                self._running[position].add(hedge)
                started.append(hedge)
        return started

    def wait_s(self, now: float) -> float | None:
        """Return after how long `due` has something new although nothing ended, or None."""
        return max(0.0, min(self._hedge_at.values()) - now) if self._hedge_at else None

    def is_running(self, attempt: Attempt) -> bool:
        """Whether anybody still waits for this attempt."""
        return attempt in self._running.get(attempt.position, ())

    def succeeded(self, attempt: Attempt) -> set[Attempt]:
        """Take an answer; return the attempts at the same request, which are to be cancelled."""
        losers = self._running.pop(attempt.position) - {attempt}
        self._hedge_at.pop(attempt.position, None)
        return losers

    def failed(self, attempt: Attempt, *, retryable: bool) -> bool:
        """Take a failure; return whether the whole call fails by it.

        A failure that another server may not share is forgiven while the other attempt
        at the same request is still out.
        """
        attempts = self._running[attempt.position]
        attempts.discard(attempt)
        return not (retryable and attempts)
