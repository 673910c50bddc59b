"""Attention within sequences on the CPU, by oneDNN's matrix products where those are better.

torch's fused kernel multiplies with MKL, which on AMD processors uses half of the machine
(see `server.models.onednn`). Two batched products with a softmax between them, done by oneDNN, take
three quarters of its time from some hundred tokens on.

The only switch for oneDNN's float32 products is one that allows bfloat16 inside. Processors
with matrix tiles (AMX) make use of the permission and lose accuracy; others compute in float32 all
the same. So it is tried out once, against float64, and used only if nothing is lost.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["attend_to_all", "onednn_products_pay"]

_SHORTEST = 96
"""Tokens from which two products are faster than the fused kernel."""
_STEP = 16
"""Sizes are multiples of this."""
_SCORES = 2_000_000
"""Scores held at a time, 8 MB: heads are taken in groups that stay in the cache."""
_WORTH = 1.15
_TRIALS = 5


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
    factor = query.shape[3] ** -0.5 if scale is None else scale
    heads, tokens, width = value.shape[1:]
    # What is computed for a padded sequence is written over the start of the next one, which
    # comes later; so there is some room after the last one.
    result = value.new_empty(tokens + _STEP, heads, width)
    by_head = result.transpose(0, 1)
    end, short = 0, []
    with _onednn_products():
        for length in lengths:
            start, end = end, end + length
            group = _heads_at_a_time(length)
            if group == 0:
                short.append((start, end))
                continue
            padded = _padded_length(length)
            rows = (_rows(tensor[0], start, padded) for tensor in (query, key, value))
            parts = (torch.split(tensor, group) for tensor in (*rows, by_head[:, start : start + padded]))
            for q, k, v, out in zip(*parts, strict=True):
                _two_products(q, k, v, out, length=length, scale=factor)
    for start, end in short:
        q, k, v = (tensor[:, :, start:end] for tensor in (query, key, value))
        by_head[:, start:end] = scaled_dot_product_attention(q, k, v, scale=scale)[0]
    return result[:tokens].unsqueeze(0)


def _padded_length(length: int) -> int:
    # oneDNN makes code for every new size, which takes milliseconds, so the sizes are few.
    return -(-length // _STEP) * _STEP


def _heads_at_a_time(length: int) -> int:
    """For how many heads two products are made at once; 0 where the fused kernel is better."""
    if length < _SHORTEST:
        return 0
    return _SCORES // _padded_length(length) ** 2


def _rows(states: Tensor, start: int, length: int) -> Tensor:
    """The states from a token on; they reach into the next sequence, and zeros follow the last.

    Of what lies there nothing but a NaN changes a result: keys are masked, values are multiplied
    by zero, and the results of queries are overwritten. The engine scores a pair without
    company again before it believes a NaN.
    """
    rows = states[:, start : start + length]
    missing = length - rows.shape[1]
    return functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _two_products(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, *, length: int, scale: float
) -> None:
    heads, padded = query.shape[:2]
    scores = query.new_empty(heads, padded, padded)
    torch.baddbmm(scores, query, key.transpose(1, 2), beta=0, alpha=scale, out=scores)
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
    """Whether oneDNN's products are as exact as torch's, and faster; the first call takes some 20 ms."""
    with torch.inference_mode():
        left, right = torch.randn(12, 256, 32), torch.randn(12, 32, 256)
        exact = torch.bmm(left.double(), right.double())

        def product() -> Tensor:
            return torch.bmm(left, right)

        plain, plain_s = float((product() - exact).abs().max()), _seconds(product)
        try:
            with _onednn_products():
                error, seconds = float((product() - exact).abs().max()), _seconds(product)
        except (RuntimeError, AttributeError):  # a torch without the switch
            return False
    return error <= 2 * plain and seconds * _WORTH < plain_s


def _seconds(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_TRIALS):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
