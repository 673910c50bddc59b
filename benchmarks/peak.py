"""The most that this machine gives a linear layer: the ceiling of any float32 engine on it."""

import time
from collections.abc import Callable, Sequence

__all__ = ["LinearPeak", "square_layers"]

# Rows of a layer's input: about what a batch of an engine has, and more than enough to fill the cores.
ROWS = (1024, 4096)
SQUARES = (1024, 2048)
MEASURED_S = 0.2


def square_layers() -> list[tuple[int, int]]:
    """Layers that suit the machine better than any model's."""
    return [(size, size) for size in SQUARES]


class LinearPeak:
    """Measures linear layers with as many threads as torch takes; lives in a process of its own.

    Both kinds that torch has are measured, since the ceiling is the better one's: the usual
    `linear`, and oneDNN's with weights in its own layout, which on AMD processors is far faster.
    """

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self.measure([(64, 64)])  # the first product pays for the threads

    def measure(self, layers: Sequence[tuple[int, int]]) -> dict[str, float]:
        """The GFLOP/s of each kind and size, kept up for a fifth of a second."""
        found: dict[str, float] = {}
        with self._torch.inference_mode():
            for inputs, outputs in layers:
                for rows in ROWS:
                    for kind, product in self._products(rows, inputs, outputs).items():
                        flops = 2 * rows * inputs * outputs
                        found[f"{kind} {rows}x{inputs}x{outputs}"] = flops / _mean_s(product) / 1e9
        return found

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


def _mean_s(product: Callable[[], object]) -> float:
    product()  # the first of a size makes its code
    calls, elapsed_s = 0, 0.0
    started_s = time.perf_counter()
    while elapsed_s < MEASURED_S:
        product()
        calls += 1
        elapsed_s = time.perf_counter() - started_s
    return elapsed_s / calls
