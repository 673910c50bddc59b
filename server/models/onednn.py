"""Linear layers on the CPU through oneDNN, with weights in the layout that its kernels want.

torch multiplies float32 on x86 with MKL, which on AMD processors uses AVX2 and leaves half of
the machine idle: 190 GFLOP/s where oneDNN, built into torch as well, reaches 428 (two cores of
an EPYC with AVX-512, torch 2.13). Packed weights help small batches most, and an activation
is applied while the output is still in the cache.

The operators are those that torch's own compiler emits, and are not public. So they are used
only where they exist, agree with nn.Linear, and are not slower on this machine.
"""

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PackedLinear", "onednn_pays", "pack_linears"]

_TOKENS = 1024
_WIDTH, _INNER = 384, 1536
_TRIALS = 5
_SLOWER = 1.1
"""Where oneDNN does not help it is about as fast; only a clear loss, not noise, speaks against it."""


class PackedLinear(nn.Module):
    """nn.Linear, perhaps followed by GELU, for inference in float32 on the CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.activation = "none"
        """What is applied to the output: "none", or "gelu" for the exact one."""
        self._bias = linear.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TOKENS)

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape [..., in] to [..., out]."""
        algorithm = "none" if self.activation == "gelu" else ""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._weight, self._bias, self.activation, [], algorithm
        )
        return result


def pack_linears(module: nn.Module) -> None:
    """Replace every linear layer below a module by a packed one; the old weights are freed one by one."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))


@cache
def onednn_pays() -> bool:
    """Whether packed layers are right and not slower on this machine; the first call takes some 20 ms."""
    with torch.inference_mode():
        linear = nn.Linear(_WIDTH, _INNER)
        inputs = torch.randn(1, _TOKENS, _WIDTH)
        try:
            packed, fused = PackedLinear(linear), PackedLinear(linear)
            fused.activation = "gelu"
            expected = linear(inputs)
            if not (
                torch.allclose(packed(inputs), expected, atol=1e-4)
                and torch.allclose(fused(inputs), functional.gelu(expected), atol=1e-4)
            ):
                return False
        except (RuntimeError, AttributeError):  # a torch without oneDNN, or whose operators moved
            return False
        return _seconds(lambda: packed(inputs)) < _SLOWER * _seconds(lambda: linear(inputs))


def _seconds(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_TRIALS):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
