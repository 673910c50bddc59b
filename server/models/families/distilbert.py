"""DistilBERT: first token, no segments, positions from 0."""

from typing import Any

from torch import Tensor, nn

from server.models.families.base import PackedRow, gather, in_float32, pack
from server.models.linears import Linears

__all__ = ["DistilBert"]


class DistilBert:
    """DistilBertForSequenceClassification: linear, ReLU, linear on the first token."""

    causal = False
    padding_id = None

    def __init__(self, encoder: Any, linears: Linears | None = None) -> None:
        network = encoder[0].model
        self.backbone = network.distilbert
        self._head = nn.Sequential(
            in_float32(network.pre_classifier), nn.ReLU(), in_float32(network.classifier)
        )
        chosen = pack(self.backbone, linears)
        for layer in self.backbone.transformer.layer:
            chosen.fuse_gelu(layer.ffn, "lin1", "activation", (layer.ffn, "lin2"))

    def logits(self, row: PackedRow) -> Tensor:
        """The head's output: float32, shape [pairs, labels]."""
        hidden = self.backbone(
            input_ids=row.token_ids, position_ids=row.positions, rerank_packing=row.packing
        ).last_hidden_state
        logits: Tensor = self._head(gather(hidden, row.first).squeeze(1))
        return logits
