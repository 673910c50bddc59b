"""Infinity as a contender: the same folder, offline, its own defaults."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders.http_peer import HttpContender, by_index, rerank_body
from benchmarks.contenders.infinity_environment import INFINITY_VERSION, infinity_executable
from benchmarks.processes import free_port
from benchmarks.workload import Request

__all__ = ["Infinity"]

SERVED_NAME = "reranker"


class Infinity(HttpContender):
    """`infinity_emb v2` with the torch engine; batch 32 and BetterTransformer are its defaults."""

    name = "infinity"
    what = f"Infinity {INFINITY_VERSION}, torch engine, float32"

    def __init__(self, model: Path) -> None:
        super().__init__(free_port())
        self._model = model

    def command(self) -> Sequence[str | Path]:
        """Only what has no default, or a default that isn't this comparison."""
        command: list[str | Path] = [infinity_executable(), "v2", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--model-id", self._model, "--served-model-name", SERVED_NAME]
        # Its own warm-up times the largest batches, a minute on a small machine; the race has one for all.
        command += ["--no-model-warmup"]
        return [*command, "--engine", "torch", "--device", "cpu", "--dtype", "float32"]

    def environment(self) -> Mapping[str, str]:
        """No telemetry and no hub."""
        return {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}

    def body(self, request: Request) -> dict[str, Any]:
        """Its rerank call."""
        return rerank_body(SERVED_NAME, request)

    def logits(self, answer: Any, request: Request) -> list[float]:
        """Best first, with indices."""
        return by_index(answer, request)
