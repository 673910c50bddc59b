"""The book-keeping of rerank_many: many queries on one stream; pure policy.

Both clients drive a StreamSession the same way, until it is `finished`:

    requests = session.due(now)           what to send, on the stream `session.generation`
    event = wait(session.wait_s(now))     what happened meanwhile, or None
    outcomes = session.handle(event, now) what to hand to the caller

gRPC does not retry a stream that has begun to answer, so this class does: a stream that
breaks is opened again for the queries that have no answer yet, and a query that a busy
server refused is asked again. A query that is out whenever a stream breaks, or that was on a
device when that died, may be what kills the servers: both are asked a bounded number of times.
All shards of a query are on one stream and so on one server.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic

import grpc

from rerank._errors import DeadlineExceededError, DeviceLostError, ProtocolError, RerankError
from rerank._options import RerankOptions
from rerank._plan import Plan, Reply, plan
from rerank._repeats import error_to_tell
from rerank._results import Ranking
from rerank._retry import JITTER
from rerank._settings import Call, ClientSettings
from rerank._sharding import ShardLimits
from rerank._stream_events import Answered, Asked, Broke, Event, SourceEnded, Surplus
from rerank._translate import error_of_message, is_retryable
from rerank._type_variables import K, T
from rerank.v1 import rerank_pb2 as wire

__all__ = ["Outcome", "Query", "StreamSession"]

# Ours are shorter. Whatever a server sends instead is not worth converting to a number.
MOST_ID_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Query(Generic[K, T]):
    """One query of `rerank_many`; `id` is anything that tells the caller which one it was."""

    id: K
    query: str
    documents: Sequence[T]


Outcome = tuple[K, Ranking[T] | RerankError]


@dataclass(slots=True)
class _Open(Generic[K, T]):
    """A query that waits for its answer."""

    id: K
    plan: Plan[T]
    expires_at: float
    replies: dict[int, Reply] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    lost: DeviceLostError | None = None
    """Told when shards of it were on a device when that died."""
    lost_on: int = -1
    """The generation of the stream that told so; all that it tells is about one device."""

    def lost_before(self, generation: int) -> bool:
        """Whether an earlier stream has told that a device was lost."""
        return self.lost is not None and self.lost_on != generation


Part = tuple[int, int]


class StreamSession(Generic[K, T]):
    """Which queries are out, which are to be sent, and what became of the others."""

    def __init__(
        self,
        *,
        text: Callable[[T], str] | None,
        options: RerankOptions,
        settings: ClientSettings,
        limits: ShardLimits,
        call: Call,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.call = call
        self.generation = 0
        self._text = text
        self._options = options
        self._settings = settings
        self._limits = limits
        self._spread = spread
        self._source_ended = False
        self._open: dict[int, _Open[K, T]] = {}
        self._next_number = 0
        # When each part that is not on the stream may be sent, and which are on it.
        self._unsent: dict[Part, float] = {}
        self._sent: set[Part] = set()
        self._leave_at: float | None = None
        self._breaks_in_a_row = 0
        self._answered_here = False
        self._surplus = Surplus()

    @property
    def finished(self) -> bool:
        """Whether every query that there will be has its outcome."""
        return self._source_ended and not self._open

    def due(self, now: float) -> list[wire.RerankStreamRequest]:
        """Return what to send now, on the stream with the current `generation`."""
        if self._leave_at is not None and self._leave_at <= now:
            self._resend_all(now)
        parts = [part for part, at in self._unsent.items() if at <= now]
        for part in parts:
            del self._unsent[part]
            self._sent.add(part)
        self._surplus.ask(len(parts))
        return [
            wire.RerankStreamRequest(id=f"{number}.{shard}", request=self._open[number].plan.requests[shard])
            for number, shard in parts
        ]

    def wait_s(self, now: float) -> float | None:
        """Return after how long something is due although nothing happened, or None."""
        times = [*self._unsent.values(), *(query.expires_at for query in self._open.values())]
        if self._leave_at is not None:
            times.append(self._leave_at)
        return max(0.0, min(times) - now) if times else None

    def handle(self, event: Event | None, now: float) -> list[Outcome[K, T]]:
        """Take what happened, or that nothing did; return the outcomes that are due to the caller.

        Raises the caller's own error if the source of queries failed, and the stream's
        error if it can't be kept open at all.
        """
        match event:
            case None:
                return self._expire(now)
            case Asked(query):
                return self._ask(query, now)
            case Answered(generation, response, servers):
                return self._answer(response, servers, now) if generation == self.generation else []
            case Broke(generation, error):
                return self._break(error, now) if generation == self.generation else []
            case SourceEnded(error):
                if error:
                    raise error
                self._source_ended = True
                return []

    def ask_at_once(self, query: Query[K, T], answer: Callable[[Plan[T]], list[Reply]]) -> Outcome[K, T]:
        """Ask one query where no stream is needed, because `answer` knows the answers."""
        try:
            planned = self._plan(query)
            return query.id, planned.merge(answer(planned), request_id=self.call.request_id)
        except RerankError as error:
            return query.id, error

    def _ask(self, query: Query[K, T], now: float) -> list[Outcome[K, T]]:
        try:
            planned = self._plan(query)
        except RerankError as error:
            return [(query.id, error)]
        if not planned.requests:
            return [(query.id, planned.merge([], request_id=self.call.request_id))]
        number = self._next_number
        self._next_number += 1
        self._open[number] = _Open(query.id, planned, now + self.call.timeout_s)
        for shard in range(len(planned.requests)):
            self._unsent[number, shard] = now
        return []

    def _plan(self, query: Query[K, T]) -> Plan[T]:
        if not isinstance(query, Query):
            raise TypeError(f"queries: must give rerank.Query objects, not {type(query).__name__}")
        return plan(
            query.query,
            query.documents,
            text=self._text,
            options=self._options,
            limits=self._limits,
        )

    def _answer(
        self, response: wire.RerankStreamResponse, servers: tuple[str, ...], now: float
    ) -> list[Outcome[K, T]]:
        if self._surplus.answer():
            raise ProtocolError(
                f"{self._settings.target} answers what was never asked on this stream",
                request_id=self.call.request_id,
                servers=servers,
            )
        part = _part(response.id)
        if part not in self._sent:
            return []  # too late: the query has expired, or another of its parts failed
        self._sent.discard(part)
        self._breaks_in_a_row = 0
        self._answered_here = True
        number, shard = part
        query = self._open[number]
        if response.WhichOneof("outcome") == "response":
            query.replies[shard] = Reply(response.response, servers)
            if len(query.replies) < len(query.plan.requests):
                return []
            return [self._close(number, self._merge(query))]
        error = error_of_message(response.error, self._settings, self.call, servers=servers)
        if self._try_again(part, error, now):
            return []
        return [self._close(number, query.plan.locate(shard, error_to_tell(error, query.lost)))]

    def _merge(self, query: _Open[K, T]) -> Ranking[T] | RerankError:
        replies = [query.replies[shard] for shard in range(len(query.plan.requests))]
        try:
            return query.plan.merge(replies, request_id=self.call.request_id)
        except RerankError as error:
            return error

    def _try_again(self, part: Part, error: RerankError, now: float) -> bool:
        number, shard = part
        query, retry = self._open[number], self._settings.retry
        attempts = query.attempts[shard] = query.attempts.get(shard, 0) + 1
        if not is_retryable(error) or attempts >= retry.max_attempts:
            return False
        if isinstance(error, DeviceLostError):
            if query.lost_before(self.generation):
                return False
            query.lost, query.lost_on = error, self.generation
            # Spread out, as in `_repeats.py`: the guilty one should meet the others no more.
            at = now + self._spread(retry.initial_backoff_s, retry.max_backoff_s)
        else:
            at = now + max(self._backoff_s(attempts), error.retry_after_s or 0.0)
        self._unsent[part] = at
        if error.code is grpc.StatusCode.UNAVAILABLE:
            # This server is going away; asking it again would only use up the attempts.
            self._leave_at = at if self._leave_at is None else min(self._leave_at, at)
        return True

    def _expire(self, now: float) -> list[Outcome[K, T]]:
        late = [number for number, query in self._open.items() if query.expires_at <= now]
        message = f"{self._settings.target} did not answer this query within {self.call.timeout_s:g} s"
        return [
            self._close(number, DeadlineExceededError(message, request_id=self.call.request_id))
            for number in late
        ]

    def _break(self, error: RerankError, now: float) -> list[Outcome[K, T]]:
        if not self._open:
            self._new_generation()
            return []
        self._breaks_in_a_row += 1
        # Whatever ends a stream that has answered, a timeout of a proxy or a reset, is
        # worth another try; one that never answered must be told to come back.
        worth_it = self._answered_here or is_retryable(error)
        if not worth_it or self._breaks_in_a_row >= self._settings.retry.max_attempts:
            raise error
        outcomes = [
            self._close(number, error_to_tell(error, self._open[number].lost)) for number in self._suspects()
        ]
        self._resend_all(now + self._backoff_s(self._breaks_in_a_row))
        return outcomes

    def _suspects(self) -> set[int]:
        """Count one more break for all that is out; return the queries that have seen enough of them."""
        suspects = set()
        for number, shard in self._sent:
            query = self._open[number]
            breaks = query.attempts[shard] = query.attempts.get(shard, 0) + 1
            if breaks >= self._settings.retry.max_attempts or query.lost_before(self.generation):
                suspects.add(number)
        return suspects

    def _resend_all(self, at: float) -> None:
        self._unsent |= dict.fromkeys(sorted(self._sent), at)
        self._sent.clear()
        self._new_generation()

    def _new_generation(self) -> None:
        self.generation += 1
        self._answered_here = False
        self._surplus = Surplus()
        self._leave_at = None

    def _close(self, number: int, outcome: Ranking[T] | RerankError) -> Outcome[K, T]:
        query = self._open.pop(number)
        for shard in range(len(query.plan.requests)):
            self._sent.discard((number, shard))
            self._unsent.pop((number, shard), None)
        return query.id, outcome

    def _backoff_s(self, attempts_made: int) -> float:
        spread = self._spread(1 - JITTER, 1 + JITTER)
        return self._settings.retry.backoff_s(attempts_made) * spread


def _part(wire_id: str) -> Part:
    number, _, shard = wire_id[:MOST_ID_CHARACTERS].partition(".")
    # A server that makes up ids gets the same treatment as one that answers too late.
    return (int(number), int(shard)) if number.isdecimal() and shard.isdecimal() else (-1, -1)
