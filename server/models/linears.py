"""What becomes of a backbone's linear layers, which are nine tenths of its work.

A family knows where its layers are and which activation follows which; what takes their
place is one of these: torch's own layers, oneDNN's in float32, or int8.
"""

from typing import Protocol

import torch
from torch import nn
from transformers.activations import GELUActivation

from server.models.onednn import PackedLinear, onednn_pays, pack_linears

__all__ = [
    "Linears",
    "OneDnnLinears",
    "TorchLinears",
    "computes_in_float32_on_cpu",
    "default_linears",
    "is_exact_gelu",
]


class Linears(Protocol):
    """Replaces linear layers in place."""

    def install(self, backbone: nn.Module) -> None:
        """Replace the layers below a backbone."""
        ...

    def fuse_gelu(
        self, module: nn.Module, linear: str, activation: str, reader: tuple[nn.Module, str]
    ) -> None:
        """Let a layer apply the GELU after it.

        Args:
            module: holds both, and calls one after the other.
            linear: name of the layer, which `install` has seen.
            activation: name of the activation; replaced by nothing if it was fused.
            reader: the linear layer that alone reads the result, as its holder and name.
        """
        ...


class TorchLinears:
    """Leaves everything as it is."""

    def install(self, backbone: nn.Module) -> None:
        """Nothing to do."""

    def fuse_gelu(
        self, module: nn.Module, linear: str, activation: str, reader: tuple[nn.Module, str]
    ) -> None:
        """Nothing to do."""


class OneDnnLinears:
    """oneDNN's float32 layers, on the CPU."""

    def install(self, backbone: nn.Module) -> None:
        """Replace all layers below a backbone."""
        pack_linears(backbone)

    def fuse_gelu(
        self, module: nn.Module, linear: str, activation: str, reader: tuple[nn.Module, str]
    ) -> None:
        """Apply an exact GELU while the layer's output is still in the cache."""
        layer = getattr(module, linear)
        if isinstance(layer, PackedLinear) and is_exact_gelu(getattr(module, activation)):
            layer.activation = "gelu"
            setattr(module, activation, nn.Identity())


def default_linears(backbone: nn.Module) -> Linears:
    """oneDNN's layers where they are right and pay, else torch's."""
    return OneDnnLinears() if computes_in_float32_on_cpu(backbone) and onednn_pays() else TorchLinears()


def computes_in_float32_on_cpu(backbone: nn.Module) -> bool:
    """Whether that is where its weights are, and what they are."""
    return all(p.device.type == "cpu" and p.dtype == torch.float32 for p in backbone.parameters())


def is_exact_gelu(activation: nn.Module) -> bool:
    """Whether it is the GELU by the error function, and not the approximation by tanh."""
    if isinstance(activation, GELUActivation):
        return activation.act is nn.functional.gelu
    return isinstance(activation, nn.GELU) and activation.approximate == "none"
