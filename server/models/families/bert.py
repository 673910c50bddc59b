"""BERT and Electra: first token, segments, positions from 0."""

from typing import Any

from torch import Tensor

from server.models.families.base import PackedRow, gather, in_float32, use_packed_attention

__all__ = ["Bert"]


class Bert:
    """BertForSequenceClassification: pooler (dense, tanh) on the first token, then a linear layer."""

    causal = False
    padding_id = None

    def __init__(self, encoder: Any) -> None:
        network = encoder[0].model
        use_packed_attention(network)
        self._backbone = network.bert
        # Taken off the backbone, which would pool the first token of the whole row.
        self._pooler = in_float32(network.bert.pooler)
        self._backbone.pooler = None
        self._classifier = in_float32(network.classifier)

    def logits(self, row: PackedRow) -> Tensor:
        """The head's output: float32, shape [pairs, labels]."""
        hidden = self._backbone(
            input_ids=row.token_ids,
            token_type_ids=row.segments,
            position_ids=row.positions,
            rerank_packing=row.packing,
        ).last_hidden_state
        pooled = self._pooler(gather(hidden, row.first))
        logits: Tensor = self._classifier(pooled)
        return logits
