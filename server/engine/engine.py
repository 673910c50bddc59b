"""The engine as the event loop sees it: score one query's documents, each pair once.

cache -> admit -> tokenise -> schedule -> (device thread) -> collect. A request
that is cancelled or runs out of time leaves at any of these points, and what
nobody else waits for leaves with it.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.engine.admission import DEFAULT_QUEUE_SHARE, Admission, Throughput
from server.engine.budget import TokenBudget
from server.engine.estimate import TokenEstimate
from server.engine.observer import EngineObserver, SilentObserver
from server.engine.pair_cache import PairCache, PairKeys, PairScore
from server.engine.pairs import DocumentFlight, Failure
from server.engine.requests import Scored, ScoreRequest, WaitingRequest
from server.engine.scheduler import Scheduler
from server.engine.tokenising import Tokenising
from server.engine.work_queue import WorkQueue
from server.engine.worker import DeviceWorker, FinishedBatch
from server.errors import DeadlineExceeded, DeviceDied, InvalidRequest, NotReady, Overloaded
from server.models.base import EncodedDocument, Model

__all__ = ["Engine", "EngineOptions"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What can be tuned."""

    token_budget: int
    initial_tokens_per_second: float
    max_queued_tokens: int = 4_000_000
    queue_share: float = DEFAULT_QUEUE_SHARE
    """How much of the queue one request may hold."""
    cache_bytes: int = 128 * 1024 * 1024
    first_come_first_served: bool = False


class Engine:
    """Scores pairs of concurrent requests on one device. Lives on one event loop."""

    def __init__(
        self,
        model: Model,
        options: EngineOptions,
        *,
        observer: EngineObserver | None = None,
        on_lost: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._model = model
        self._observer = observer or SilentObserver()
        self._on_lost = on_lost
        self._cache = PairCache(options.cache_bytes)
        self._estimate = TokenEstimate(model.info.max_tokens)
        self._throughput = Throughput(options.initial_tokens_per_second)
        self._admission = Admission(options.max_queued_tokens, self._throughput, options.queue_share)
        self._tokenising = Tokenising(model)
        self._queue = WorkQueue(
            Scheduler(
                options.token_budget,
                first_come_first_served=options.first_come_first_served,
                most_held_tokens=self._admission.most_held_tokens,
            )
        )
        self._worker = DeviceWorker(
            model,
            self._queue,
            TokenBudget(options.token_budget),
            deliver=lambda finished: self._on_loop(self._deliver, finished),
            on_lost=lambda error: self._on_loop(self._lose, f"{type(error).__name__}: {error}"),
        )
        self._numbers = itertools.count()
        self._waiting: dict[int, WaitingRequest] = {}
        self._flights: dict[bytes, DocumentFlight] = {}
        self._lost_reason = ""
        self._loop: asyncio.AbstractEventLoop

    async def start(self) -> None:
        """Start the device's thread; call from the loop that will call `score`."""
        self._loop = asyncio.get_running_loop()
        self._worker.start()

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Stop after the batch on the device; requests that still wait fail with NotReady."""
        self._fail_all(NotReady("the server has stopped"))
        await asyncio.to_thread(self._worker.stop, timeout_s)
        self._tokenising.close()

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for the device."""
        return self._queue.queued_tokens

    @property
    def tokens_per_second(self) -> float:
        """The device's speed as learned so far."""
        return self._throughput.tokens_per_second

    @property
    def requests_in_progress(self) -> int:
        """Requests between admission and answer."""
        return len(self._waiting)

    @property
    def cache_bytes(self) -> int:
        """Memory that the pair cache uses."""
        return self._cache.used_bytes

    def busy_for_s(self) -> float:
        """How long the present batch has been on the device; a watchdog compares it to a limit."""
        return self._worker.busy_for_s(time.monotonic())

    async def score(self, request: ScoreRequest) -> Scored:
        """Score every document of the request.

        Raises:
            Overloaded: refused before any compute.
            DeadlineExceeded: `deadline_s` passed.
            InvalidRequest: a document is too long and `refuse_truncated` is set.
            TooLarge: the query leaves no room for a document.
            DeviceDied: the device was lost with some of the request on it.
            NotReady: it was lost otherwise, or the engine was stopped.
        """
        waiting = await self._look_up(request)
        # Only now, since no one is told of a loss who came before it and was admitted after it.
        if self._lost_reason:
            raise NotReady(f"the device is lost: {self._lost_reason}; the server is about to restart")
        if waiting.unsettled > 0:
            self._admit(waiting)
            try:
                await self._compute(waiting)
            finally:
                self._leave(waiting)
        return waiting.result()

    async def _look_up(self, request: ScoreRequest) -> WaitingRequest:
        """Find duplicates, and fill in what the cache knows."""
        keys = PairKeys(self._model.info.fingerprint, request.query, request.instruction, request.windowing)
        positions: dict[bytes, list[int]] = {}
        for position, key in enumerate(await self._tokenising.keys(keys, request.documents)):
            positions.setdefault(key, []).append(position)
        waiting = WaitingRequest(
            next(self._numbers), request, positions, done=asyncio.get_running_loop().create_future()
        )
        for key, score in zip(positions, self._cache.get_many(list(positions)), strict=True):
            if score is not None:
                if score.truncated and request.refuse_truncated:
                    raise _too_long(positions[key][0])
                waiting.settle(key, score)
        return waiting

    def _admit(self, waiting: WaitingRequest) -> None:
        request = waiting.request
        missing = [request.documents[position] for position, _ in waiting.missing()]
        tokens = self._estimate.of(request.query, missing, request.windowing)
        queued_tokens, tokens_ahead = self._queue.load(request.priority, tokens)
        try:
            self._admission.check(
                priority=request.priority,
                tokens=tokens,
                queued_tokens=queued_tokens,
                tokens_ahead=tokens_ahead,
                running_tokens=self._worker.running_tokens,
                batch_tokens=self._worker.token_budget,
                time_left_s=None if request.deadline_s == math.inf else request.deadline_s - time.monotonic(),
            )
        except Overloaded as error:
            self._observer.request_refused(error.reason)
            raise
        self._queue.open(
            waiting.number, priority=request.priority, deadline_s=request.deadline_s, expected_tokens=tokens
        )
        self._waiting[waiting.number] = waiting

    async def _compute(self, waiting: WaitingRequest) -> None:
        deadline_s = waiting.request.deadline_s
        try:
            async with asyncio.timeout_at(None if deadline_s == math.inf else deadline_s):
                await self._tokenise(waiting)
                await waiting.done
        except TimeoutError:
            raise DeadlineExceeded(
                f"the deadline passed with {waiting.unsettled} of {len(waiting.positions)} documents to go"
            ) from None

    async def _tokenise(self, waiting: WaitingRequest) -> None:
        """Tokenise piece by piece, and queue each as soon as it is ready and the request may hold more."""
        request = waiting.request
        started_s = time.monotonic()
        missing = waiting.missing()
        texts = [request.documents[position] for position, _ in missing]
        query = await self._tokenising.query(request.query, request.instruction)
        async for piece, encoded in self._tokenising.documents(query, texts, request.windowing):
            waiting.tokenise_s += time.monotonic() - started_s
            self._estimate.learn(query, [texts[i] for i in piece], encoded)
            for i, document in zip(piece, encoded, strict=True):
                if document.truncated and request.refuse_truncated:
                    raise _too_long(missing[i][0])
            self._queue_documents(waiting, [missing[i][1] for i in piece], encoded)
            await waiting.room(self._admission.most_held_tokens)
            if waiting.done.done():
                # It has failed, and nobody wants the rest.
                return
            started_s = time.monotonic()
        self._queue.expect_no_more(waiting.number)
        self._observer.pairs_found(
            cached=len(waiting.positions) - len(missing),
            joined=len(missing) - waiting.computed_documents,
            missed=waiting.computed_documents,
        )

    def _queue_documents(
        self, waiting: WaitingRequest, keys: Sequence[bytes], encoded: Sequence[EncodedDocument]
    ) -> None:
        """Queue documents, joining those that are in flight already."""
        pairs = []
        for key, document in zip(keys, encoded, strict=True):
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = DocumentFlight(key, document, waiting.request.charge)
                waiting.computes(flight)
            waiting.hold(flight)
            # Of a flight that others wait for, too: whoever is served first brings it in for all.
            pairs += [pair for pair in flight.pairs if not pair.started]
        waiting.queued_s = time.monotonic()
        self._queue.add(waiting.number, pairs)

    def _deliver(self, finished: FinishedBatch) -> None:
        for number in finished.expired:
            if number in self._waiting:
                self._waiting[number].fail(DeadlineExceeded("the deadline passed in the queue"))
        if finished.dropped_tokens:
            self._observer.tokens_dropped(finished.dropped_tokens)
        if finished.ran_out_of_memory:
            self._observer.out_of_memory(finished.token_budget)
        if not finished.pairs:
            return
        self._throughput.record(finished.tokens, finished.busy_s)
        self._observer.batch_done(
            pairs=len(finished.pairs),
            tokens=finished.tokens,
            seconds=finished.busy_s,
            token_budget=finished.token_budget,
        )
        wasted_tokens = 0
        for pair, outcome in zip(finished.pairs, finished.outcomes, strict=True):
            pair.flight.charge(pair.tokens)
            if not pair.flight.waiting_requests:
                wasted_tokens += pair.tokens
            for number in pair.flight.waiting_requests:
                self._waiting[number].ran(finished.started_s, finished.finished_s)
            score = pair.flight.settle(pair.window, outcome)
            if score is not None:
                self._land(pair.flight, score)
        if wasted_tokens:
            self._observer.tokens_wasted(wasted_tokens)

    def _land(self, flight: DocumentFlight, score: PairScore | Failure) -> None:
        """A document is done: tell everyone who waits for it, and the cache."""
        self._forget(flight)
        if isinstance(score, Failure):
            self._observer.pair_failed(score.reason)
        else:
            self._cache.put(flight.key, score)
        for number in flight.waiting_requests:
            self._waiting[number].release(flight)
            self._waiting[number].settle(flight.key, score)
        flight.waiting_requests.clear()

    def _leave(self, waiting: WaitingRequest) -> None:
        """The request is answered, failed or cancelled: drop what nobody else waits for."""
        del self._waiting[waiting.number]
        for flight in waiting.flights.values():
            flight.waiting_requests.discard(waiting.number)
            if not flight.waiting_requests:
                self._forget(flight)
            elif flight.charge is waiting.request.charge:
                # Who leaves does not pay for what runs for those who stay.
                flight.charge = self._waiting[next(iter(flight.waiting_requests))].request.charge
        dropped_tokens = self._queue.close_request(waiting.number)
        if dropped_tokens:
            self._observer.tokens_dropped(dropped_tokens)
        if waiting.done.done() and not waiting.done.cancelled():
            # Marks a failure as seen that came while the request was leaving for another reason.
            waiting.done.exception()

    def _forget(self, flight: DocumentFlight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def _on_loop(self, function: Callable[..., None], *arguments: object) -> None:
        """Call from the device's thread."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop is closed: the server is gone, and nobody waits for this batch.
            return

    def _lose(self, reason: str) -> None:
        self.abandon(reason)
        self._on_lost(reason)

    def abandon(self, reason: str) -> None:
        """Fail everything that waits: the device is lost, or hangs. Nothing is scored from now on."""
        self._lost_reason = reason
        # Any of what was on the device may be what killed it, and would kill the next one.
        for pair in self._worker.pairs_on_device:
            for number in pair.flight.waiting_requests:
                self._waiting[number].fail(
                    DeviceDied(
                        f"the device died while it scored this request ({reason}); if the request is the "
                        "cause, it would do the same elsewhere: try again once, then leave it"
                    )
                )
        self._fail_all(NotReady(f"the device is lost: {reason}"))

    def _fail_all(self, error: NotReady) -> None:
        for waiting in self._waiting.values():
            waiting.fail(error)


def _too_long(position: int) -> InvalidRequest:
    return InvalidRequest(
        f"documents[{position}]",
        "longer than may be read at once; shorten it, raise max_tokens_per_document, "
        "or use TRUNCATION_END or TRUNCATION_CHUNK",
    )
