"""ModernBERT: rotary positions, local layers between global ones, first token or mean."""

from typing import Any

import torch
from torch import Tensor, nn

from server.models.families.base import PackedRow, gather, in_float32, pack
from server.models.linears import Linears

__all__ = ["ModernBert"]


class ModernBert:
    """ModernBertForSequenceClassification. Its layers hand their window to the attention themselves."""

    causal = False
    padding_id = None

    def __init__(self, encoder: Any, linears: Linears | None = None) -> None:
        network = encoder[0].model
        self.backbone = network.model
        self._takes_mean = network.config.classifier_pooling == "mean"
        self._head = nn.Sequential(in_float32(network.head), in_float32(network.classifier))
        pack(self.backbone, linears)

    def logits(self, row: PackedRow) -> Tensor:
        """The head's output: float32, shape [pairs, labels]."""
        hidden = self.backbone(
            input_ids=row.token_ids, position_ids=row.positions, rerank_packing=row.packing
        ).last_hidden_state
        pooled = _means(hidden, row) if self._takes_mean else gather(hidden, row.first).squeeze(1)
        logits: Tensor = self._head(pooled)
        return logits


def _means(hidden: Tensor, row: PackedRow) -> Tensor:
    """Each pair's mean over its tokens, in float32, shape [pairs, width]."""
    pairs = len(row.packing.lengths)
    lengths = row.packing.bounds.diff()
    # The output's size is known here; without it the host would wait for the device to tell.
    owners = torch.repeat_interleave(
        torch.arange(pairs, device=hidden.device), lengths, output_size=hidden.shape[1]
    )
    sums = torch.zeros(pairs, hidden.shape[2], device=hidden.device)
    sums.index_add_(0, owners, hidden[0].to(torch.float32))
    return sums / lengths.unsqueeze(1)
