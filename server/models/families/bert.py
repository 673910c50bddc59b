"""BERT and Electra: first token, segments, positions from 0."""

from typing import Any

from torch import Tensor, nn

from server.models.families.base import PackedRow, in_a_row, in_float32, pack
from server.models.families.first_token import FirstTokenLayer
from server.models.linears import Linears, computes_in_float32_on_cpu

__all__ = ["Bert", "Electra", "pack_bert_encoder"]


def pack_bert_encoder(backbone: Any, linears: Linears | None) -> None:
    """Pack a backbone whose encoder is built as BERT's is; it then returns first tokens only."""
    absorb = linears is None and computes_in_float32_on_cpu(backbone)
    backbone.encoder.layer[-1] = FirstTokenLayer(backbone.encoder.layer[-1], absorb=absorb)
    chosen = pack(backbone, linears)
    for layer in backbone.encoder.layer:
        chosen.fuse_gelu(layer.intermediate, "dense", "intermediate_act_fn", (layer.output, "dense"))


class Bert:
    """BertForSequenceClassification: pooler (dense, tanh) on the first token, then a linear layer."""

    causal = False
    padding_id = None

    def __init__(self, encoder: Any, linears: Linears | None = None) -> None:
        network = encoder[0].model
        self.backbone = network.bert
        # Taken off the backbone, which would pool the first token of the whole row.
        self._head = nn.Sequential(in_float32(network.bert.pooler), in_float32(network.classifier))
        self.backbone.pooler = None
        pack_bert_encoder(self.backbone, linears)

    def logits(self, row: PackedRow) -> Tensor:
        """The head's output: float32, shape [pairs, labels]."""
        hidden = self.backbone(
            input_ids=row.token_ids,
            token_type_ids=row.segments,
            position_ids=row.positions,
            rerank_packing=row.packing,
        ).last_hidden_state
        logits: Tensor = self._head(in_a_row(hidden))
        return logits


class Electra:
    """ElectraForSequenceClassification: a two-layer head that reads the first token itself."""

    causal = False
    padding_id = None

    def __init__(self, encoder: Any, linears: Linears | None = None) -> None:
        network = encoder[0].model
        self.backbone = network.electra
        self._classifier = in_float32(network.classifier)
        pack_bert_encoder(self.backbone, linears)

    def logits(self, row: PackedRow) -> Tensor:
        """The head's output: float32, shape [pairs, labels]."""
        hidden = self.backbone(
            input_ids=row.token_ids,
            token_type_ids=row.segments,
            position_ids=row.positions,
            rerank_packing=row.packing,
        ).last_hidden_state
        logits: Tensor = self._classifier(in_a_row(hidden))
        return logits
