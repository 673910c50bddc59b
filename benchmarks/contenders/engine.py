"""Our engine alone: the same requests in flight as the service has, and no network."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from benchmarks.contenders.base import CONCURRENT_CLIENTS, InProcess, drive
from benchmarks.processes import REPOSITORY
from benchmarks.protocol import Outcome, Unavailable
from benchmarks.workload import Request
from server.models.commands import EXIT_QUALITY

__all__ = ["Int8", "engine"]

# The race judges the result itself, on more tasks than these few; what they say does not matter.
QUANTISING_TASKS = 10


def engine(model: Path) -> InProcess:
    """Engine and model in one process, set up by the server's own options."""
    return InProcess("engine", "our engine alone, in process, float32", _Engine, model, ())


class Int8(InProcess):
    """The same in int8; a checkpoint that has no int8 form yet is quantised, which takes a minute."""

    def __init__(self, model: Path) -> None:
        super().__init__("int8", "our engine alone, in process, int8", _Engine, model, ("--dtype", "int8"))
        self._model = model

    def __enter__(self) -> Self:
        try:
            return super().__enter__()
        except Unavailable as error:
            if "server quantize" not in str(error):
                raise
        command = [sys.executable, "-m", "server", "quantize", "--model", str(self._model)]
        command += ["--tasks", str(QUANTISING_TASKS)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode not in (0, EXIT_QUALITY):
            raise Unavailable(f"server quantize failed: {done.stderr.strip()[-300:]}")
        return super().__enter__()


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
