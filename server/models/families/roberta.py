"""RoBERTa, XLM-RoBERTa and CamemBERT: first token, no segments, positions after the padding id."""

from typing import Any

from torch import Tensor

from server.models.families.base import PackedRow, gather, in_float32, use_packed_attention

__all__ = ["Roberta"]


class Roberta:
    """RobertaForSequenceClassification and its twins: a two-layer head on the first token."""

    causal = False
    padding_id = None

    def __init__(self, encoder: Any) -> None:
        network = encoder[0].model
        use_packed_attention(network)
        self._backbone = network.base_model
        self._classifier = in_float32(network.classifier)
        # Positions count on from the padding id: 0-based ones are silently off by two.
        self._offset = network.config.pad_token_id + 1

    def logits(self, row: PackedRow) -> Tensor:
        """The head's output: float32, shape [pairs, labels]."""
        hidden = self._backbone(
            input_ids=row.token_ids,
            token_type_ids=row.segments,
            position_ids=row.positions + self._offset,
            rerank_packing=row.packing,
        ).last_hidden_state
        # The head takes [pairs, tokens, width] and reads the first token itself.
        logits: Tensor = self._classifier(gather(hidden, row.first))
        return logits
