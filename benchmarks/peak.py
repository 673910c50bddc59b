"""The most that this machine gives a linear layer: the ceiling of any float32 engine on it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

__all__ = ["KEPT_UP_S", "LinearPeak", "PeakRound", "square_layers"]

# Rows of a layer's input: about what a batch of an engine has, and more than enough to fill the cores.
ROWS = (1024, 4096)
SQUARES = (1024, 2048)
# Every size is tried shortly, and the best must keep up its speed about as long as an engine's round
# takes: for moments a machine that others share is faster than it can be counted on to be.
TRIED_S = 0.2
KEPT_UP_S = 3.0


def square_layers() -> list[tuple[int, int]]:
    """Layers that suit the machine better than any model's."""
    return [(size, size) for size in SQUARES]


@dataclass(frozen=True, slots=True)
class PeakRound:
    """GFLOP/s of linear layers, in one round."""

    tried: Mapping[str, float]
    """By kind and size, kept up for `TRIED_S`."""
    best: str
    """The fastest of them."""
    gflops: float
    """What that one kept up for `KEPT_UP_S`."""


class LinearPeak:
    """Measures linear layers with as many threads as torch takes; lives in a process of its own.

    Both kinds that torch has are measured, since the ceiling is the better one's: the usual
    `linear`, and oneDNN's with weights in its own layout, which on AMD processors is far faster.
    """

    def __init__(self) -> None:
        import torch

        self._torch = torch
        square = torch.ones(64, 64)
        square @ square  # the first product pays for the threads

    def measure(self, layers: Sequence[tuple[int, int]]) -> PeakRound:
        """Try each kind and size, then let the best one show what it keeps up."""
        tried: dict[str, float] = {}
        speeds: dict[str, Callable[[float], float]] = {}
        with self._torch.inference_mode():
            for inputs, outputs in layers:
                for rows in ROWS:
                    for kind, product in self._products(rows, inputs, outputs).items():
                        size = f"{kind} {rows}x{inputs}x{outputs}"
                        speeds[size] = partial(_gflops, product, 2 * rows * inputs * outputs)
                        tried[size] = speeds[size](TRIED_S)
            best = max(tried, key=tried.__getitem__)
            return PeakRound(tried, best, speeds[best](KEPT_UP_S))

    def _products(self, rows: int, inputs: int, outputs: int) -> dict[str, Callable[[], object]]:
        torch = self._torch
        x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        products: dict[str, Callable[[], object]] = {
            "linear": lambda: torch.nn.functional.linear(x, weight, bias)
        }
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            onednn = torch.ops.mkldnn._linear_pointwise
            onednn(x, packed, bias, "none", [], "")
        except (RuntimeError, AttributeError):  # a torch without oneDNN, or whose operators moved
            return products
        return {**products, "oneDNN": lambda: onednn(x, packed, bias, "none", [], "")}


def _gflops(product: Callable[[], object], flops: int, duration_s: float) -> float:
    product()  # the first of a size makes its code
    calls, elapsed_s = 0, 0.0
    started_s = time.perf_counter()
    while elapsed_s < duration_s:
        product()
        calls += 1
        elapsed_s = time.perf_counter() - started_s
    return calls * flops / elapsed_s / 1e9
