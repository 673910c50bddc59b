"""DistilBERT: first token, no segments, positions from 0."""

from typing import Any

from torch import Tensor, nn

from server.models.families.base import PackedRow, fuse_gelu, gather, in_float32, pack

__all__ = ["DistilBert"]


class DistilBert:
    """DistilBertForSequenceClassification: linear, ReLU, linear on the first token."""

    causal = False
    padding_id = None

    def __init__(self, encoder: Any) -> None:
        network = encoder[0].model
        self._backbone = network.distilbert
        self._head = nn.Sequential(
            in_float32(network.pre_classifier), nn.ReLU(), in_float32(network.classifier)
        )
        pack(self._backbone)
        for layer in self._backbone.transformer.layer:
            fuse_gelu(layer.ffn, "lin1", "activation")

    def logits(self, row: PackedRow) -> Tensor:
        """The head's output: float32, shape [pairs, labels]."""
        hidden = self._backbone(
            input_ids=row.token_ids, position_ids=row.positions, rerank_packing=row.packing
        ).last_hidden_state
        logits: Tensor = self._head(gather(hidden, row.first).squeeze(1))
        return logits
