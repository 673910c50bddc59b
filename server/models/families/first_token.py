"""The last layer of an encoder whose head reads nothing but the first token of each pair.

The query, the feed-forward part and everything between them are needed of the first tokens
only. The logits are the same, for 7% less work in a network of twelve layers.

Keys and values of all tokens are left as well, and the CPU does without: with one query,
q (W x)' = (q W) x', and a weighted sum of W x is W times a weighted sum of x. So the two
projections move to the side of the first tokens, for another 1.4%. (The keys' bias adds the same
to all products of a query, which softmax takes away again.) A GPU keeps its fused kernel,
and int8 its faster products.
"""

from typing import Any

import torch
from torch import Tensor, nn

from server.models.attention import Packing, attend

__all__ = ["FirstTokenLayer"]


class FirstTokenLayer(nn.Module):
    """Stands for a layer built as BERT's, and returns the first token of each sequence.

    It shares the layer's modules under their old names, so that weights are found as before.

    Args:
        layer: the one it stands for.
        absorb: whether to do without keys and values, whose modules are then taken from the layer.
    """

    def __init__(self, layer: Any, *, absorb: bool) -> None:
        super().__init__()
        self.attention = layer.attention
        self.intermediate = layer.intermediate
        self.output = layer.output
        self._absorbed = _Absorbed(layer.attention.self) if absorb else None

    def forward(self, hidden: Tensor, *_: object, rerank_packing: Packing, **others: object) -> Tensor:
        """Shape [1, tokens, width] to [1, sequences, width]."""
        inner = self.attention.self
        first = hidden.index_select(1, rerank_packing.bounds[:-1])

        def heads(states: Tensor) -> Tensor:
            return states.view(1, states.shape[1], -1, inner.attention_head_size).transpose(1, 2)

        if self._absorbed is not None:
            query = heads(inner.query(first))[0] * inner.scaling
            context = self._absorbed.attend(query, hidden[0], rerank_packing)
        else:
            # These two come one after the other, so that in int8 they share the codes of what both read.
            key, value = heads(inner.key(hidden)), heads(inner.value(hidden))
            context = attend(heads(inner.query(first)), key, value, rerank_packing, inner.scaling, None)
        states = self.attention.output(context.flatten(2), first)
        result: Tensor = self.output(self.intermediate(states), states)
        return result


class _Absorbed:
    """The projections of keys and values, applied to queries and results instead of to tokens."""

    def __init__(self, inner: Any) -> None:
        def by_head(weight: Tensor) -> Tensor:
            return weight.detach().view(-1, inner.attention_head_size, weight.shape[1])

        self._key = by_head(inner.key.weight)
        self._value = by_head(inner.value.weight).transpose(1, 2)
        self._value_bias = inner.value.bias.detach().view(-1, 1, inner.attention_head_size)
        del inner.key, inner.value

    def attend(self, query: Tensor, hidden: Tensor, packing: Packing) -> Tensor:
        """Attention of one query for each sequence.

        Args:
            query: shape [heads, sequences, head width], scaled.
            hidden: shape [tokens, width].
            packing: the sequences.

        Returns:
            Shape [1, sequences, heads, head width].
        """
        queries = torch.bmm(query, self._key).transpose(0, 1).contiguous()
        sums = torch.empty_like(queries)
        end = 0
        for number, length in enumerate(packing.lengths):
            start, end = end, end + length
            tokens = hidden[start:end]
            weights = torch.softmax(queries[number] @ tokens.T, -1)
            torch.mm(weights, tokens, out=sums[number])
        context = torch.baddbmm(self._value_bias, sums.transpose(0, 1), self._value)
        return context.transpose(0, 1).unsqueeze(0)
