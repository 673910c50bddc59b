"""Which networks run packed, and how each of them does."""

from typing import Any

from server.models.families.base import Family, PackedRow
from server.models.families.bert import Bert, Electra
from server.models.families.deberta import DebertaV2
from server.models.families.decoder import CausalYesNo, DecoderClassifier
from server.models.families.distilbert import DistilBert
from server.models.families.modernbert import ModernBert
from server.models.families.roberta import Roberta

__all__ = ["CAUSAL", "CLASSIFIERS", "Family", "PackedRow", "family_of"]

_DECODERS = ("Gemma", "Llama", "Mistral", "Qwen2", "Qwen3")

CLASSIFIERS: dict[str, type[Family]] = {
    "BertForSequenceClassification": Bert,
    "CamembertForSequenceClassification": Roberta,
    "DebertaV2ForSequenceClassification": DebertaV2,
    "DistilBertForSequenceClassification": DistilBert,
    "ElectraForSequenceClassification": Electra,
    "ModernBertForSequenceClassification": ModernBert,
    "RobertaForSequenceClassification": Roberta,
    "XLMRobertaForSequenceClassification": Roberta,
    **{f"{name}ForSequenceClassification": DecoderClassifier for name in _DECODERS},
}
"""By the class of the network. What is not here runs padded; docs/models.md has the table."""

CAUSAL: dict[str, type[Family]] = {f"{name}ForCausalLM": CausalYesNo for name in _DECODERS}
"""Language models that say yes or no, as sentence-transformers' LogitScore reads them."""


def family_of(encoder: Any) -> type[Family] | None:
    """The family that runs a CrossEncoder's network packed, or None."""
    network = type(encoder[0].model).__name__
    after = [type(module).__name__ for module in list(encoder)[1:]]
    if not after:
        return CLASSIFIERS.get(network)
    if after == ["LogitScore"]:
        return CAUSAL.get(network)
    return None  # something is computed after the network that no family knows
