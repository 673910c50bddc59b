"""Our engine alone: the same requests in flight as the service has, and no network."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders.base import CONCURRENT_CLIENTS, InProcess, drive
from benchmarks.protocol import Outcome
from benchmarks.workload import Request

__all__ = ["engine"]


def engine(model: Path, *options: str, name: str = "engine", what: str = "") -> InProcess:
    """Engine and model in one process, set up by the server's own options."""
    return InProcess(name, what or "our engine alone, in process, float32", _Engine, model, options)


class _Engine:
    def __init__(self, model: Path, options: Sequence[str]) -> None:
        from server.config import read_settings
        from server.engine.engine import Engine, EngineOptions
        from server.engine.warmup import warm_up
        from server.models.loading import load_model

        settings = read_settings(["--device", "cpu", "--model", str(model), *options])
        self._model = load_model(settings)
        warm = warm_up(self._model, settings.token_budget or None)
        self._runner = asyncio.Runner()
        self._engine = Engine(
            self._model,
            EngineOptions(
                token_budget=warm.token_budget,
                initial_tokens_per_second=warm.tokens_per_second,
                cache_bytes=0,  # rounds repeat the same pairs: a cache would answer them all
            ),
        )
        self._runner.run(self._engine.start())

    def score(self, requests: Sequence[Request]) -> Outcome:
        return self._runner.run(drive(requests, self._score_one, CONCURRENT_CLIENTS))

    async def _score_one(self, request: Request) -> list[float]:
        from server.engine.pair_cache import PairScore
        from server.engine.requests import ScoreRequest

        scored = await self._engine.score(ScoreRequest(request.query, request.documents))
        logits = [outcome.logit for outcome in scored.outcomes if isinstance(outcome, PairScore)]
        if len(logits) < len(request.documents):
            raise RuntimeError(f"the engine failed on {len(request.documents) - len(logits)} documents")
        return logits

    def close(self) -> None:
        self._runner.run(self._engine.stop())
        self._runner.close()
        self._model.close()
