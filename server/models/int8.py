"""Linear layers in int8 on the CPU, through oneDNN: 8-bit weights and 8-bit inputs, float32 results.

What is read here was measured by `server.models.quantise` on sample texts: for each input one
range, and per channel a factor that moves outliers from the input into the weights
(SmoothQuant, Xiao et al. 2023). Ranges are fixed, so that a pair's score does not depend on
its company, as it would if they were taken from each batch.

Layers with the same input (query, key and value) quantise it once. Where only a GELU stands
between two layers, the first writes the second's 8-bit input and float32 never appears, but
for a few channels that are far wider than the others (as in LLM.int8(), Dettmers et al. 2022).
"""

from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor, nn

from server.errors import ConfigurationError
from server.models.linears import is_exact_gelu

__all__ = ["Int8Input", "Int8Linears", "Product", "QuantisedLinear", "check_kernels", "to_codes"]

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


class Product:
    """Multiplies codes of one scale and zero point by int8 weights, one scale for each output."""

    def __init__(
        self, scale: float, zero_point: int, codes: Tensor, scales: Tensor, bias: Tensor | None = None
    ) -> None:
        self._input = (scale, zero_point)
        zeros = torch.zeros(len(scales), dtype=torch.int32)
        self._weight = (torch.ops.onednn.qlinear_prepack(codes, None), scales, zeros, bias)

    def floats(self, codes: Tensor, *, gelu: bool = False) -> Tensor:
        """Float32, shape [..., out]."""
        return self._multiply(codes, (1.0, 0, torch.float32), gelu)

    def codes_after_gelu(self, codes: Tensor, reader: Int8Input) -> Tensor:
        """The codes that the next layer reads, uint8, shape [..., out]."""
        return self._multiply(codes, (reader.scale, reader.zero_point, torch.uint8), gelu=True)

    def _multiply(self, codes: Tensor, output: tuple[float, int, torch.dtype], gelu: bool) -> Tensor:
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(codes, *self._input, *self._weight, *output),
            *(("gelu", [], "none") if gelu else ("none", [], "")),
        )
        return result


class _Wide:
    """The widest channels of an input, which pass its codes by in float32.

    Their weights are 0 in the reader's codes, so there it does not matter that they saturate.
    """

    def __init__(self, channels: Tensor, columns: Tensor) -> None:
        self.channels = channels
        self._columns = columns
        self._states: Tensor | None = None

    def keep(self, states: Tensor) -> None:
        """The channels' values, from the layer that wrote the codes of the others."""
        self._states = states

    def add_to(self, result: Tensor, inputs: Tensor) -> None:
        """Add what the channels give to a reader's output."""
        states = inputs[..., self.channels] if inputs.is_floating_point() else self._states
        assert states is not None
        self._states = None
        result.flatten(0, -2).addmm_(states.flatten(0, -2), self._columns)


class QuantisedLinear(nn.Module):
    """A linear layer with int8 weights."""

    def __init__(self, shared: _Shared, product: Product, wide: _Wide | None) -> None:
        super().__init__()
        self._shared = shared
        self._product = product
        self.wide = wide
        self._reader: Int8Input | None = None
        self._readers_wide: tuple[Product, _Wide] | None = None

    def write_codes_for(self, reader: Int8Input, wide: tuple[Product, _Wide] | None) -> None:
        """From now on apply GELU, and write what the next layer reads.

        Args:
            reader: the next layer's input.
            wide: this layer cut down to the channels that the next one wants in float32.
        """
        self._reader = reader
        self._readers_wide = wide

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape [..., in] to [..., out]: float32, or uint8 for the next layer."""
        codes = self._shared.codes(inputs)
        if self._reader is not None:
            if self._readers_wide is not None:
                product, wide = self._readers_wide
                wide.keep(product.floats(codes, gelu=True))
            return self._product.codes_after_gelu(codes, self._reader)
        result = self._product.floats(codes)
        if self.wide is not None:
            self.wide.add_to(result, inputs)
        return result


class Int8Linears:
    """Puts quantised layers in the place of those that were measured; others stay as they are.

    Args:
        inputs: all inputs that were measured.
        tensors: `<linear>.codes` int8 [out, in], `<linear>.scales` and `<linear>.bias` float32 [out],
            and `<first linear>.smooth` float32 [in] for inputs that are smoothed. For an input whose
            widest channels pass by, `<linear>.wide` int64 [channels], and `<linear>.columns` float32
            [channels, out], their weights.
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
                channels = self._tensors.get(f"{name}.wide")
                wide = None if channels is None else _Wide(channels, self._tensors[f"{name}.columns"])
                layer = QuantisedLinear(shared, self._product(spec, name), wide)
                parent, _, attribute = name.rpartition(".")
                setattr(backbone.get_submodule(parent), attribute, layer)
                self._made[id(layer)] = (name, layer)

    def fuse_gelu(
        self, module: nn.Module, linear: str, activation: str, reader: tuple[nn.Module, str]
    ) -> None:
        """Chain two layers, if the second's input was measured as written by the first."""
        name, layer = self._made.get(id(getattr(module, linear)), ("", None))
        reader_name, reading = self._made.get(id(getattr(*reader)), ("", None))
        if layer is None or reading is None or not is_exact_gelu(getattr(module, activation)):
            return
        for spec in self._inputs:
            if spec.written_by == name and spec.linears == (reader_name,):
                wide = reading.wide
                own = next(own for own in self._inputs if name in own.linears)
                layer.write_codes_for(
                    spec, None if wide is None else (self._product(own, name, wide.channels), wide)
                )
                setattr(module, activation, nn.Identity())

    def _product(self, spec: Int8Input, name: str, outputs: Tensor | None = None) -> Product:
        """The product of a layer, or of some of its outputs only."""
        parts = [self._tensors[f"{name}.{part}"] for part in ("codes", "scales", "bias")]
        return Product(
            spec.scale, spec.zero_point, *(part if outputs is None else part[outputs] for part in parts)
        )


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
