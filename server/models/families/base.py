"""What every architecture family does: take a packed row to one logit a pair."""

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from server.models.attention import ATTENTION_NAME, Packing, register
from server.models.linears import Linears, default_linears

__all__ = ["Family", "PackedRow", "gather", "in_a_row", "in_float32", "pack", "replace_linears"]


@dataclass(frozen=True, slots=True)
class PackedRow:
    """All pairs of a batch, one after another, on the device."""

    token_ids: Tensor
    """int32, shape [1, tokens]."""
    positions: Tensor
    """int32, shape [1, tokens]: 0-based within each pair."""
    segments: Tensor
    """int32, shape [1, tokens]: 0 for the query's part, 1 for the document's."""
    last: Tensor
    """int32, shape [pairs]: where each pair's last token that is not padding lies."""
    packing: Packing

    @property
    def first(self) -> Tensor:
        """int32, shape [pairs]: where each pair begins."""
        return self.packing.bounds[:-1]


class Family(Protocol):
    """Packed execution of one kind of network.

    Constructing one from a CrossEncoder changes its network in place: afterwards it runs packed only, and its
    head computes in float32 whatever precision the rest has.
    """

    backbone: nn.Module
    """The network below its head."""

    @property
    def causal(self) -> bool:
        """Whether tokens see only what is before them."""
        ...

    @property
    def padding_id(self) -> int | None:
        """The id that the head skips when it looks for the last token; None if it looks elsewhere."""
        ...

    def __init__(self, encoder: Any, linears: Linears | None = None) -> None: ...

    def logits(self, row: PackedRow) -> Tensor:
        """The head's output: float32, shape [pairs, labels]."""
        ...


def pack(backbone: nn.Module, linears: Linears | None) -> Linears:
    """Make a transformers backbone run packed: its attention, and its linear layers.

    Returns:
        What replaced the linear layers: `linears`, or what suits the backbone.
    """
    register()
    cast(Any, backbone).set_attn_implementation(ATTENTION_NAME)
    return replace_linears(backbone, linears)


def replace_linears(backbone: nn.Module, linears: Linears | None) -> Linears:
    """Replace the backbone's linear layers, which from then on are for inference only."""
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    chosen = linears or default_linears(backbone)
    chosen.install(backbone)
    return chosen


def in_float32(head: nn.Module) -> nn.Module:
    """The head, computing in float32: it is small, and ranking hangs on its last digits."""
    return head.float().eval()


def gather(hidden: Tensor, index: Tensor) -> Tensor:
    """Rows of [1, tokens, width] at `index`, in float32, as [pairs, 1, width]."""
    return in_a_row(hidden.index_select(1, index))


def in_a_row(hidden: Tensor) -> Tensor:
    """Shape [1, pairs, width], one token a pair, as a head takes it: float32, [pairs, 1, width]."""
    return hidden[0].to(torch.float32).unsqueeze(1)
