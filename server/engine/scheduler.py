"""Which pairs go into the next batch: pure policy.

No clock, no threads, no tensors: time is an argument, and the caller owns the
lock. The unit of scheduling is a pair, the unit of fairness a request.

Fair order, for each place in a batch:

1. INTERACTIVE before BATCH.
2. Who received the least service goes first, in levels that double: less than
   one batch of tokens is level 0, then 1, 2, 4, ... batches. So a request of ten
   documents never waits behind the rest of a thousand, while requests of similar
   size are finished one by one rather than all late together.
3. Within a level the earliest deadline, then the first to arrive.

That order alone could starve old or BATCH requests under a steady flow of new
ones, so a share of all tokens (`aged_share`) goes to the request that arrived
first, whatever its class. Every request becomes the oldest one day, and is then
done after at most its own tokens / (aged_share x budget) batches.
"""

import heapq
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, Protocol, TypeVar

__all__ = ["Batch", "Priority", "Schedulable", "Scheduler"]

DEFAULT_AGED_SHARE = 1 / 8


class Priority(IntEnum):
    """Who goes first; the lower number does."""

    INTERACTIVE = 0
    BATCH = 1


class Schedulable(Protocol):
    """A pair as the scheduler sees it.

    The same pair may wait in several requests (that all need its score); the
    first request to be chosen sets `started`, and the others skip it.
    """

    started: bool

    @property
    def tokens(self) -> int:
        """What the pair costs."""
        ...


P = TypeVar("P", bound=Schedulable)


@dataclass(slots=True)
class Batch(Generic[P]):
    """What to score next, and which requests ran out of time."""

    pairs: list[P] = field(default_factory=list)
    tokens: int = 0
    expired: list[int] = field(default_factory=list)
    """Requests whose deadline has passed; their waiting pairs are gone."""
    dropped_tokens: int = 0
    """What those pairs would have cost."""


@dataclass(slots=True)
class _Request(Generic[P]):
    number: int
    priority: Priority
    deadline_s: float
    expected_tokens: int
    """Tokens that will be added; an estimate until the documents are tokenised."""
    waiting: deque[P] = field(default_factory=deque)
    waiting_tokens: int = 0
    served_tokens: int = 0

    def next_pair(self) -> P | None:
        """The next pair that no other request has started; None when none is left."""
        while self.waiting:
            if not self.waiting[0].started:
                return self.waiting[0]
            self._pop()
        return None

    def start_next(self) -> P:
        pair = self._pop()
        pair.started = True
        self.served_tokens += pair.tokens
        return pair

    def _pop(self) -> P:
        pair = self.waiting.popleft()
        self.waiting_tokens -= pair.tokens
        return pair

    @property
    def remaining_tokens(self) -> int:
        return max(self.waiting_tokens, self.expected_tokens - self.served_tokens)


class Scheduler(Generic[P]):
    """The waiting pairs of all requests, and the choice of the next batch."""

    def __init__(
        self,
        token_budget: int,
        *,
        first_come_first_served: bool = False,
        aged_share: float = DEFAULT_AGED_SHARE,
    ) -> None:
        self.token_budget = token_budget
        """Most tokens of a batch; a single longer pair still runs, alone."""
        self._first_come_first_served = first_come_first_served
        self._aged_share = aged_share
        self._aged_credit_tokens = 0.0
        # Ordered by arrival: the numbers rise, and dictionaries keep insertion order.
        self._requests: dict[int, _Request[P]] = {}

    @property
    def queued_tokens(self) -> int:
        """Tokens of all pairs that wait, and of all that are expected to."""
        return sum(request.remaining_tokens for request in self._requests.values())

    @property
    def queued_pairs(self) -> int:
        """Pairs that wait."""
        return sum(len(request.waiting) for request in self._requests.values())

    def open(
        self, number: int, *, priority: Priority, deadline_s: float = math.inf, expected_tokens: int = 0
    ) -> None:
        """Register a request. Its number must be higher than those of all before it."""
        self._requests[number] = _Request(number, priority, deadline_s, expected_tokens)

    def add(self, number: int, pairs: Iterable[P]) -> None:
        """Queue pairs of a request; a request that is gone (expired) takes none."""
        request = self._requests.get(number)
        if request is None:
            return
        for pair in pairs:
            request.waiting.append(pair)
            request.waiting_tokens += pair.tokens

    def expect_no_more(self, number: int) -> None:
        """All pairs of the request are queued: what waits is exact from now on."""
        request = self._requests.get(number)
        if request is not None:
            request.expected_tokens = 0

    def close(self, number: int) -> int:
        """Forget a request that is done or cancelled; returns the waiting tokens that this dropped."""
        request = self._requests.pop(number, None)
        if request is None:
            return 0
        return sum(pair.tokens for pair in request.waiting if not pair.started)

    def has_work(self) -> bool:
        """Whether a batch would not be empty."""
        return any(request.next_pair() is not None for request in self._requests.values())

    def next_batch(self, now_s: float) -> Batch[P]:
        """Choose, mark as started and hand out the pairs of the next batch; drop what has expired."""
        batch: Batch[P] = Batch()
        for request in [r for r in self._requests.values() if r.deadline_s <= now_s]:
            batch.dropped_tokens += self.close(request.number)
            batch.expired.append(request.number)
        ready = [request for request in self._requests.values() if request.next_pair() is not None]
        if not ready:
            return batch
        if not self._first_come_first_served:
            self._serve_oldest(ready[0], batch, contended=len(ready) > 1)
        self._serve_by_order(ready, batch)
        return batch

    def tokens_ahead(self, priority: Priority, tokens: int) -> int:
        """Tokens that will run before a new request of this size is done, its own not included.

        Under the fair order that is far less than everything queued: of each
        request of the same class only what it may receive before it falls to a
        level below the new one.
        """
        if self._first_come_first_served:
            return self.queued_tokens
        level_end = self._level_end(self._level(max(0, tokens - 1)))
        ahead = 0
        for request in self._requests.values():
            if request.priority < priority:
                ahead += request.remaining_tokens
            elif request.priority == priority:
                ahead += min(request.remaining_tokens, max(0, level_end - request.served_tokens))
        # The oldest request takes its share on top, whatever its class and level.
        return min(self.queued_tokens, math.ceil((ahead + tokens) / (1 - self._aged_share)) - tokens)

    def _serve_oldest(self, oldest: _Request[P], batch: Batch[P], *, contended: bool) -> None:
        if not contended:
            self._aged_credit_tokens = 0.0
            return
        self._aged_credit_tokens += self._aged_share * self.token_budget
        while (pair := oldest.next_pair()) is not None:
            if pair.tokens > self._aged_credit_tokens or not self._fits(pair, batch):
                break
            self._aged_credit_tokens -= pair.tokens
            self._take(oldest, batch)
        if oldest.next_pair() is None:
            self._aged_credit_tokens = 0.0

    def _serve_by_order(self, ready: list[_Request[P]], batch: Batch[P]) -> None:
        heap = [(self._order(request), request) for request in ready]
        heapq.heapify(heap)
        while heap and batch.tokens < self.token_budget:
            _, request = heapq.heappop(heap)
            pair = request.next_pair()
            # A pair that doesn't fit goes first in a later batch; smaller ones of others fill this one.
            if pair is None or not self._fits(pair, batch):
                continue
            self._take(request, batch)
            heapq.heappush(heap, (self._order(request), request))

    def _fits(self, pair: P, batch: Batch[P]) -> bool:
        return not batch.pairs or batch.tokens + pair.tokens <= self.token_budget

    def _take(self, request: _Request[P], batch: Batch[P]) -> None:
        pair = request.start_next()
        batch.pairs.append(pair)
        batch.tokens += pair.tokens

    def _order(self, request: _Request[P]) -> tuple[int, int, float, int]:
        if self._first_come_first_served:
            return (0, 0, 0.0, request.number)
        return (request.priority, self._level(request.served_tokens), request.deadline_s, request.number)

    def _level(self, served_tokens: int) -> int:
        return (served_tokens // self.token_budget).bit_length()

    def _level_end(self, level: int) -> int:
        return self.token_budget << level
