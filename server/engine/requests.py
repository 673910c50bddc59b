"""One request on its way through the engine: what was asked, what is known, what is missing."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from server.engine.pair_cache import PairScore
from server.engine.pairs import DocumentFlight, Failure
from server.engine.scheduler import Priority
from server.models.base import Windowing

__all__ = ["ScoreRequest", "Scored", "WaitingRequest"]


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One query's documents."""

    query: str
    documents: Sequence[str]
    windowing: Windowing = field(default_factory=Windowing)
    instruction: str = ""
    refuse_truncated: bool = False
    priority: Priority = Priority.INTERACTIVE
    deadline_s: float = math.inf
    """On the monotonic clock."""
    charge: Callable[[int], None] = lambda tokens: None
    """Hears of tokens that were computed for this request, even after it was cancelled."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What became of a request's documents, and what it took."""

    outcomes: Sequence[PairScore | Failure]
    """One per document, in the order of the request."""
    computed_tokens: int
    computed_pairs: int
    cached_pairs: int
    tokenise_s: float
    queue_s: float
    compute_s: float


@dataclass(slots=True, eq=False)
class WaitingRequest:
    """A request between its arrival and its last score."""

    number: int
    request: ScoreRequest
    positions: dict[bytes, list[int]]
    """Where each distinct document stands in the request, by its key."""
    done: asyncio.Future[None]
    outcomes: list[PairScore | Failure | None] = field(init=False)
    flights: dict[bytes, DocumentFlight] = field(default_factory=dict)
    """Documents in flight that this request waits for."""
    held_tokens: int = 0
    """Tokens of those documents."""
    unsettled: int = field(init=False)
    """Distinct documents without an outcome."""
    computed_documents: int = 0
    computed_tokens: int = 0
    computed_pairs: int = 0
    tokenise_s: float = 0.0
    queued_s: float = 0.0
    first_started_s: float = math.inf
    last_finished_s: float = 0.0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.outcomes = [None] * len(self.request.documents)
        self.unsettled = len(self.positions)

    def settle(self, key: bytes, outcome: PairScore | Failure) -> None:
        """One distinct document has its outcome; the last one wakes whoever awaits `done`."""
        for position in self.positions[key]:
            self.outcomes[position] = outcome
        self.unsettled -= 1
        if self.unsettled == 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Nothing more will come."""
        if not self.done.done():
            self.done.set_exception(error)
        self._changed.set()

    def hold(self, flight: DocumentFlight) -> None:
        """Wait for a document, and count its tokens as held."""
        flight.waiting_requests.add(self.number)
        self.flights[flight.key] = flight
        self.held_tokens += flight.tokens

    def release(self, flight: DocumentFlight) -> None:
        """The document has landed."""
        del self.flights[flight.key]
        self.held_tokens -= flight.tokens
        self._changed.set()

    async def room(self, most_tokens: int) -> None:
        """Return once fewer tokens than these are held, or the request is over."""
        while self.held_tokens >= most_tokens and not self.done.done():
            self._changed.clear()
            await self._changed.wait()

    def ran(self, started_s: float, finished_s: float) -> None:
        """Some of its pairs were in a batch that ran from `started_s` to `finished_s`."""
        self.first_started_s = min(self.first_started_s, started_s)
        self.last_finished_s = finished_s

    def computes(self, flight: DocumentFlight) -> None:
        """This request is the first to ask for the flight's document, and pays for it."""
        self.computed_documents += 1
        self.computed_tokens += flight.tokens
        self.computed_pairs += len(flight.pairs)

    def missing(self) -> list[tuple[int, bytes]]:
        """(first position, key) of each distinct document that has no outcome."""
        return [
            (positions[0], key)
            for key, positions in self.positions.items()
            if self.outcomes[positions[0]] is None
        ]

    def result(self) -> Scored:
        """The outcomes, once all are there."""
        computed = self.last_finished_s > 0
        return Scored(
            outcomes=[outcome for outcome in self.outcomes if outcome is not None],
            computed_tokens=self.computed_tokens,
            computed_pairs=self.computed_pairs,
            cached_pairs=len(self.outcomes) - self.computed_documents,
            tokenise_s=self.tokenise_s,
            queue_s=max(0.0, self.first_started_s - self.queued_s) if computed else 0.0,
            compute_s=max(0.0, self.last_finished_s - self.first_started_s) if computed else 0.0,
        )
