"""What every architecture family does: take a packed row to one logit a pair."""

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

from server.models.attention import ATTENTION_NAME, Packing, register
from server.models.onednn import PackedLinear, onednn_pays, pack_linears

__all__ = ["Family", "PackedRow", "fuse_gelu", "gather", "in_float32", "pack", "speed_up"]


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

    @property
    def causal(self) -> bool:
        """Whether tokens see only what is before them."""
        ...

    @property
    def padding_id(self) -> int | None:
        """The id that the head skips when it looks for the last token; None if it looks elsewhere."""
        ...

    def __init__(self, encoder: Any) -> None: ...

    def logits(self, row: PackedRow) -> Tensor:
        """The head's output: float32, shape [pairs, labels]."""
        ...


def pack(backbone: nn.Module) -> None:
    """Make a transformers backbone run packed: its attention, and on the CPU its linear layers."""
    register()
    cast(Any, backbone).set_attn_implementation(ATTENTION_NAME)
    speed_up(backbone)


def speed_up(backbone: nn.Module) -> None:
    """Replace the backbone's linear layers by oneDNN's where those pay."""
    parameters = list(backbone.parameters())
    for parameter in parameters:
        parameter.requires_grad_(False)
    if all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters) and onednn_pays():
        pack_linears(backbone)


def fuse_gelu(module: nn.Module, linear: str, activation: str) -> None:
    """Let oneDNN apply an exact GELU while it writes a linear layer's output.

    Args:
        module: holds both, and calls one after the other.
        linear: name of the layer, perhaps replaced by `pack`.
        activation: name of the activation.
    """
    dense, act = getattr(module, linear), getattr(module, activation)
    if isinstance(dense, PackedLinear) and type(act) in (GELUActivation, nn.GELU) and is_exact(act):
        dense.activation = "gelu"
        setattr(module, activation, nn.Identity())


def is_exact(act: nn.Module) -> bool:
    """Whether a GELU is the one by the error function, and not its approximation by tanh."""
    return getattr(act, "approximate", "none") == "none"


def in_float32(head: nn.Module) -> nn.Module:
    """The head, computing in float32: it is small, and ranking hangs on its last digits."""
    return head.float().eval()


def gather(hidden: Tensor, index: Tensor) -> Tensor:
    """Rows of [1, tokens, width] at `index`, in float32, as [pairs, 1, width]."""
    return hidden[0].index_select(0, index).to(torch.float32).unsqueeze(1)
