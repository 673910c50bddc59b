"""The scheduler behind a lock: the event loop adds, the device's thread takes."""

import threading
import time
from collections.abc import Callable, Iterable

from server.engine.pairs import QueuedPair
from server.engine.scheduler import Batch, Priority, Scheduler

__all__ = ["WorkQueue"]


class WorkQueue:
    """Thread-safe. No operation holds the lock for more than some milliseconds."""

    def __init__(self, scheduler: Scheduler[QueuedPair], clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._changed = threading.Condition()
        self._closed = False

    def open(self, number: int, *, priority: Priority, deadline_s: float, expected_tokens: int) -> None:
        """Register a request; see `Scheduler.open`."""
        with self._changed:
            self._scheduler.open(
                number, priority=priority, deadline_s=deadline_s, expected_tokens=expected_tokens
            )

    def add(self, number: int, pairs: Iterable[QueuedPair]) -> None:
        """Queue pairs of a request and wake the device."""
        with self._changed:
            self._scheduler.add(number, pairs)
            self._changed.notify()

    def expect_no_more(self, number: int) -> None:
        """See `Scheduler.expect_no_more`."""
        with self._changed:
            self._scheduler.expect_no_more(number)

    def close_request(self, number: int) -> int:
        """Forget a request; returns the waiting tokens that this dropped."""
        with self._changed:
            return self._scheduler.close(number)

    def load(self, priority: Priority, tokens: int) -> tuple[int, int]:
        """(tokens that wait, tokens that go before a new request of this size)."""
        with self._changed:
            return self._scheduler.queued_tokens, self._scheduler.tokens_ahead(priority, tokens)

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait."""
        with self._changed:
            return self._scheduler.queued_tokens

    def take(self, token_budget: int, *, block: bool) -> Batch[QueuedPair] | None:
        """The next batch, chosen now so that late arrivals are in it.

        None when the queue was closed, or when `block` is false and nothing waits.
        """
        with self._changed:
            while not self._closed and not self._scheduler.has_work():
                if not block:
                    return None
                self._changed.wait()
            if self._closed:
                return None
            self._scheduler.token_budget = token_budget
            return self._scheduler.next_batch(self._clock())

    def close(self) -> None:
        """Wake the device's thread for the last time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed
