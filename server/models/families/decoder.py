"""Decoders: Llama, Mistral, Qwen 2 and 3, Gemma, with a score head or by their words yes and no."""

from typing import Any

import torch
from torch import Tensor, nn

from server.models.families.base import PackedRow, gather, in_float32, pack
from server.models.linears import Linears

__all__ = ["CausalYesNo", "DecoderClassifier"]


class DecoderClassifier:
    """*ForSequenceClassification on a decoder: a linear layer on the last token that is not padding."""

    causal = True

    def __init__(self, encoder: Any, linears: Linears | None = None) -> None:
        network = encoder[0].model
        self.padding_id: int | None = network.config.get_text_config().pad_token_id
        self.backbone = network.model
        self._score = in_float32(network.score)
        pack(self.backbone, linears)

    def logits(self, row: PackedRow) -> Tensor:
        """The head's output: float32, shape [pairs, labels]."""
        hidden = _last_hidden_state(self.backbone, row)
        logits: Tensor = self._score(gather(hidden, row.last).squeeze(1))
        return logits


class CausalYesNo:
    """*ForCausalLM whose score is how much likelier the last token is followed by yes than by no.

    Of the output layer, over a hundred thousand rows, only the difference of two is needed.
    """

    causal = True
    padding_id = None

    def __init__(self, encoder: Any, linears: Linears | None = None) -> None:
        network, score = encoder[0].model, encoder[1]
        self.backbone = network.model
        output: nn.Linear = network.get_output_embeddings()
        self._weight = output.weight[score.true_token_id].detach().float()
        bias = output.bias
        self._bias = 0.0 if bias is None else float(bias[score.true_token_id])
        if score.false_token_id is not None:
            self._weight = self._weight - output.weight[score.false_token_id].detach().float()
            self._bias -= 0.0 if bias is None else float(bias[score.false_token_id])
        pack(self.backbone, linears)

    def logits(self, row: PackedRow) -> Tensor:
        """The head's output: float32, shape [pairs, 1]."""
        hidden = _last_hidden_state(self.backbone, row)
        return torch.mv(gather(hidden, row.last).squeeze(1), self._weight).unsqueeze(1) + self._bias


def _last_hidden_state(backbone: Any, row: PackedRow) -> Tensor:
    hidden: Tensor = backbone(
        input_ids=row.token_ids, position_ids=row.positions, use_cache=False, rerank_packing=row.packing
    ).last_hidden_state
    return hidden
