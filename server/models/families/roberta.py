"""RoBERTa, XLM-RoBERTa and CamemBERT: first token, positions that begin after the padding id."""

from typing import Any

from torch import Tensor

from server.models.families.base import PackedRow, in_a_row, in_float32
from server.models.families.bert import pack_bert_encoder
from server.models.linears import Linears

__all__ = ["Roberta"]


class Roberta:
    """RobertaForSequenceClassification and its twins: a two-layer head that reads the first token."""

    causal = False
    padding_id = None

    def __init__(self, encoder: Any, linears: Linears | None = None) -> None:
        network = encoder[0].model
        self.backbone = network.base_model
        self._classifier = in_float32(network.classifier)
        # Positions count on from the padding id; from 0 they would be silently off by two.
        self._first_position = network.config.pad_token_id + 1
        pack_bert_encoder(self.backbone, linears)

    def logits(self, row: PackedRow) -> Tensor:
        """The head's output: float32, shape [pairs, labels]."""
        hidden = self.backbone(
            input_ids=row.token_ids,
            token_type_ids=row.segments,
            position_ids=row.positions + self._first_position,
            rerank_packing=row.packing,
        ).last_hidden_state
        logits: Tensor = self._classifier(in_a_row(hidden))
        return logits
