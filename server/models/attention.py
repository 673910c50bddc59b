"""Attention over a packed row: every sequence attends to itself only.

Registered with transformers under the name `rerank_packed`, so any architecture that looks
its attention function up there runs packed without a line of its model being copied.

On the CPU the sequences are looped over: one call of scaled_dot_product_attention costs some
ten microseconds beside milliseconds of matrix products, while nested tensors are 9 to 29
times slower; where oneDNN's products are better, `server.models.cpu_attention` takes the whole row.
On CUDA one variable-length FlashAttention kernel does all of them.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from server.models.cpu_attention import attend_to_all, onednn_products_pay

__all__ = ["ATTENTION_NAME", "Packing", "attend", "attend_looped", "register"]

ATTENTION_NAME = "rerank_packed"

_LOCAL_BLOCK = 256
"""Queries handled together by sliding-window attention on the CPU."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the sequences of a packed row lie."""

    lengths: list[int]
    """Tokens of each sequence, in order; they sum to the row's length."""
    bounds: Tensor
    """Cumulative lengths from 0, int32, shape [sequences + 1], on the device."""
    causal: bool
    """Whether a token sees only the tokens before it."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)


def register() -> None:
    """Make `attend` known to transformers; calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, _transformers_attention)


def _transformers_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rerank_packing: Packing,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The signature that transformers calls: heads first, [1, heads, tokens, width]."""
    for name in ("softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:
            raise NotImplementedError(f"packed attention does not know {name}")
    if attention_mask is not None:
        raise NotImplementedError("packed attention takes no mask; the packing says who sees whom")
    return attend(query, key, value, rerank_packing, scaling, sliding_window), None


def attend(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float | None, window: int | None
) -> Tensor:
    """Attention within each sequence.

    Args:
        query: shape [1, heads, tokens, width], or [1, heads, sequences, width] for one token of
            each sequence, which sees all of it; key and value have all tokens. They may have
            fewer heads, each shared by a group of query heads.
        packing: the sequences of the row.
        scale: factor on the products; None is 1/sqrt(width).
        window: token i sees token j only if |i - j| < window; None for no limit.

    Returns:
        Shape [1, as many tokens as `query`, heads, width].
    """
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        # [1, heads, tokens, width] is a view of [tokens, heads, width], which the kernel wants.
        q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
        return _varlen()(q, k, v, packing, scale, window).unsqueeze(0)
    return attend_looped(query, key, value, packing, scale, window)


def attend_looped(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float | None, window: int | None
) -> Tensor:
    """`attend` by one call per sequence, on any device and in any precision."""
    grouped = query.shape[1] != key.shape[1]
    one_each = query.shape[2] < key.shape[2]
    everywhere = not (one_each or packing.causal or (window is not None and packing.longest > window))
    plain = not grouped and query.dtype == torch.float32 and not query.is_cuda
    if everywhere and plain and onednn_products_pay():
        return attend_to_all(query, key, value, packing.lengths, scale)
    results = []
    end = 0
    for number, length in enumerate(packing.lengths):
        start, end = end, end + length
        q, k, v = (tensor[:, :, start:end] for tensor in (query, key, value))
        if one_each:
            result = scaled_dot_product_attention(
                query[:, :, number : number + 1], k, v, scale=scale, enable_gqa=grouped
            )
        elif window is not None and length > window:
            result = _local(q, k, v, scale, window, packing.causal, grouped)
        else:
            # is_causal on a single token would be a mask that changes nothing.
            result = scaled_dot_product_attention(
                q, k, v, scale=scale, is_causal=packing.causal and length > 1, enable_gqa=grouped
            )
        results.append(result.transpose(1, 2))
    return results[0] if len(results) == 1 else torch.cat(results, dim=1)


def _local(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int, causal: bool, grouped: bool
) -> Tensor:
    """Sliding-window attention of one sequence in blocks of queries: linear in its length."""
    length = query.shape[2]
    results = []
    for start in range(0, length, _LOCAL_BLOCK):
        end = min(start + _LOCAL_BLOCK, length)
        first = max(0, start - window + 1)
        last = end if causal else min(length, end + window - 1)
        mask = _band(end - start, last - first, start - first, window, causal, query.device)
        results.append(
            scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, first:last],
                value[:, :, first:last],
                attn_mask=mask,
                scale=scale,
                enable_gqa=grouped,
            )
        )
    return torch.cat(results, dim=2)


@lru_cache(maxsize=64)
def _band(queries: int, keys: int, offset: int, window: int, causal: bool, device: torch.device) -> Tensor:
    """Which keys each query sees, [queries, keys]; query i stands at key i + offset."""
    with torch.inference_mode(False):  # cached, so it must outlive the mode it was made in
        distance = (
            torch.arange(queries, device=device)[:, None]
            + offset
            - torch.arange(keys, device=device)[None, :]
        )
        return (distance < window) & ((distance >= 0) if causal else (distance > -window))


_Varlen = Callable[[Tensor, Tensor, Tensor, Packing, float | None, int | None], Tensor]


@cache
def _varlen() -> _Varlen:
    """The variable-length kernel of this torch: the public function, or the operator below it.

    The public function's arguments have moved between versions: older ones say `is_causal=`,
    newer ones only `window_size=`, where (-1, 0) is causal.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return _flash_operator
    known = inspect.signature(varlen_attn).parameters
    if "scale" not in known or "window_size" not in known:
        return _flash_operator
    has_causal = "is_causal" in known
    has_grouped = "enable_gqa" in known

    def call(
        q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float | None, window: int | None
    ) -> Tensor:
        if q.shape[1] != k.shape[1] and not has_grouped:
            k, v = _repeated(k, q.shape[1]), _repeated(v, q.shape[1])
        options: dict[str, Any] = {"scale": scale, "window_size": _window(window, packing.causal)}
        if has_causal:
            options["is_causal"] = packing.causal
        if has_grouped:
            options["enable_gqa"] = q.shape[1] != k.shape[1]
        asking, most = _queries(q, k, packing)
        result = varlen_attn(q, k, v, asking, packing.bounds, most, packing.longest, **options)
        assert isinstance(result, Tensor)
        return result

    return call


def _flash_operator(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float | None, window: int | None
) -> Tensor:
    left, right = _window(window, packing.causal)
    if q.shape[1] != k.shape[1]:
        k, v = _repeated(k, q.shape[1]), _repeated(v, q.shape[1])
    asking, most = _queries(q, k, packing)
    result: Tensor = torch.ops.aten._flash_attention_forward(
        *(q, k, v),
        *(asking, packing.bounds, most, packing.longest),
        *(0.0, packing.causal, False),
        scale=scale,
        window_size_left=left,
        window_size_right=right,
    )[0]
    return result


def _queries(q: Tensor, k: Tensor, packing: Packing) -> tuple[Tensor, int]:
    """Where the queries of each sequence lie, as `Packing.bounds`, and the most of one sequence."""
    if len(q) == len(k):
        return packing.bounds, packing.longest
    return torch.arange(len(packing.lengths) + 1, dtype=torch.int32, device=q.device), 1


def _window(window: int | None, causal: bool) -> tuple[int, int]:
    """FlashAttention counts the neighbours on each side, -1 for all of them."""
    reach = -1 if window is None else window - 1
    return reach, 0 if causal else reach


def _repeated(tensor: Tensor, heads: int) -> Tensor:
    return tensor.repeat_interleave(heads // tensor.shape[1], dim=1)
