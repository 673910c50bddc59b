"""The most that this machine gives a linear layer: the ceiling of any float32 engine on it."""

import time
from collections.abc import Sequence

__all__ = ["LinearPeak", "square_layers"]

# Rows of a layer's input: about what a batch of an engine has, and more than enough to fill the cores.
ROWS = (1024, 4096)
SQUARES = (1024, 2048)
MEASURED_S = 0.25


def square_layers() -> list[tuple[int, int]]:
    """Layers that suit the machine better than any model's."""
    return [(size, size) for size in SQUARES]


class LinearPeak:
    """Measures `torch.nn.functional.linear` with as many threads as torch takes; lives in its own process."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self.measure([(64, 64)])  # the first product pays for the threads

    def measure(self, layers: Sequence[tuple[int, int]]) -> dict[str, float]:
        """The best GFLOP/s of each size: the fastest single product in a quarter of a second."""
        return {
            f"{rows}x{inputs}x{outputs}": self._measure_one(rows, inputs, outputs)
            for inputs, outputs in layers
            for rows in ROWS
        }

    def _measure_one(self, rows: int, inputs: int, outputs: int) -> float:
        torch = self._torch
        x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        best_s = float("inf")
        with torch.inference_mode():
            give_up_at_s = time.perf_counter() + MEASURED_S
            while time.perf_counter() < give_up_at_s:
                started_s = time.perf_counter()
                torch.nn.functional.linear(x, weight, bias)
                best_s = min(best_s, time.perf_counter() - started_s)
        return 2 * rows * inputs * outputs / best_s / 1e9
