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

Whatever is open, a request is added, removed and estimated in a logarithmic number of
steps: sums are kept rather than added up, and orders are kept rather than sorted.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, Protocol, TypeAlias, TypeVar

from sortedcontainers import SortedList

from server.engine.backlog import Backlog, Load, level_of

__all__ = ["Batch", "Priority", "Schedulable", "Scheduler"]

DEFAULT_AGED_SHARE = 1 / 8
UNBOUNDED_TOKENS = 2**62
# How many requests whose next pair doesn't fit are passed over for smaller ones behind them.
MOST_PASSED_OVER = 64


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
Order: TypeAlias = tuple[int, int, float, int]
"""Priority, level, deadline, number: the least goes first."""


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
    load: Load = field(init=False)
    """What the backlog has of it."""
    order: Order | None = None
    """Its place among those with waiting pairs; None when it has none."""

    def __post_init__(self) -> None:
        self.load = self.present_load()

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

    def present_load(self) -> Load:
        remaining = max(self.waiting_tokens, self.expected_tokens - self.served_tokens)
        return Load(self.priority, remaining, self.served_tokens)


class Scheduler(Generic[P]):
    """The waiting pairs of all requests, and the choice of the next batch.

    Args:
        token_budget: most tokens of a batch; a single longer pair still runs, alone.
        first_come_first_served: keep to the order of arrival instead.
        aged_share: share of all tokens that goes to the oldest request.
        most_held_tokens: of one request at most so many count as `queued_tokens`; whoever fills
            the queue adds no more of it at once.
    """

    def __init__(
        self,
        token_budget: int,
        *,
        first_come_first_served: bool = False,
        aged_share: float = DEFAULT_AGED_SHARE,
        most_held_tokens: int = UNBOUNDED_TOKENS,
    ) -> None:
        self._token_budget = token_budget
        self._first_come_first_served = first_come_first_served
        self._aged_share = aged_share
        self._aged_credit_tokens = 0.0
        self._most_held_tokens = most_held_tokens
        self._requests: dict[int, _Request[P]] = {}
        self._backlog = Backlog(token_budget, most_held_tokens, len(Priority))
        # Of all requests with waiting pairs, perhaps already started for another request.
        self._by_order: SortedList = SortedList()
        self._by_number: SortedList = SortedList()
        # (deadline, number) of all that have a deadline.
        self._deadlines: SortedList = SortedList()

    @property
    def token_budget(self) -> int:
        """Most tokens of a batch."""
        return self._token_budget

    @token_budget.setter
    def token_budget(self, tokens: int) -> None:
        if tokens == self._token_budget:
            return
        self._token_budget = tokens
        # Rare, unlike everything else here: only when memory has run out, and while that heals.
        self._backlog = Backlog(tokens, self._most_held_tokens, len(Priority))
        for request in self._requests.values():
            self._backlog.add(request.load)
            self._enter_order(request)

    @property
    def queued_tokens(self) -> int:
        """Tokens of all pairs that wait or are expected, of each request no more than it may hold."""
        return self._backlog.held_tokens

    def open(
        self, number: int, *, priority: Priority, deadline_s: float = math.inf, expected_tokens: int = 0
    ) -> None:
        """Register a request. Its number must be higher than those of all before it."""
        request: _Request[P] = _Request(number, priority, deadline_s, expected_tokens)
        self._requests[number] = request
        self._backlog.add(request.load)
        if deadline_s < math.inf:
            self._deadlines.add((deadline_s, number))

    def add(self, number: int, pairs: Iterable[P]) -> None:
        """Queue pairs of a request; a request that is gone (expired) takes none."""
        request = self._requests.get(number)
        if request is None:
            return
        for pair in pairs:
            request.waiting.append(pair)
            request.waiting_tokens += pair.tokens
        self._enter_order(request)
        self._enter_load(request)

    def expect_no_more(self, number: int) -> None:
        """All pairs of the request are queued: what waits is exact from now on."""
        request = self._requests.get(number)
        if request is not None:
            request.expected_tokens = 0
            self._enter_load(request)

    def close(self, number: int) -> int:
        """Forget a request that is done or cancelled; returns the waiting tokens that this dropped."""
        request = self._requests.pop(number, None)
        if request is None:
            return 0
        self._backlog.remove(request.load)
        self._leave_order(request)
        if request.deadline_s < math.inf:
            self._deadlines.remove((request.deadline_s, number))
        return sum(pair.tokens for pair in request.waiting if not pair.started)

    def has_work(self) -> bool:
        """Whether a batch would not be empty."""
        return self._oldest() is not None

    def next_batch(self, now_s: float) -> Batch[P]:
        """Choose, mark as started and hand out the pairs of the next batch; drop what has expired."""
        batch: Batch[P] = Batch()
        while self._deadlines and self._deadlines[0][0] <= now_s:
            number = self._deadlines[0][1]
            batch.dropped_tokens += self.close(number)
            batch.expired.append(number)
        oldest = self._oldest()
        if oldest is None:
            return batch
        if not self._first_come_first_served:
            self._serve_oldest(oldest, batch, contended=len(self._by_number) > 1)
        self._serve_by_order(batch)
        return batch

    def tokens_ahead(self, priority: Priority, tokens: int) -> int:
        """Tokens that will run before a new request of this size is done, its own not included.

        Under the fair order that is far less than everything queued: of each
        request of the same class only what it may receive before it falls to a
        level below the new one.
        """
        everything = self._backlog.remaining_tokens
        if self._first_come_first_served:
            return everything
        ahead = self._backlog.before(priority, level_of(max(0, tokens - 1), self._token_budget))
        # The oldest request takes its share on top, whatever its class and level.
        return min(everything, math.ceil((ahead + tokens) / (1 - self._aged_share)) - tokens)

    def _oldest(self) -> _Request[P] | None:
        """Of the requests with a pair to start the one that arrived first."""
        while self._by_number:
            request = self._requests[self._by_number[0]]
            self._settle(request)
            if request.order is not None:
                return request
        return None

    def _serve_oldest(self, oldest: _Request[P], batch: Batch[P], *, contended: bool) -> None:
        if not contended:
            self._aged_credit_tokens = 0.0
            return
        self._aged_credit_tokens += self._aged_share * self._token_budget
        while (pair := oldest.next_pair()) is not None:
            if pair.tokens > self._aged_credit_tokens or not self._fits(pair, batch):
                break
            self._aged_credit_tokens -= pair.tokens
            self._take(oldest, batch)
        self._settle(oldest)
        if oldest.order is None:
            self._aged_credit_tokens = 0.0

    def _serve_by_order(self, batch: Batch[P]) -> None:
        passed_over = 0
        while passed_over < min(len(self._by_order), MOST_PASSED_OVER) and batch.tokens < self._token_budget:
            order: Order = self._by_order[passed_over]
            request = self._requests[order[-1]]
            # To the end of its level: until then it stays the first.
            while (pair := request.next_pair()) is not None and self._order(request) == order:
                # A pair that doesn't fit goes first in a later batch; smaller ones of others fill this one.
                if not self._fits(pair, batch):
                    passed_over += 1
                    break
                self._take(request, batch)
            self._settle(request)

    def _fits(self, pair: P, batch: Batch[P]) -> bool:
        return not batch.pairs or batch.tokens + pair.tokens <= self._token_budget

    def _take(self, request: _Request[P], batch: Batch[P]) -> None:
        pair = request.start_next()
        batch.pairs.append(pair)
        batch.tokens += pair.tokens

    def _settle(self, request: _Request[P]) -> None:
        """Bring the sums and orders up to date: it was served, or others started pairs that it waits for."""
        if request.next_pair() is None:
            self._leave_order(request)
        else:
            self._enter_order(request)
        self._enter_load(request)

    def _enter_load(self, request: _Request[P]) -> None:
        load = request.present_load()
        if load != request.load:
            self._backlog.remove(request.load)
            self._backlog.add(load)
            request.load = load

    def _enter_order(self, request: _Request[P]) -> None:
        order = self._order(request)
        if not request.waiting or order == request.order:
            return
        self._leave_order(request)
        request.order = order
        self._by_order.add(order)
        self._by_number.add(request.number)

    def _leave_order(self, request: _Request[P]) -> None:
        if request.order is not None:
            self._by_order.remove(request.order)
            self._by_number.remove(request.number)
            request.order = None

    def _order(self, request: _Request[P]) -> Order:
        if self._first_come_first_served:
            return (0, 0, 0.0, request.number)
        level = level_of(request.served_tokens, self._token_budget)
        return (request.priority, level, request.deadline_s, request.number)
