"""Packed or padded: chosen by architecture, and believed only after a comparison."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from server.errors import ConfigurationError, TooLarge
from server.models.base import EncodedPair, Windowing
from server.models.families import family_of
from server.models.int8 import Int8Linears
from server.models.linears import Linears
from server.models.packed import PackedExecutor
from server.models.padded import PaddedExecutor
from server.models.prompts import Inputs

__all__ = ["Executor", "PackingMismatchError", "build_executor"]

logger = logging.getLogger(__name__)

_EXACT = 1e-3
_HALF = 0.05
"""Differences, relative to the largest logit, that rounding alone explains in 32 and in 16 bits."""
_UNSEEN = 3.0
"""In int8: how much larger than any that was measured a difference may be on these pairs."""

_PROBE_QUERY = "How many people live in Berlin?"
_PROBE_DOCUMENTS = (
    "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
    "",
    "New York City is famous for the Metropolitan Museum of Art. " * 6,
)


class Executor(Protocol):
    """Runs batches of pairs through a network."""

    name: str

    def forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Logits, float32, shape [pairs, labels], on the device."""
        ...


class PackingMismatchError(Exception):
    """The network, packed, does not give its own logits; it was changed and must be loaded again."""


def build_executor(
    encoder: Any, inputs: Inputs, device: torch.device, *, packed: bool = True, linears: Linears | None = None
) -> Executor:
    """The fastest execution that gives the model's own logits.

    A packed network leans on details of transformers that move between versions, and an
    error there is silent: scores that are merely wrong. So a few pairs are scored the
    model's own way first, and packing must agree.

    Args:
        encoder: a CrossEncoder; packing changes it in place.
        inputs: how it tokenises.
        device: where it is.
        packed: whether packing may be tried.
        linears: what takes the place of a packed network's linear layers; None for what suits it.

    Raises:
        PackingMismatchError: packed logits differ.
        ConfigurationError: the limit of tokens leaves no room for any text.
    """
    network = encoder[0].model
    padded = PaddedExecutor(encoder, device, segments=inputs.segments, message=inputs.message)
    family = family_of(encoder) if packed else None
    if family is None:
        logger.warning(
            "%s runs padded, grouped by length: slower than packed on mixed lengths", type(network).__name__
        )
        return padded
    exact = next(network.parameters()).dtype == torch.float32
    pairs = _probe(inputs)
    with torch.inference_mode():
        expected = padded.forward(pairs).cpu().numpy()
        try:
            executor = PackedExecutor(family(encoder, linears), device, segments=inputs.segments)
            found = executor.forward(pairs).cpu().numpy()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever of transformers is not as the family expects it
            reason = str(error).strip().split("\n", 1)[0]
            raise PackingMismatchError(f"{type(network).__name__} can't be packed: {reason}") from error
    difference = float(np.abs(found - expected).max())
    if isinstance(linears, Int8Linears):
        allowed = _UNSEEN * linears.tolerance
    else:
        allowed = (_EXACT if exact else _HALF) * max(1.0, float(np.abs(expected).max()))
    if not difference <= allowed:  # written so that NaN fails, too
        raise PackingMismatchError(f"{type(network).__name__}: packed logits differ by {difference:.2g}")
    return executor


def _probe(inputs: Inputs) -> list[EncodedPair]:
    for text in (_PROBE_QUERY, "a"):
        query = inputs.tokenizer.encode_query(text)
        try:
            documents = inputs.tokenizer.encode_documents(query, _PROBE_DOCUMENTS, Windowing())
        except TooLarge:
            continue
        return [pair for document in documents for pair in document.pairs]
    raise ConfigurationError(
        f"--max-tokens {inputs.tokenizer.max_tokens}: the model's template alone needs more"
    )
