"""The plain FastAPI app as a contender."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders.http_peer import HttpContender
from benchmarks.processes import free_port
from benchmarks.workload import Request

__all__ = ["FastApi"]

BATCH_PAIRS = 16


class FastApi(HttpContender):
    """`benchmarks.contenders.fastapi_app` under uvicorn, with one worker: one copy of the model."""

    name = "fastapi"
    what = f"plain FastAPI app, CrossEncoder.predict per request, batch {BATCH_PAIRS}, float32"

    def __init__(self, model: Path) -> None:
        super().__init__(free_port())
        self._model = model

    def command(self) -> Sequence[str | Path]:
        """Uvicorn as its documentation starts it."""
        app = "benchmarks.contenders.fastapi_app:app"
        return [sys.executable, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(self._port)]

    def environment(self) -> Mapping[str, str]:
        """What the app reads."""
        return {"MODEL": str(self._model), "BATCH_PAIRS": str(BATCH_PAIRS)}

    def body(self, request: Request) -> dict[str, Any]:
        """As the app declares it."""
        return {"query": request.query, "documents": request.documents}

    def logits(self, answer: Any, request: Request) -> list[float]:
        """They come in order."""
        return [float(score) for score in answer["scores"]]
