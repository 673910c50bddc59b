"""Score a batch whatever happens to it: out of memory, a poisonous pair, NaN.

Scoring is pointwise, so a batch may be cut in any way. Halving finds a pair that
fails alone in a logarithmic number of tries, and everyone else is answered.

When nothing of a batch could be scored, either its pairs are to blame or the device.
A harmless pair tells: if that fails too, the device is as good as lost, and callers are
better served elsewhere than by errors that look like theirs.
"""

from collections.abc import Callable, Sequence

import numpy as np

from server.engine.pairs import Failure, Outcome, QueuedPair
from server.models.base import DeviceLost, DeviceOutOfMemory, Logits, Model, PendingLogits, Windowing

__all__ = ["finish_batch", "require_device", "score_batch"]

HARMLESS_WORD = "harmless"

OnOutOfMemory = Callable[[int], None]


def score_batch(model: Model, pairs: Sequence[QueuedPair], on_out_of_memory: OnOutOfMemory) -> list[Outcome]:
    """Score pairs now; one outcome per pair, in order.

    `on_out_of_memory` hears the tokens of each batch that did not fit.

    Raises:
        DeviceLost: nothing more can be scored in this process.
    """

    def submit() -> Logits:
        return model.submit([pair.encoded for pair in pairs]).wait()

    return _survive(model, pairs, submit, on_out_of_memory)


def finish_batch(
    model: Model, pairs: Sequence[QueuedPair], pending: PendingLogits, on_out_of_memory: OnOutOfMemory
) -> list[Outcome]:
    """Wait for a batch that was submitted before; like `score_batch` in all else."""
    return _survive(model, pairs, pending.wait, on_out_of_memory)


def require_device(model: Model) -> None:
    """Score a harmless pair.

    Raises:
        DeviceLost: not even that could be scored.
    """
    try:
        query = model.encode_query(HARMLESS_WORD)
        [document] = model.encode_documents(query, [HARMLESS_WORD], Windowing())
        logits = model.submit([document.pairs[0]]).wait()
    except DeviceLost:
        raise
    except Exception as error:
        raise DeviceLost(
            f"not even a harmless pair can be scored: {type(error).__name__}: {error}"
        ) from error
    if not np.isfinite(logits).all():
        raise DeviceLost(f"a harmless pair scores {logits[0]}")


def _survive(
    model: Model, pairs: Sequence[QueuedPair], score: Callable[[], Logits], on_out_of_memory: OnOutOfMemory
) -> list[Outcome]:
    try:
        return _checked(score(), len(pairs))
    except DeviceLost:
        raise
    except DeviceOutOfMemory:
        on_out_of_memory(sum(pair.tokens for pair in pairs))
        if len(pairs) == 1:
            return [Failure(f"a pair of {pairs[0].tokens:,} tokens does not fit into the device's memory")]
    except Exception as error:  # whatever a model raises must cost one pair, not the server
        if len(pairs) == 1:
            return [Failure(f"the model failed: {type(error).__name__}")]
    middle = len(pairs) // 2
    return [
        *score_batch(model, pairs[:middle], on_out_of_memory),
        *score_batch(model, pairs[middle:], on_out_of_memory),
    ]


def _checked(logits: Logits, expected: int) -> list[Outcome]:
    if logits.shape != (expected,):
        raise ValueError(f"the model returned logits of shape {logits.shape} for {expected} pairs")
    finite = np.isfinite(logits)
    if finite.all():
        return list(map(float, logits))
    return [
        float(logit) if good else Failure(f"the model gave {logit} instead of a number")
        for logit, good in zip(logits, finite, strict=True)
    ]
