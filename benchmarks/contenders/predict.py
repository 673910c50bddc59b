"""The reference for scores and for speed: `CrossEncoder.predict`, given everything at once."""

import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders.base import InProcess
from benchmarks.protocol import Outcome
from benchmarks.workload import Request

__all__ = ["predict"]

BATCH_PAIRS = 32


def predict(model: Path) -> InProcess:
    """`CrossEncoder.predict`, batch 32, float32."""
    return InProcess("predict", f"CrossEncoder.predict, batch {BATCH_PAIRS}, float32", _Predict, model)


class _Predict:
    def __init__(self, model: Path) -> None:
        # Here and below: torch is imported by the process that uses it, so that the others stay light.
        import torch
        from sentence_transformers import CrossEncoder

        self._model = CrossEncoder(str(model), device="cpu", model_kwargs={"dtype": torch.float32})
        self._logit = torch.nn.Identity()

    def score(self, requests: Sequence[Request]) -> Outcome:
        """All pairs in one call: `predict` sorts them by length, which is the best it can do."""
        pairs = [pair for request in requests for pair in request.pairs]
        started_s = time.perf_counter()
        logits = self._model.predict(
            pairs, batch_size=BATCH_PAIRS, activation_fn=self._logit, show_progress_bar=False
        )
        elapsed_s = time.perf_counter() - started_s
        remaining = iter(logits.tolist())
        return Outcome(elapsed_s, [[next(remaining) for _ in request.documents] for request in requests])
