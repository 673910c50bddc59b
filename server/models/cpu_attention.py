"""Attention of one sequence on the CPU, by oneDNN's matrix products where those are better.

torch's fused kernel multiplies with MKL, which on AMD processors uses half of the machine
(see `server.models.onednn`). Two batched products with a softmax between them, done by oneDNN, take
three quarters of its time from some hundred tokens on.

The only switch for oneDNN's float32 products is one that allows bfloat16 inside. Processors
with matrix tiles (AMX) make use of the permission and lose accuracy; others compute in float32 all
the same. So it is tried out once, against float64, and used only if nothing is lost.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
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


def attend_to_all(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Every token of one sequence attends to every token of it.

    Args:
        query: shape [1, heads, tokens, width], float32; key and value likewise.
        scale: factor on the products; None is 1/sqrt(width).

    Returns:
        Shape [1, heads, tokens, width].
    """
    length = query.shape[2]
    # oneDNN makes code for every new size, which takes milliseconds, so the sizes are few.
    padded = -(-length // _STEP) * _STEP
    group = _SCORES // (padded * padded)
    if length < _SHORTEST or group == 0 or not onednn_products_pay():
        return scaled_dot_product_attention(query, key, value, scale=scale)
    # Copies, so that what is computed does not depend on what lies beside the sequence: in int8
    # the last bit of a float decides which way a code is rounded.
    q, k, v = (_padded(tensor[0], padded) for tensor in (query, key, value))
    q *= query.shape[3] ** -0.5 if scale is None else scale
    k = k.transpose(1, 2)
    with _onednn_products():
        groups = zip(torch.split(q, group), torch.split(k, group), torch.split(v, group), strict=True)
        parts = [_two_products(*heads, length=length) for heads in groups]
    result = parts[0] if len(parts) == 1 else torch.cat(parts)
    return result[:, :length].unsqueeze(0)


def _padded(states: Tensor, length: int) -> Tensor:
    """Shape [heads, tokens, width] to [heads, length, width], with zeros at the end."""
    result = states.new_empty(states.shape[0], length, states.shape[2])
    result[:, : states.shape[1]] = states
    result[:, states.shape[1] :] = 0.0
    return result


def _two_products(query: Tensor, key: Tensor, value: Tensor, *, length: int) -> Tensor:
    scores = torch.bmm(query, key)
    scores[:, :, length:] = -torch.inf
    torch.softmax(scores, -1, out=scores)
    return torch.bmm(scores, value)


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
