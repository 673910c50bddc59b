"""The engine with the simulated device: exactly once each, whatever happens."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from server.config import SimulatedModelSettings
from server.engine.engine import Engine, EngineOptions
from server.engine.observer import SilentObserver
from server.engine.pair_cache import PairScore
from server.engine.pairs import Failure
from server.engine.requests import Scored, ScoreRequest
from server.engine.scheduler import Priority
from server.errors import DeadlineExceeded, DeviceDied, InvalidRequest, NotReady, Overloaded
from server.models.base import EncodedDocument, EncodedPair, EncodedQuery, Logits, PendingLogits, Windowing
from server.models.simulated import SimulatedModel


class CountingModel(SimulatedModel):
    """The simulated model, with a record of every batch."""

    def __init__(self, settings: SimulatedModelSettings) -> None:
        super().__init__(settings)
        self._settings = settings
        self.batches: list[list[EncodedPair]] = []

    def submit(self, pairs: Sequence[EncodedPair]) -> PendingLogits:  # type: ignore[override]
        self.batches.append(list(pairs))
        return super().submit(pairs)

    @property
    def scored_pairs(self) -> int:
        return sum(map(len, self.batches))


class Recorder(SilentObserver):
    """Remembers what the engine said."""

    def __init__(self) -> None:
        self.wasted = self.dropped = self.out_of_memory_events = 0
        self.budgets: list[int] = []

    def tokens_wasted(self, tokens: int) -> None:
        self.wasted += tokens

    def tokens_dropped(self, tokens: int) -> None:
        self.dropped += tokens

    def out_of_memory(self, token_budget: int) -> None:
        self.out_of_memory_events += 1
        self.budgets.append(token_budget)


def model_with(
    tokens_per_second: float = 1e6, memory_tokens: int = 0, max_tokens: int = 512
) -> CountingModel:
    return CountingModel(
        SimulatedModelSettings(
            tokens_per_second=tokens_per_second,
            startup_s=0,
            max_tokens=max_tokens,
            memory_tokens=memory_tokens,
        )
    )


@asynccontextmanager
async def running(
    model: CountingModel,
    *,
    token_budget: int = 200,
    observer: Recorder | None = None,
    on_lost: Callable[[str], None] = lambda reason: None,
    **options: int,
) -> AsyncIterator[Engine]:
    engine = Engine(
        model,
        EngineOptions(
            token_budget=token_budget,
            initial_tokens_per_second=model._tokens_per_second,
            **options,  # type: ignore[arg-type]
        ),
        observer=observer,
        on_lost=on_lost,
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop(timeout_s=2)


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


def logits(scored: Scored) -> list[float]:
    assert all(isinstance(outcome, PairScore) for outcome in scored.outcomes)
    return [outcome.logit for outcome in scored.outcomes if isinstance(outcome, PairScore)]


def words(count: int, seed: int = 0) -> str:
    return " ".join(f"w{seed}x{i}" for i in range(count))


async def test_scores_come_back_in_the_order_of_the_request() -> None:
    """Concurrent requests get what each would get alone."""
    requests = [ScoreRequest(f"w{q}x1 w{q}x3", [words(n, q) for n in range(40)]) for q in range(8)]
    async with running(model_with()) as engine:
        together = await asyncio.gather(*map(engine.score, requests))
    for request, scored in zip(requests, together, strict=True):
        async with running(model_with()) as engine:
            assert logits(await engine.score(request)) == logits(scored)


async def test_duplicates_are_computed_once_and_reported_each() -> None:
    """Three equal documents cost one pair."""
    model = model_with()
    async with running(model) as engine:
        scored = await engine.score(ScoreRequest("a", ["a b", "c", "a b", "a b"]))
    assert model.scored_pairs == 2
    assert (scored.computed_pairs, scored.cached_pairs) == (2, 2)
    assert len({logits(scored)[i] for i in (0, 2, 3)}) == 1


async def test_the_second_time_comes_from_the_cache() -> None:
    """A known pair costs no token, and says so."""
    model = model_with()
    async with running(model) as engine:
        first = await engine.score(ScoreRequest("a", ["a b", "c"]))
        second = await engine.score(ScoreRequest("a", ["c", "a b"]))
    assert model.scored_pairs == 2
    assert logits(second) == logits(first)[::-1]
    assert (second.computed_tokens, second.cached_pairs) == (0, 2)


async def test_identical_pairs_in_flight_are_computed_once() -> None:
    """Whoever asks while a pair is being computed shares it, without a cache."""
    model = model_with(tokens_per_second=2000)
    async with running(model, cache_bytes=0) as engine:
        request = ScoreRequest("a", [words(50, n) for n in range(10)])
        first, second = await asyncio.gather(engine.score(request), engine.score(request))
    assert model.scored_pairs == 10
    assert logits(first) == logits(second)


async def test_a_shared_pair_survives_the_one_who_asked_first() -> None:
    """When the first request is cancelled, the second still gets its scores."""
    model = model_with(tokens_per_second=2000)
    request = ScoreRequest("a", [words(50, n) for n in range(20)])
    async with running(model, cache_bytes=0) as engine:
        first = asyncio.create_task(engine.score(request))
        second = asyncio.create_task(engine.score(request))
        await until(lambda: len(model.batches) >= 1 and engine.requests_in_progress == 2)
        first.cancel()
        assert len(logits(await second)) == 20
    assert model.scored_pairs == 20


async def test_cancelled_work_stops_costing_by_the_next_batch() -> None:
    """What waited is dropped, and what was on the device is counted as wasted."""
    model, recorder = model_with(tokens_per_second=2000), Recorder()
    async with running(model, observer=recorder) as engine:
        task = asyncio.create_task(engine.score(ScoreRequest("a", [words(50, n) for n in range(100)])))
        await until(lambda: len(model.batches) == 2)
        task.cancel()
        await until(lambda: engine.requests_in_progress == 0)
        batches = len(model.batches)
        await until(lambda: recorder.wasted > 0)
        await engine.score(ScoreRequest("b", ["b"]))
    assert len(model.batches) <= batches + 1
    # Everything is accounted for: scored for somebody, wasted, or dropped.
    assert recorder.dropped >= 90 * 50
    assert 0 < recorder.wasted <= 200


async def test_a_deadline_in_the_queue_ends_the_request() -> None:
    """The caller hears DeadlineExceeded, and the engine goes on."""
    model = model_with(tokens_per_second=500)
    async with running(model) as engine:
        # Too many tokens for its time, but an idle server takes what it can't know better about.
        with pytest.raises(DeadlineExceeded):
            await engine.score(
                ScoreRequest("a", [words(100, n) for n in range(10)], deadline_s=time.monotonic() + 0.3)
            )
        assert engine.requests_in_progress == 0
        assert len(logits(await engine.score(ScoreRequest("a", ["b"])))) == 1


async def test_what_can_not_be_done_in_time_is_refused_before_compute() -> None:
    """Behind a backlog, a request with little time is refused at once."""
    model = model_with(tokens_per_second=500)
    async with running(model) as engine:
        backlog = asyncio.create_task(engine.score(ScoreRequest("a", [words(100, n) for n in range(20)])))
        await until(lambda: len(model.batches) == 1)
        started_s = time.monotonic()
        with pytest.raises(Overloaded) as refusal:
            await engine.score(
                ScoreRequest("b", [words(100, 99) for _ in range(1)], deadline_s=time.monotonic() + 0.05)
            )
        assert time.monotonic() - started_s < 0.04
        assert refusal.value.retry_after_s > 0
        backlog.cancel()


async def test_the_queue_is_bounded_in_tokens() -> None:
    """Beyond the bound requests are refused, and memory stays flat."""
    model = model_with(tokens_per_second=500)
    async with running(model, max_queued_tokens=1000) as engine:
        backlog = [
            asyncio.create_task(engine.score(ScoreRequest("a", [words(100, seed + n) for n in range(20)])))
            for seed in (0, 100, 200)
        ]
        await until(lambda: engine.requests_in_progress == 3 and len(model.batches) == 1)
        with pytest.raises(Overloaded, match="queue is full"):
            await engine.score(ScoreRequest("b", [words(100, n) for n in range(20)]))
        assert engine.queued_tokens <= 1000
        for task in backlog:
            task.cancel()


async def test_a_large_request_is_queued_in_parts() -> None:
    """It holds no more than its share and one piece at any time, and is answered completely."""
    model = model_with(tokens_per_second=200_000)
    seen: list[int] = []

    class Watching(Recorder):
        def batch_done(self, **figures: object) -> None:
            seen.append(sum(request.held_tokens for request in engine._waiting.values()))

    async with running(model, observer=Watching(), max_queued_tokens=4000) as engine:
        documents = [words(20, n) for n in range(1000)]
        scored = await engine.score(ScoreRequest("a", documents))
        alone = await engine.score(ScoreRequest("a", documents[500:501]))
    assert len(logits(scored)) == 1000
    assert logits(scored)[500] == logits(alone)[0]
    piece_tokens = 64 * 25
    assert max(seen) <= 4000 / 4 + piece_tokens


@pytest.mark.parametrize("priority", [Priority.BATCH, Priority.INTERACTIVE])
async def test_one_request_of_any_size_leaves_room_for_others(priority: Priority) -> None:
    """A long query counts for each of its pairs, and the queue belongs to nobody."""
    async with running(model_with(tokens_per_second=20_000), max_queued_tokens=50_000) as engine:
        hog = ScoreRequest(words(400), [words(1, n) for n in range(4000)], priority=priority)
        tasks = [asyncio.create_task(engine.score(hog)) for _ in range(2)]
        await until(lambda: engine.requests_in_progress == 2)
        for n in range(20):
            assert len(logits(await engine.score(ScoreRequest(f"a{n}", [words(20, n)])))) == 1
        for task in tasks:
            task.cancel()


async def test_what_was_computed_is_charged_whatever_becomes_of_the_caller() -> None:
    """Hanging up does not make computed tokens free, and what was never computed costs nothing."""
    model = model_with(tokens_per_second=2000)
    charged: list[int] = []
    async with running(model) as engine:
        request = ScoreRequest("a", [words(50, n) for n in range(40)], charge=charged.append)
        task = asyncio.create_task(engine.score(request))
        await until(lambda: len(model.batches) == 2)
        task.cancel()
        await engine.score(ScoreRequest("b", ["b"]))
    computed = sum(pair.tokens for batch in model.batches[:-1] for pair in batch)
    assert 0 < sum(charged) <= computed < 40 * 50


async def test_windows_of_a_long_query_share_it() -> None:
    """64 windows beside a query of thousands of tokens cost memory for the windows alone."""
    model = model_with(max_tokens=8192)
    query = model.encode_query(words(8000))
    windowing = Windowing(max_windows=64)
    [document] = model.encode_documents(query, [words(20_000)], windowing)
    assert len(document.pairs) == 64
    assert all(pair.query is query for pair in document.pairs)
    assert len({id(pair.document_ids.base) for pair in document.pairs}) == 1


async def test_one_poisonous_pair_fails_alone() -> None:
    """A pair that makes the model raise or gives NaN is reported; the rest are answered."""
    documents = [words(20, n) for n in range(30)]
    documents[7] += " simulate_error"
    documents[21] += " simulate_nan"
    model = model_with()
    async with running(model) as engine:
        scored = await engine.score(ScoreRequest("a", documents))
    failed = {i: outcome.reason for i, outcome in enumerate(scored.outcomes) if isinstance(outcome, Failure)}
    assert failed == {
        7: "the model failed: RuntimeError",
        21: "the model gave nan instead of a number",
    }


async def test_out_of_memory_halves_the_batch_and_lowers_the_budget() -> None:
    """Every pair is scored all the same, and later batches fit at once."""
    model, recorder = model_with(memory_tokens=300), Recorder()
    async with running(model, token_budget=1000, observer=recorder) as engine:
        scored = await engine.score(ScoreRequest("a", [words(50, n) for n in range(100)]))
        assert len(logits(scored)) == 100
        events = recorder.out_of_memory_events
        await engine.score(ScoreRequest("b", [words(50, n) for n in range(30)]))
    assert recorder.budgets[-1] <= 300
    assert recorder.out_of_memory_events == events


async def test_a_pair_that_never_fits_fails_alone() -> None:
    """Its reason says how large it is."""
    model = model_with(memory_tokens=100)
    async with running(model) as engine:
        scored = await engine.score(ScoreRequest("a", [words(150), "b"]))
    assert isinstance(scored.outcomes[0], Failure)
    assert "154 tokens" in scored.outcomes[0].reason
    assert isinstance(scored.outcomes[1], PairScore)


async def test_a_lost_device_fails_everyone_and_tells_the_server() -> None:
    """Callers go to another server, and those whose pairs were on the device hear of it."""
    lost: list[str] = []
    async with running(model_with(tokens_per_second=5000), on_lost=lost.append) as engine:
        innocent = [asyncio.create_task(engine.score(ScoreRequest("a", [words(50, n)]))) for n in range(20)]
        poison = asyncio.create_task(engine.score(ScoreRequest("a", ["simulate_lost"])))
        results = await asyncio.gather(*innocent, poison, return_exceptions=True)
        with pytest.raises(NotReady):
            await engine.score(ScoreRequest("a", ["b"]))
    assert isinstance(results[-1], DeviceDied)
    assert all(isinstance(result, Scored | NotReady | DeviceDied) for result in results)
    # Four requests fit into a batch.
    assert sum(isinstance(result, DeviceDied) for result in results) <= 4
    assert sum(isinstance(result, NotReady) for result in results) >= 10
    assert len(lost) == 1


async def test_a_request_that_comes_while_the_device_is_lost_does_not_wait_for_ever() -> None:
    """Its documents were being hashed when the others were told."""
    async with running(model_with()) as engine:
        hashing = asyncio.create_task(engine.score(ScoreRequest("a", [words(20_000, n) for n in range(8)])))
        await asyncio.sleep(0)
        engine.abandon("it hangs")
        async with asyncio.timeout(10):
            with pytest.raises(NotReady):
                await hashing
        assert engine.requests_in_progress == 0


async def test_a_request_that_has_failed_is_told_at_once() -> None:
    """Not after the rest of its thousands of documents was tokenised for nothing."""
    encoded = 0

    class Slow(CountingModel):
        def encode_documents(
            self, query: EncodedQuery, documents: Sequence[str], windowing: Windowing
        ) -> list[EncodedDocument]:
            nonlocal encoded
            encoded += len(documents)
            time.sleep(0.01)
            return super().encode_documents(query, documents, windowing)

    model = Slow(model_with()._settings)
    async with running(model) as engine:
        request = ScoreRequest("a", ["simulate_stuck", *(words(5, n) for n in range(4000))])
        task = asyncio.create_task(engine.score(request))
        await until(lambda: len(model.batches) == 1)
        before = encoded
        engine.abandon("it hangs")
        with pytest.raises(DeviceDied):
            await task
        assert encoded <= before + 2 * 64


async def test_who_leaves_does_not_pay_for_who_stays() -> None:
    """Two wait for the same documents, the first hangs up, and the second is charged for what runs then."""
    model = model_with(tokens_per_second=2000)
    first: list[int] = []
    second: list[int] = []
    documents = [words(50, n) for n in range(20)]
    async with running(model, cache_bytes=0) as engine:
        hog = asyncio.create_task(engine.score(ScoreRequest("z", [words(190)])))
        await until(lambda: len(model.batches) == 1)
        leaves = asyncio.create_task(engine.score(ScoreRequest("a", documents, charge=first.append)))
        await until(lambda: engine.requests_in_progress == 2)
        stays = asyncio.create_task(engine.score(ScoreRequest("a", documents, charge=second.append)))
        await until(lambda: engine.requests_in_progress == 3 and engine._waiting[2].held_tokens > 1000)
        leaves.cancel()
        await stays
        await hog
    assert sum(first) + sum(second) == sum(pair.tokens for batch in model.batches[1:] for pair in batch)
    assert sum(second) > sum(first)


async def test_a_device_that_fails_everything_is_lost() -> None:
    """When not even a harmless pair can be scored, callers are sent elsewhere, poisoned pair or not."""
    lost: list[str] = []
    async with running(model_with(), on_lost=lost.append) as engine:
        for _ in range(3):
            with_poison = await engine.score(ScoreRequest("a", ["simulate_error"]))
            assert isinstance(with_poison.outcomes[0], Failure)
        assert not lost
        with pytest.raises(DeviceDied):
            await engine.score(ScoreRequest("a", ["simulate_broken"]))
        await until(lambda: bool(lost))
        with pytest.raises(NotReady):
            await engine.score(ScoreRequest("a", ["b"]))
    assert len(lost) == 1


async def test_a_stuck_batch_shows() -> None:
    """The watchdog can see how long the device has been busy."""
    async with running(model_with()) as engine:
        assert engine.busy_for_s() == 0.0
        task = asyncio.create_task(engine.score(ScoreRequest("a", ["simulate_stuck"])))
        await until(lambda: engine.busy_for_s() > 0.2)
        task.cancel()


async def test_documents_that_are_too_long_can_be_refused() -> None:
    """The error names the first of them, also when its score is cached."""
    request = ScoreRequest("a", ["short", words(600)])
    refusing = ScoreRequest("a", ["short", words(600)], refuse_truncated=True)
    async with running(model_with()) as engine:
        for _ in range(2):
            with pytest.raises(InvalidRequest) as refusal:
                await engine.score(refusing)
            assert refusal.value.field == "documents[1]"
            scored = await engine.score(request)
    assert [outcome.truncated for outcome in scored.outcomes if isinstance(outcome, PairScore)] == [
        False,
        True,
    ]


async def test_the_best_window_of_a_long_document_wins() -> None:
    """The span points at the part of the text that answers the query."""
    text = f"{words(700)} needle in haystack {words(700, 1)}"
    async with running(model_with()) as engine:
        scored = await engine.score(
            ScoreRequest("needle haystack", [text], windowing=Windowing(max_windows=16))
        )
    (outcome,) = scored.outcomes
    assert isinstance(outcome, PairScore)
    assert outcome.span is not None
    start, end = outcome.span
    assert "needle in haystack" in text[start:end]
    assert not outcome.truncated
    assert outcome.tokens > 1400


async def test_small_requests_overtake_large_ones() -> None:
    """Ten documents are answered while a thousand are still being worked on."""
    model = model_with(tokens_per_second=20_000)
    async with running(model, token_budget=500) as engine:
        large = asyncio.create_task(engine.score(ScoreRequest("a", [words(40, n) for n in range(1000)])))
        await until(lambda: len(model.batches) >= 2)
        batches = len(model.batches)
        await engine.score(ScoreRequest("b", [words(40, n) for n in range(10)]))
        assert len(model.batches) - batches <= 4
        assert not large.done()
        large.cancel()


async def test_batch_priority_yields() -> None:
    """Offline work waits for interactive work of the same size."""
    model = model_with(tokens_per_second=20_000)
    order: list[str] = []

    async def tell(name: str, work: Awaitable[Scored]) -> None:
        await work
        order.append(name)

    async with running(model, token_budget=500) as engine:
        first = [engine.score(ScoreRequest("x", [words(40, n) for n in range(20)]))]
        offline = engine.score(ScoreRequest("a", [words(40, n) for n in range(50)], priority=Priority.BATCH))
        interactive = engine.score(ScoreRequest("b", [words(40, n) for n in range(50)]))
        await asyncio.gather(
            tell("first", first[0]), tell("offline", offline), tell("interactive", interactive)
        )
    assert order == ["first", "interactive", "offline"]


async def test_a_model_that_returns_nonsense_is_survived() -> None:
    """A wrong number of logits is a failure of the pairs, not of the server."""

    class Nonsense(CountingModel):
        def submit(self, pairs: Sequence[EncodedPair]) -> PendingLogits:  # type: ignore[override]
            class Wrong:
                def wait(self) -> Logits:
                    return np.zeros(len(pairs) + 1, np.float32)

            return Wrong()

    model = Nonsense(SimulatedModelSettings(tokens_per_second=1e6, startup_s=0, max_tokens=512))
    async with running(model) as engine:
        scored = await engine.score(ScoreRequest("a", ["b", "c"]))
    assert all(isinstance(outcome, Failure) for outcome in scored.outcomes)
    assert math.isfinite(engine.tokens_per_second)
