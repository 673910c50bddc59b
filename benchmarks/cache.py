"""How many pairs a second one core answers from the pair cache, through the engine and in the cache alone."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.workload import Request, passages

__all__ = ["CacheMeter"]

DOCUMENTS = 1000
REQUEST_DOCUMENTS = 100
MEASURED_S = 2.0
REPEATS = 3


class CacheMeter:
    """Fills the cache from a simulated model, which then has no part in it; has a process of its own."""

    def __init__(self) -> None:
        # One core for everything, since a figure per core is what is asked.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    def measure(self) -> dict[str, Any]:
        """Pairs per second, the best of three."""
        texts = passages(DOCUMENTS)
        requests = [
            Request(f"what was asked before, number {start}", tuple(texts[start : start + REQUEST_DOCUMENTS]))
            for start in range(0, DOCUMENTS, REQUEST_DOCUMENTS)
        ]
        return {
            "what": f"requests of {REQUEST_DOCUMENTS} documents that were all seen before, one core",
            "pairs_per_s": asyncio.run(_through_engine(requests)),
            "cache_alone_pairs_per_s": _cache_alone(requests),
        }


async def _through_engine(requests: list[Request]) -> float:
    """What a transport would wait for: from the strings of a request to its scores."""
    from server.config import read_settings
    from server.engine.engine import Engine, EngineOptions
    from server.engine.requests import ScoreRequest
    from server.models.loading import load_model

    model = load_model(read_settings(["--model", "simulated", "--simulated-tokens-per-second", "1e9"]))
    engine = Engine(
        model, EngineOptions(token_budget=model.info.default_token_budget, initial_tokens_per_second=1e9)
    )
    await engine.start()
    try:
        asked = [ScoreRequest(request.query, request.documents) for request in requests]
        for request in asked:
            await engine.score(request)
        best = 0.0
        for _ in range(REPEATS):
            pairs = 0
            started_s = time.perf_counter()
            while (elapsed_s := time.perf_counter() - started_s) < MEASURED_S:
                for request in asked:
                    scored = await engine.score(request)
                    if scored.cached_pairs != len(request.documents):
                        raise RuntimeError("a pair that was scored before was not in the cache")
                    pairs += scored.cached_pairs
            best = max(best, pairs / elapsed_s)
        return best
    finally:
        await engine.stop()
        model.close()


def _cache_alone(requests: list[Request]) -> float:
    from server.engine.pair_cache import PairCache, PairKeys, PairScore
    from server.models.base import Windowing

    cache = PairCache(max_bytes=64 * 1024 * 1024)

    def keys_of(request: Request) -> list[bytes]:
        return PairKeys("fingerprint", request.query, "", Windowing()).of(request.documents)

    for request in requests:
        for key in keys_of(request):
            cache.put(key, PairScore(logit=0.5, tokens=100, truncated=False))

    def read_all() -> int:
        return sum(score is not None for request in requests for score in cache.get_many(keys_of(request)))

    return max(_rate(read_all) for _ in range(REPEATS))


def _rate(read: Callable[[], int]) -> float:
    pairs = 0
    started_s = time.perf_counter()
    while (elapsed_s := time.perf_counter() - started_s) < MEASURED_S / 2:
        pairs += read()
    return pairs / elapsed_s
