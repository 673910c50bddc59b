"""Choosing ranges and factors for int8 from what a float model sees on sample texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from server.models.int8 import Int8Input, Tensors, to_codes
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


@dataclass
class Measured:
    """One input of one or several linear layers, as seen on the samples."""

    linears: list[str]
    layers: list[nn.Linear]
    rows: list[Tensor] = field(default_factory=list)
    written_by: str = ""
    low: Tensor = field(default_factory=lambda: torch.zeros(()))
    """The least of each channel, and of 0, shape [width]."""
    high: Tensor = field(default_factory=lambda: torch.zeros(()))

    def see(self, inputs: Tensor) -> None:
        """Keep some of the rows of an input [..., width], and the bounds of all."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        low, high = rows.aminmax(dim=0)
        self.low, self.high = torch.minimum(low, self.low), torch.maximum(high, self.high)
        # A share of each batch; the samples are many batches of mixed texts.
        self.rows.append(rows[:: max(1, len(rows) // _ROWS_OF_BATCH)].clone())

    def sample(self) -> Tensor:
        """Rows spread over all that was seen, shape [at most 1024, width]."""
        rows = torch.cat(self.rows)
        return rows[torch.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).long()]


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
        """Watch all layers below a backbone."""
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


def quantise_input(measured: Measured) -> tuple[Int8Input, Tensors, float]:
    """The best of all candidates for one input, and its layers' weights in int8.

    Candidates are judged by what matters: the error of the layers' outputs on the sample.

    Returns:
        The input, its tensors by name, and the error relative to the outputs' variance.
    """
    rows = measured.sample()
    weights = [layer.weight.detach() for layer in measured.layers]
    wanted = [rows @ weight.T for weight in weights]
    # A layer that writes codes has one scale for all channels, and GELU stands in the way of more.
    alphas = (0.0,) if measured.written_by else _SMOOTHING
    wide = _widest(measured) if measured.written_by else None
    coded = [_without(weight, wide) for weight in weights]
    narrow = _without(rows, wide)
    low, high = _without(measured.low, wide), _without(measured.high, wide)
    beside = [want - narrow @ weight.T for want, weight in zip(wanted, weights, strict=True)]
    best: tuple[float, Tensor | None, float, int] | None = None
    for alpha in alphas:
        smooth = _smoothing(torch.maximum(high, -low), coded, alpha)
        factors = torch.ones(()) if smooth is None else smooth
        smoothed = narrow / factors
        bounds = float((low / factors).min()), float((high / factors).max())
        quantised = [_dequantised(*_to_int8(w if smooth is None else w * smooth)) for w in coded]
        for share in _CLIPPING:
            scale, zero_point = _range(bounds, share)
            restored = _restored(smoothed, scale, zero_point)
            found = [restored @ w.T + b for w, b in zip(quantised, beside, strict=True)]
            error = _relative_error(found, wanted)
            if best is None or error < best[0]:
                best = (error, smooth, scale, zero_point)
    assert best is not None
    error, smooth, scale, zero_point = best
    tensors: Tensors = {}
    restored = _restored(narrow if smooth is None else narrow / smooth, scale, zero_point)
    layers = zip(measured.linears, measured.layers, coded, wanted, beside, strict=True)
    for name, layer, weight, want, by in layers:
        codes, scales = _to_int8(weight if smooth is None else weight * smooth)
        # What is wrong on average can be put right for nothing.
        drift = (want - by - restored @ _dequantised(codes, scales).T).mean(0)
        bias = layer.bias.detach() if layer.bias is not None else torch.zeros(len(weight))
        tensors |= {f"{name}.codes": codes, f"{name}.scales": scales, f"{name}.bias": bias + drift}
        if wide is not None:
            tensors |= {
                f"{name}.wide": wide,
                f"{name}.columns": layer.weight.detach()[:, wide].T.contiguous(),
            }
    if smooth is not None:
        tensors[f"{measured.linears[0]}.smooth"] = smooth
    spec = Int8Input(tuple(measured.linears), scale, zero_point, measured.written_by)
    return spec, tensors, error


def _widest(measured: Measured) -> Tensor:
    """The channels with the largest values, int64, in order."""
    width = torch.maximum(measured.high, -measured.low)
    return width.topk(min(_WIDE, len(width) // _WIDE)).indices.sort().values


def _without(tensor: Tensor, channels: Tensor | None) -> Tensor:
    """The same with zeros in some channels, which are the last dimension."""
    return tensor if channels is None else tensor.index_fill(-1, channels, 0.0)


def _smoothing(largest: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor | None:
    if alpha == 0.0:
        return None
    largest_input = largest.clamp(min=1e-5)
    largest_weight = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).clamp(min=1e-5)
    smooth = largest_input**alpha / largest_weight ** (1 - alpha)
    return smooth / smooth.log().mean().exp()


def _range(bounds: tuple[float, float], share: float) -> tuple[float, int]:
    low, high = bounds[0] * share, bounds[1] * share
    scale = max((high - low) / 255, 1e-8)
    return scale, round(-low / scale)


def _restored(rows: Tensor, scale: float, zero_point: int) -> Tensor:
    return (to_codes(rows, torch.tensor(1.0 / scale), zero_point).float() - zero_point) * scale


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = (weight.abs().amax(1) / 127).clamp(min=1e-8)
    return (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def _dequantised(codes: Tensor, scales: Tensor) -> Tensor:
    return codes.float() * scales[:, None]


def _relative_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    errors = [float((f - w).var() / w.var().clamp(min=1e-12)) for f, w in zip(found, wanted, strict=True)]
    return sum(errors) / len(errors)
