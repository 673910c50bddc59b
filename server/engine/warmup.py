"""Run the model before it serves: allocate, compile, and measure its speed."""

import time
from dataclasses import dataclass

import numpy as np

from server.models.base import DeviceOutOfMemory, EncodedPair, Model, Windowing
from server.models.passing_thread import in_passing_thread

__all__ = ["WarmUp", "warm_up"]

SAMPLE_WORD = "warm "
PAIR_TOKENS = 256
REPETITIONS = 2
MIN_BUDGET_TOKENS = 256
# A budget is large enough when a larger one gains less than this.
ENOUGH_OF_PEAK = 0.95


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What warming up found."""

    token_budget: int
    tokens_per_second: float


def warm_up(model: Model, token_budget: int | None) -> WarmUp:
    """Run batches of the budget until the speed is known; None tunes the budget too.

    Tuning takes the smallest budget that reaches 95% of the best speed, so that
    batches are short and late arrivals join soon. Only devices that overlap
    (GPUs) are tuned: on a CPU the model's default was measured once for all.
    """
    return in_passing_thread(lambda: _warm_up(model, token_budget))


def _warm_up(model: Model, token_budget: int | None) -> WarmUp:
    if token_budget is not None or not model.info.overlaps:
        return _measure(model, token_budget or model.info.default_token_budget)
    candidates = [_measure(model, model.info.default_token_budget * factor // 4) for factor in (1, 2, 4, 8)]
    best = max(candidate.tokens_per_second for candidate in candidates)
    return next(candidate for candidate in candidates if candidate.tokens_per_second >= ENOUGH_OF_PEAK * best)


def _measure(model: Model, token_budget: int) -> WarmUp:
    """The speed at a budget; halves the budget while it does not fit into memory."""
    while True:
        pairs = _sample(model, token_budget)
        tokens = sum(pair.tokens for pair in pairs)
        try:
            model.submit(pairs).wait()
            started_s = time.monotonic()
            for _ in range(REPETITIONS):
                model.submit(pairs).wait()
        except DeviceOutOfMemory:
            if token_budget <= MIN_BUDGET_TOKENS:
                raise
            token_budget //= 2
            continue
        seconds = max(time.monotonic() - started_s, 1e-6)
        return WarmUp(token_budget, REPETITIONS * tokens / seconds)


def _sample(model: Model, token_budget: int) -> list[EncodedPair]:
    """Pairs of the model's own tokens that fill a budget."""
    query = model.encode_query(SAMPLE_WORD)
    document = model.encode_documents(query, [SAMPLE_WORD * PAIR_TOKENS], Windowing())[0].pairs[0]
    tokens = max(1, min(document.tokens, PAIR_TOKENS, token_budget))
    pair = EncodedPair.of(np.ascontiguousarray(document.token_ids[:tokens]), document.document_start)
    return [pair] * max(1, token_budget // tokens)
