"""The last layer of an encoder whose head reads nothing but the first token of each pair.

Keys and values are needed of all tokens; the query, the feed-forward part and everything
between them of the first ones only. The logits are the same, for 7% less work in a network
of twelve layers.
"""

from typing import Any

from torch import Tensor, nn

from server.models.attention import Packing, attend

__all__ = ["FirstTokenLayer"]


class FirstTokenLayer(nn.Module):
    """Stands for a layer built as BERT's, and returns the first token of each sequence.

    It shares the layer's modules under their old names, so that weights are found as before.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attention = layer.attention
        self.intermediate = layer.intermediate
        self.output = layer.output

    def forward(self, hidden: Tensor, *_: object, rerank_packing: Packing, **others: object) -> Tensor:
        """Shape [1, tokens, width] to [1, sequences, width]."""
        inner = self.attention.self
        first = hidden.index_select(1, rerank_packing.bounds[:-1])

        def heads(states: Tensor) -> Tensor:
            return states.view(1, states.shape[1], -1, inner.attention_head_size).transpose(1, 2)

        # The two that read the same tensor come one after the other, so that in int8 they share its codes.
        key, value = heads(inner.key(hidden)), heads(inner.value(hidden))
        context = attend(heads(inner.query(first)), key, value, rerank_packing, inner.scaling, None)
        states = self.attention.output(context.flatten(2), first)
        result: Tensor = self.output(self.intermediate(states), states)
        return result
