"""Which networks run packed, and how each of them does."""

from typing import Any

from server.models.families.base import Family, PackedRow
from server.models.families.bert import Bert
from server.models.families.roberta import Roberta

__all__ = ["FAMILIES", "Family", "PackedRow", "family_of"]

FAMILIES: dict[str, type[Family]] = {
    "BertForSequenceClassification": Bert,
    "RobertaForSequenceClassification": Roberta,
    "XLMRobertaForSequenceClassification": Roberta,
    "CamembertForSequenceClassification": Roberta,
}
"""By the class of the network. What is not here runs padded."""


def family_of(encoder: Any) -> type[Family] | None:
    """The family that runs a CrossEncoder's network packed, or None."""
    if len(encoder) != 1:
        return None  # something is computed after the network that no family knows
    return FAMILIES.get(type(encoder[0].model).__name__)
