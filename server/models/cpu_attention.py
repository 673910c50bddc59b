"""Attention within sequences on the CPU, by oneDNN's matrix products where those are better.

torch's fused kernel multiplies with MKL, which on AMD processors uses half of the machine
(see `server.models.onednn`). Two batched products with a softmax between them, done by oneDNN, take
three quarters of its time from some hundred tokens on, on processors that compute 512 bits at a time
(Zen 5); on those that take two steps for them (Zen 4) nothing is gained, and the fused kernel stays.
The kind of processor decides, and no measurement: the two differ in the last bits, which in int8
decide how codes are rounded, and servers on equal machines must give equal logits.

The only switch for oneDNN's float32 products is one that allows bfloat16 inside. Processors
with matrix tiles (AMX) make use of the permission and lose accuracy; others compute in float32 all
the same. So it is tried out once, against float64, and used only if nothing is lost.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from server.models.processor import processor

__all__ = ["attend_to_all", "onednn_products_pay"]

_SHORTEST = 96
"""Tokens from which two products are faster than the fused kernel."""
_STEP = 16
"""Sizes are multiples of this."""
_SCORES = 2_000_000
"""Scores held at a time, 8 MB: heads are taken in groups that stay in the cache."""
_TRIAL_HEADS, _TRIAL_TOKENS, _TRIAL_WIDTH = 12, 256, 32
_FIRST_FAMILY = 26
"""Of AMD's processors: Zen 5."""


def attend_to_all(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float | None
) -> Tensor:
    """Every token of a sequence attends to every token of it; only where `onednn_products_pay`.

    Args:
        query: shape [1, heads, tokens, width], float32; key and value likewise.
        lengths: tokens of each sequence, in the order in which they lie in the row.
        scale: factor on the products; None is 1/sqrt(width).

    Returns:
        Shape [1, tokens, heads, width].
    """
    heads, tokens = value.shape[1:3]
    layout = _layout(tuple(lengths), heads)
    q, k, v = (
        states.transpose(1, 2).reshape(tokens * heads, -1).index_select(0, layout.inwards)
        for states in (query, key, value)
    )
    q *= query.shape[3] ** -0.5 if scale is None else scale
    result = torch.empty_like(v)
    with _onednn_products():
        for block in layout.long:
            _two_products(block.length, *(block.of(states) for states in (q, k, v, result)))
    for block in layout.short:
        own_q, own_k, own_v = (block.of(states).unsqueeze(0) for states in (q, k, v))
        block.of(result).copy_(scaled_dot_product_attention(own_q, own_k, own_v, scale=1.0)[0])
    return result.index_select(0, layout.outwards).view(1, tokens, heads, -1)


@dataclass(frozen=True, slots=True)
class _Block:
    """Some heads of one sequence, one after the other: products take nothing else without copying it."""

    rows: slice
    heads: int
    padded: int
    length: int

    def of(self, states: Tensor) -> Tensor:
        """A view, shape [heads, padded, width], of [rows, width]."""
        return states[self.rows].view(self.heads, self.padded, -1)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a row of [tokens, heads] becomes blocks of [heads, tokens], and back.

    Sequences are filled up by copies of their last token. Blocks hold nothing of a neighbour, so
    that what is computed can't depend on it: in int8 the last bit decides how a code is rounded.
    """

    inwards: Tensor
    outwards: Tensor
    long: tuple[_Block, ...]
    short: tuple[_Block, ...]


@lru_cache(maxsize=8)  # all layers of a batch share one
def _layout(lengths: tuple[int, ...], heads: int) -> _Layout:
    inwards, outwards = [], []
    long: list[_Block] = []
    short: list[_Block] = []
    every_head = np.arange(heads, dtype=np.int32)
    start = row = 0
    for length in lengths:
        group = _heads_at_a_time(length)
        padded = _padded_length(length) if group else length
        tokens = start + np.minimum(np.arange(padded, dtype=np.int32), length - 1)
        inwards.append((tokens[None, :] * heads + every_head[:, None]).ravel())
        places = np.arange(length, dtype=np.int32)
        outwards.append((row + every_head[None, :] * padded + places[:, None]).ravel())
        blocks = long if group else short
        for first in range(0, heads, group or heads):
            taken = min(group or heads, heads - first)
            blocks.append(_Block(slice(row, row + taken * padded), taken, padded, length))
            row += taken * padded
        start += length
    with torch.inference_mode(False):  # cached, so it must outlive the mode it was made in
        return _Layout(
            torch.from_numpy(np.concatenate(inwards)),
            torch.from_numpy(np.concatenate(outwards)),
            tuple(long),
            tuple(short),
        )


def _padded_length(length: int) -> int:
    # oneDNN makes code for every new size, so the sizes are few.
    return -(-length // _STEP) * _STEP


def _heads_at_a_time(length: int) -> int:
    """For how many heads two products are made at once; 0 where the fused kernel is better."""
    if length < _SHORTEST:
        return 0
    return _SCORES // _padded_length(length) ** 2


def _two_products(length: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
    scores = torch.bmm(query, key.transpose(1, 2))
    scores[:, :, length:] = -torch.inf
    torch.softmax(scores, -1, out=scores)
    torch.bmm(scores, value, out=out)


@contextlib.contextmanager
def _onednn_products() -> Iterator[None]:
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


@cache
def onednn_products_pay() -> bool:
    """Whether two products are faster than the fused kernel on this processor, and lose nothing."""
    vendor, family = processor()
    if vendor != "AuthenticAMD" or family < _FIRST_FAMILY:
        return False
    with torch.inference_mode():
        random = torch.Generator().manual_seed(0)
        query, key = torch.randn(2, _TRIAL_HEADS, _TRIAL_TOKENS, _TRIAL_WIDTH, generator=random)
        exact = torch.bmm(query.double(), key.double().transpose(1, 2))

        def error() -> float:
            return float((torch.bmm(query, key.transpose(1, 2)) - exact).abs().max())

        plain = error()
        try:
            with _onednn_products():
                return error() <= 2 * plain
        except (RuntimeError, AttributeError):  # a torch without the switch
            return False
