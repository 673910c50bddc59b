"""Linear layers in int8 on the CPU, through oneDNN: 8-bit weights and 8-bit inputs, float32 results.

What is read here was measured by `server.models.quantise` on sample texts: for each input one
range, and per channel a factor that moves outliers from the input into the weights
(SmoothQuant, Xiao et al. 2023). Ranges are fixed, so that a pair's score does not depend on
its company, as it would if they were taken from each batch.

Layers with the same input (query, key and value) quantise it once. Where only a GELU stands
between two layers, the first writes the second's 8-bit input and float32 never appears.
"""

from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor, nn

from server.errors import ConfigurationError
from server.models.linears import is_exact_gelu

__all__ = ["Int8Input", "Int8Linears", "QuantisedLinear", "check_kernels", "to_codes"]

Tensors: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Int8Input:
    """How one input becomes 8-bit codes: `code = round(x / (smooth * scale)) + zero_point`."""

    linears: tuple[str, ...]
    """Names, below the backbone, of the layers that read it."""
    scale: float
    zero_point: int
    """Code of 0.0, in 0..255."""
    written_by: str = ""
    """The layer that writes the codes itself, through GELU; "" if they are made of floats."""


def to_codes(inputs: Tensor, factor: Tensor, zero_point: int) -> Tensor:
    """Float32 to uint8, rounded and saturated.

    Args:
        inputs: shape [..., width].
        factor: what one is multiplied by, one number or [width].
        zero_point: code of 0.0.
    """
    # The half makes the conversion, which cuts off, round.
    shifted = torch.addcmul(torch.tensor(zero_point + 0.5), inputs, factor)
    return shifted.clamp_(0, 255).to(torch.uint8)


class _Shared:
    """An input's codes, made for the first of its readers and kept until the last has them."""

    def __init__(self, spec: Int8Input, smooth: Tensor | None) -> None:
        self._zero_point = spec.zero_point
        self._factor = 1.0 / (torch.tensor(spec.scale) if smooth is None else smooth * spec.scale)
        self._readers = len(spec.linears)
        self._reads = 0
        self._inputs: Tensor | None = None
        self._codes: Tensor | None = None

    def codes(self, inputs: Tensor) -> Tensor:
        if inputs.dtype == torch.uint8:
            return inputs  # written by the layer before
        if inputs is not self._inputs or self._codes is None:
            self._inputs, self._reads = inputs, 0
            self._codes = to_codes(inputs, self._factor, self._zero_point)
        codes = self._codes
        self._reads += 1
        if self._reads == self._readers:
            self._inputs = self._codes = None
        return codes


class QuantisedLinear(nn.Module):
    """A linear layer with int8 weights, one scale for each output."""

    def __init__(self, shared: _Shared, spec: Int8Input, codes: Tensor, scales: Tensor, bias: Tensor) -> None:
        super().__init__()
        self._shared = shared
        self._scale, self._zero_point = spec.scale, spec.zero_point
        self._weight = torch.ops.onednn.qlinear_prepack(codes, None)
        self._scales = scales
        self._zeros = torch.zeros(len(scales), dtype=torch.int32)
        self._bias = bias
        self._gelu = False
        self._output: Int8Input | None = None

    def write_codes_for(self, reader: Int8Input) -> None:
        """From now on apply GELU, and write the codes that the next layer reads."""
        self._gelu = True
        self._output = reader

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape [..., in] to [..., out]: float32, or uint8 for the next layer."""
        output = self._output
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(self._shared.codes(inputs), self._scale, self._zero_point),
            *(self._weight, self._scales, self._zeros, self._bias),
            *((1.0, 0, torch.float32) if output is None else (output.scale, output.zero_point, torch.uint8)),
            *(("gelu", [], "none") if self._gelu else ("none", [], "")),
        )
        return result


class Int8Linears:
    """Puts quantised layers in the place of those that were measured; others stay as they are.

    Args:
        inputs: all inputs that were measured.
        tensors: `<linear>.codes` int8 [out, in], `<linear>.scales` and `<linear>.bias` float32 [out],
            and `<first linear>.smooth` float32 [in] for inputs that are smoothed.
        tolerance: largest difference from a float logit that was measured.
    """

    def __init__(self, inputs: list[Int8Input], tensors: Tensors, tolerance: float = 0.0) -> None:
        self.tolerance = tolerance
        self._inputs = inputs
        self._tensors = tensors
        self._made: dict[int, tuple[str, QuantisedLinear]] = {}

    def install(self, backbone: nn.Module) -> None:
        """Replace the layers below a backbone."""
        for spec in self._inputs:
            shared = _Shared(spec, self._tensors.get(f"{spec.linears[0]}.smooth"))
            for name in spec.linears:
                parts = [self._tensors[f"{name}.{part}"] for part in ("codes", "scales", "bias")]
                layer = QuantisedLinear(shared, spec, *parts)
                parent, _, attribute = name.rpartition(".")
                setattr(backbone.get_submodule(parent), attribute, layer)
                self._made[id(layer)] = (name, layer)

    def fuse_gelu(
        self, module: nn.Module, linear: str, activation: str, reader: tuple[nn.Module, str]
    ) -> None:
        """Chain two layers, if the second's input was measured as written by the first."""
        name, layer = self._made.get(id(getattr(module, linear)), ("", None))
        reader_name, _ = self._made.get(id(getattr(*reader)), ("", None))
        if layer is None or not reader_name or not is_exact_gelu(getattr(module, activation)):
            return
        for spec in self._inputs:
            if spec.written_by == name and spec.linears == (reader_name,):
                layer.write_codes_for(spec)
                setattr(module, activation, nn.Identity())


@cache
def check_kernels() -> None:
    """Make sure that this torch multiplies in int8 on this processor, and rightly.

    Processors without VNNI add pairs of products in 16 bits, which can saturate; the
    numbers here are large enough to show it.

    Raises:
        ConfigurationError: it does not.
    """
    codes = torch.full((64, 128), 127, dtype=torch.int8)
    inputs = torch.full((32, 128), 255, dtype=torch.uint8)
    ones, zeros = torch.ones(64), torch.zeros(64, dtype=torch.int32)
    try:
        packed = torch.ops.onednn.qlinear_prepack(codes, None)
        result = torch.ops.onednn.qlinear_pointwise(
            inputs, 1.0, 0, packed, ones, zeros, torch.zeros(64), 1.0, 0, torch.float32, "none", [], ""
        )
        right = bool((result == 127 * 255 * 128).all())
    except (RuntimeError, AttributeError):
        right = False
    if not right:
        raise ConfigurationError(
            "--dtype int8: this processor or build of torch can't multiply in int8; use --dtype float32"
        )
