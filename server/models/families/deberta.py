"""DeBERTa v2 and v3: attention with content-to-position and position-to-content terms.

transformers' implementation builds a position matrix over the whole row and knows no
attention function of one's own, so its attention module is replaced as a whole.
"""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from server.models.attention import Packing
from server.models.families.base import PackedRow, gather, in_float32, replace_linears
from server.models.linears import Linears

__all__ = ["DebertaV2"]


class DebertaV2:
    """DebertaV2ForSequenceClassification: pooler (dense, GELU) on the first token, then a linear layer."""

    causal = False
    padding_id = None

    def __init__(self, encoder: Any, linears: Linears | None = None) -> None:
        network = encoder[0].model
        self.backbone = network.deberta
        self._head = nn.Sequential(in_float32(network.pooler), in_float32(network.classifier))
        stack = self.backbone.encoder
        if getattr(stack, "conv", None) is not None:
            raise NotImplementedError("the convolution of DeBERTa's larger models reads across pairs")
        self._row = _CurrentRow()
        relative = stack.get_rel_embedding() if stack.relative_attention else None
        with torch.inference_mode():
            for layer in stack.layer:
                layer.attention.self = _PackedDisentangledAttention(layer.attention.self, relative, self._row)
        # Both would be tokens x tokens for the whole row, and nothing reads them any more.
        stack.get_attention_mask = lambda mask: mask
        stack.get_rel_pos = lambda *_args, **_kwargs: None
        chosen = replace_linears(self.backbone, linears)
        for layer in stack.layer:
            chosen.fuse_gelu(layer.intermediate, "dense", "intermediate_act_fn", (layer.output, "dense"))

    def logits(self, row: PackedRow) -> Tensor:
        """The head's output: float32, shape [pairs, labels]."""
        self._row.packing = row.packing
        hidden = self.backbone(
            input_ids=row.token_ids, token_type_ids=row.segments, position_ids=row.positions
        ).last_hidden_state
        logits: Tensor = self._head(gather(hidden, row.first))
        return logits


class _CurrentRow:
    """The row being computed: DeBERTa's layers pass no further arguments down."""

    packing: Packing


class _PackedDisentangledAttention(nn.Module):
    """Takes the place of DisentangledSelfAttention.

    The projections of the relative positions depend on nothing but weights, so they are made once.
    """

    def __init__(self, original: Any, relative: Tensor | None, row: _CurrentRow) -> None:
        super().__init__()
        self._row = row
        self._heads = original.num_attention_heads
        self.query_proj = original.query_proj
        self.key_proj = original.key_proj
        self.value_proj = original.value_proj
        kinds = original.pos_att_type if original.relative_attention else []
        self._scale = 1.0 / math.sqrt(
            original.attention_head_size
            * (1 + ("c2p" in original.pos_att_type) + ("p2c" in original.pos_att_type))
        )
        self._position_keys: Tensor | None = None
        self._position_queries: Tensor | None = None
        if relative is None or not kinds:
            return
        self._span = original.pos_ebd_size
        self._buckets = original.position_buckets
        self._farthest = original.max_relative_positions
        relative = relative[: 2 * self._span]
        shared = original.share_att_key
        if "c2p" in kinds:
            keys = original.key_proj if shared else original.pos_key_proj
            self._position_keys = self._by_head(keys(relative)).transpose(1, 2).contiguous()
        if "p2c" in kinds:
            queries = original.query_proj if shared else original.pos_query_proj
            self._position_queries = self._by_head(queries(relative)).transpose(1, 2).contiguous()

    def _by_head(self, states: Tensor) -> Tensor:
        """Shape [tokens, width] to [heads, tokens, width / heads]."""
        return states.view(states.shape[0], self._heads, -1).transpose(0, 1)

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, None]:
        """Shape [1, tokens, width] to the same."""
        states = hidden_states[0]
        lengths = self._row.packing.lengths
        projections = (
            torch.split(self._by_head(project(states)), lengths, dim=1)
            for project in (self.query_proj, self.key_proj, self.value_proj)
        )
        results = []
        for query, key, value in zip(*projections, strict=True):
            attended = scaled_dot_product_attention(
                query.unsqueeze(0),
                key.unsqueeze(0),
                value.unsqueeze(0),
                attn_mask=self._bias(query, key),
                scale=self._scale,
            )
            results.append(attended[0].transpose(0, 1))
        return torch.cat(results).view((*hidden_states.shape[:2], -1)), None

    def _bias(self, query: Tensor, key: Tensor) -> Tensor | None:
        """What positions add to the scores of one sequence, [1, heads, tokens, tokens]."""
        length = query.shape[1]
        bias: Tensor | None = None
        if self._position_keys is not None:
            index = self._index(length, query.device, negated=False)
            bias = torch.matmul(query, self._position_keys).gather(2, index.expand(self._heads, -1, -1))
        if self._position_queries is not None:
            index = self._index(length, query.device, negated=True)
            other = torch.matmul(key, self._position_queries).gather(2, index.expand(self._heads, -1, -1))
            other = other.transpose(1, 2)
            bias = other if bias is None else bias + other
        return None if bias is None else (bias * self._scale).unsqueeze(0)

    def _index(self, length: int, device: torch.device, *, negated: bool) -> Tensor:
        return _position_index(length, self._span, self._buckets, self._farthest, negated, device)


@lru_cache(maxsize=32)
def _position_index(
    length: int, span: int, buckets: int, farthest: int, negated: bool, device: torch.device
) -> Tensor:
    """Row of the position table for each (token, token), int64, shape [length, length].

    Distances are exact up to half the buckets and logarithmic beyond, as in transformers'
    `make_log_bucket_position`, which computes the same on a full matrix.
    """
    with torch.inference_mode(False):  # cached, so it must outlive the mode it was made in
        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        if buckets > 0 and farthest > 0:
            distance = _bucket(distance, buckets, farthest)
        index = (-distance if negated else distance) + span
        return index.clamp(0, 2 * span - 1).to(device)


def _bucket(distance: Tensor, buckets: int, farthest: int) -> Tensor:
    middle = buckets // 2
    far = torch.where(distance.abs() < middle, torch.tensor(middle - 1), distance.abs())
    steps = torch.log(far / middle) / torch.log(torch.tensor((farthest - 1) / middle)) * (middle - 1)
    logarithmic = (torch.ceil(steps) + middle) * distance.sign()
    return torch.where(far <= middle, distance.to(logarithmic.dtype), logarithmic).to(torch.int64)
