"""Ten times more than the device can do: what is taken is answered in time, the rest is told at once."""

import asyncio
import gc
import random
import statistics
import time

import pytest

from server.config import SimulatedModelSettings
from server.engine.engine import Engine, EngineOptions
from server.engine.requests import ScoreRequest
from server.engine.warmup import warm_up
from server.errors import DeadlineExceeded, Overloaded
from server.models.simulated import SimulatedModel

TOKENS_PER_SECOND = 20_000
DOCUMENT_WORDS = 57
PAIR_TOKENS = DOCUMENT_WORDS + 4
LOAD_S = 5.0
DEADLINE_S = 1.0


@pytest.mark.parametrize("sizes", [(16,), (2, 4, 32)], ids=["equal", "mixed"])
async def test_goodput_stays_at_capacity_under_ten_times_the_load(sizes: tuple[int, ...]) -> None:
    """Nothing is computed in vain, refusals are immediate, and the backlog stays bounded."""
    model = SimulatedModel(
        SimulatedModelSettings(tokens_per_second=TOKENS_PER_SECOND, startup_s=0, max_tokens=512)
    )
    warm = warm_up(model, None)
    engine = Engine(
        model,
        EngineOptions(warm.token_budget, initial_tokens_per_second=warm.tokens_per_second, cache_bytes=0),
    )
    await engine.start()
    # The thousands of calls would set off collections, which in a process that ran other tests
    # before look through all that those left.
    gc.collect()
    gc.freeze()
    chance = random.Random(1)
    answered_tokens, late, most_in_progress = 0, 0, 0
    refusals_s: list[float] = []
    # From the first call to the last answer, so that no request is counted in part.
    start_s = last_answer_s = time.monotonic()

    async def call(number: int, documents: int) -> None:
        nonlocal answered_tokens, last_answer_s, late, most_in_progress
        texts = [" ".join(f"{number}x{i}x{k}" for k in range(DOCUMENT_WORDS)) for i in range(documents)]
        called_s = time.monotonic()
        try:
            scored = await engine.score(ScoreRequest("a", texts, deadline_s=called_s + DEADLINE_S))
            answered_tokens += scored.computed_tokens
            last_answer_s = time.monotonic()
        except Overloaded:
            refusals_s.append(time.monotonic() - called_s)
        except DeadlineExceeded:
            late += 1
        most_in_progress = max(most_in_progress, engine.requests_in_progress)

    calls: list[asyncio.Task[None]] = []
    sent_tokens = 0
    while time.monotonic() < start_s + LOAD_S:
        documents = chance.choice(sizes)
        calls.append(asyncio.create_task(call(len(calls), documents)))
        sent_tokens += documents * PAIR_TOKENS
        await asyncio.sleep(max(0.0, start_s + sent_tokens / (10 * TOKENS_PER_SECOND) - time.monotonic()))
    await asyncio.gather(*calls)
    await engine.stop()

    assert answered_tokens / (last_answer_s - start_s) >= 0.95 * TOKENS_PER_SECOND
    assert late <= 0.01 * len(calls)
    assert statistics.quantiles(refusals_s, n=100)[98] < 0.010
    assert most_in_progress <= 2 * DEADLINE_S * TOKENS_PER_SECOND / (min(sizes) * PAIR_TOKENS)
