"""Choosing ranges and factors for int8 from what a float model sees on sample texts.

Servers that quantise a checkpoint separately must get the same bytes, or they could not rank one
request together. The last bits of a sum, though, depend on how many threads share it and on
which kernels the processor has. So everything here is computed in float64, and what enters a
choice or a file is first rounded so coarsely that errors of 1e-15 can't show, but for values that lie
within such an error of the middle between two steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from server.models.int8 import Int8Input, Product, Tensors, to_codes
from server.models.linears import is_exact_gelu

__all__ = ["Calibration", "Measured", "quantise_input"]

_ROWS = 1024
"""Tokens kept of each input, on which candidates are compared."""
_ROWS_OF_BATCH = 128
_SMOOTHING = (0.0, 0.35, 0.5, 0.65, 0.8)
"""How much of the outliers moves into the weights: SmoothQuant's alpha."""
_CLIPPING = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of an input's range that are kept; what lies outside saturates."""
_WIDE = 8
"""Channels of a GELU's output that stay in float32. One is often five times as wide as all others."""
_INPUT_BITS = 12
"""Of what is seen: finer by far than the 8 bits that are chosen by it."""
_BIAS_BITS = 16
_BETTER = 1e-6
"""By which share a candidate's error must be less than an earlier one's."""
_SMALLEST = 1e-5
"""Channels that never exceed this count as no wider than it."""


@dataclass
class Measured:
    """One input of one or several linear layers, as seen on the samples."""

    linears: list[str]
    layers: list[nn.Linear]
    rows: list[Tensor] = field(default_factory=list)
    written_by: str = ""
    low: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    """The least of each channel, and of 0, float64, shape [width]."""
    high: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def see(self, inputs: Tensor) -> None:
        """Keep some of the rows of an input [..., width], and the bounds of all."""
        rows = inputs.reshape(-1, inputs.shape[-1]).double()
        low, high = _rounded(torch.stack(rows.aminmax(dim=0)), _INPUT_BITS)
        self.low, self.high = torch.minimum(low, self.low), torch.maximum(high, self.high)
        # A share of each batch; the samples are many batches of mixed texts.
        self.rows.append(rows[:: max(1, len(rows) // _ROWS_OF_BATCH)].clone())

    @property
    def largest(self) -> Tensor:
        """The largest absolute value of each channel, float64, shape [width]."""
        return torch.maximum(self.high, -self.low).clamp(min=_SMALLEST)

    def sample(self) -> Tensor:
        """Rows spread over all that was seen, rounded, float64, shape [at most 1024, width]."""
        rows = torch.cat(self.rows)
        chosen = [i * len(rows) // _ROWS for i in range(_ROWS)] if len(rows) > _ROWS else slice(None)
        largest = self.largest
        # In steps of each channel's size, since in what is nearly 0 there is nothing but error. The
        # quotient is a power of two, so that steps are counted and undone without rounding.
        step = largest / largest.frexp().mantissa / 2**_INPUT_BITS
        sample: Tensor = (rows[chosen] / step).round() * step
        return sample


class Calibration:
    """Stands for the linear layers of a float model and watches what they read.

    Inputs are told apart by identity: layers that are handed the same tensor, one after the
    other, share it.
    """

    def __init__(self) -> None:
        self.inputs: list[Measured] = []
        self._by_linear: dict[str, Measured] = {}
        self._names: dict[int, str] = {}
        self._chains: dict[str, str] = {}
        self._last: Tensor | None = None
        self._current: Measured | None = None

    def install(self, backbone: nn.Module) -> None:
        """Watch all layers below a backbone, and keep what it computes in the precision of its weights."""
        forward = backbone.forward

        def precise(*arguments: Any, **options: Any) -> Any:
            with _StayPrecise():
                return forward(*arguments, **options)

        backbone.forward = precise
        for name, module in backbone.named_modules():
            if type(module) is nn.Linear:
                self._names[id(module)] = name
                module.register_forward_pre_hook(self._see)

    def fuse_gelu(
        self, module: nn.Module, linear: str, activation: str, reader: tuple[nn.Module, str]
    ) -> None:
        """Remember which layer could write which one's codes."""
        if is_exact_gelu(getattr(module, activation)):
            writer, read_by = self._names[id(getattr(module, linear))], self._names[id(getattr(*reader))]
            self._chains[read_by] = writer

    def _see(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        name, inputs = self._names[id(module)], arguments[0]
        assert isinstance(module, nn.Linear)
        measured = self._by_linear.get(name)
        if measured is None:
            if inputs is self._last and self._current is not None:
                measured = self._current
                measured.linears.append(name)
                measured.layers.append(module)
            else:
                measured = Measured([name], [module], written_by=self._chains.get(name, ""))
                self.inputs.append(measured)
            self._by_linear[name] = measured
        if measured.linears[0] == name:
            measured.see(inputs)
        self._last, self._current = inputs, measured


class _StayPrecise(TorchFunctionMode):
    """Lets float64 be, where a network means to raise its precision by asking for float32, as norms do."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call, but for conversions of float64 to float32."""
        options = kwargs or {}
        narrows = func is Tensor.float or (
            func is Tensor.to and torch.float32 in (*args[1:], *options.values())
        )
        if narrows and args[0].dtype == torch.float64:
            return args[0]
        return func(*args, **options)


def quantise_input(measured: Measured) -> tuple[Int8Input, Tensors, float]:
    """The best of all candidates for one input, and its layers' weights in int8.

    Candidates are judged by what matters: the error of the layers' outputs on the sample.

    Returns:
        The input, its tensors by name, and the error relative to the outputs' variance.
    """
    rows = measured.sample()
    weights = [layer.weight.detach().double() for layer in measured.layers]
    variances = [float((rows @ weight.T).var().clamp(min=1e-12)) for weight in weights]
    # A layer that writes codes has one scale for all channels, and GELU stands in the way of more.
    alphas = (0.0,) if measured.written_by else _SMOOTHING
    wide = _widest(measured) if measured.written_by else None
    coded = [_without(weight, wide) for weight in weights]
    low, high, largest = (_without(b, wide) for b in (measured.low, measured.high, measured.largest))
    wanted = [rows @ weight.T for weight in coded]
    best: tuple[float, Tensor | None, float, int] | None = None
    for alpha in alphas:
        smooth = _smoothing(largest, coded, alpha)
        factors = torch.ones(()) if smooth is None else smooth
        smoothed = rows / factors
        bounds = float((low / factors).min()), float((high / factors).max())
        quantised = [_to_int8(weight * factors) for weight in coded]
        for share in _CLIPPING:
            scale, zero_point = _range(bounds, share)
            codes = to_codes(smoothed, torch.tensor(1 / scale, dtype=torch.float64), zero_point)
            errors = [
                float((Product(scale, zero_point, *weight).floats(codes) - want).var()) / variance
                for weight, want, variance in zip(quantised, wanted, variances, strict=True)
            ]
            error = sum(errors) / len(errors)
            if best is None or error < best[0] * (1 - _BETTER):
                best = (error, smooth, scale, zero_point)
    assert best is not None
    error, smooth, scale, zero_point = best
    factors = torch.ones(()) if smooth is None else smooth
    tensors: Tensors = {}
    restored = (
        to_codes(rows / factors, torch.tensor(1 / scale, dtype=torch.float64), zero_point).double()
        - zero_point
    ) * scale
    for name, layer, weight, want in zip(measured.linears, measured.layers, coded, wanted, strict=True):
        codes, scales = _to_int8(weight * factors)
        # What is wrong on average can be put right for nothing.
        bias = (want - restored @ (codes.double() * scales[:, None]).T).mean(0)
        if layer.bias is not None:
            bias += layer.bias.detach()
        tensors |= {
            f"{name}.codes": codes,
            f"{name}.scales": scales,
            f"{name}.bias": _rounded(bias, _BIAS_BITS).float(),
        }
        if wide is not None:
            columns = layer.weight.detach()[:, wide].T
            tensors |= {f"{name}.wide": wide, f"{name}.columns": columns.float().contiguous()}
    if smooth is not None:
        tensors[f"{measured.linears[0]}.smooth"] = smooth.float()
    spec = Int8Input(tuple(measured.linears), scale, zero_point, measured.written_by)
    return spec, tensors, error


def _rounded(values: Tensor, bits: int) -> Tensor:
    """Float64 with no more than so many significant bits, by which Veltkamp splits numbers."""
    spread = values * (2.0 ** (53 - bits) + 1)
    return spread - (spread - values)


def _widest(measured: Measured) -> Tensor:
    """The channels with the largest values, int64, in order."""
    largest = measured.largest
    order = largest.sort(descending=True, stable=True).indices  # unlike topk, the same among equals
    return order[: min(_WIDE, len(largest) // _WIDE)].sort().values


def _without(tensor: Tensor, channels: Tensor | None) -> Tensor:
    """The same with zeros in some channels, which are the last dimension."""
    return tensor if channels is None else tensor.index_fill(-1, channels, 0.0)


def _smoothing(largest: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor | None:
    if alpha == 0.0:
        return None
    largest_weight = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).clamp(min=_SMALLEST)
    smooth = largest**alpha / largest_weight ** (1 - alpha)
    return _rounded(smooth / smooth.log().mean().exp(), _INPUT_BITS)


def _range(bounds: tuple[float, float], share: float) -> tuple[float, int]:
    low, high = bounds[0] * share, bounds[1] * share
    scale = max((high - low) / 255, 1e-8)
    return scale, round(-low / scale)


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of [out, in], and float32 scales of [out]."""
    scales = (weight.abs().amax(1) / 127).clamp(min=1e-8).float()
    return (weight / scales[:, None].double()).round().clamp(-127, 127).to(torch.int8), scales
