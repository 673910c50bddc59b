"""From the rounds of a race to figures and ratios: pure arithmetic."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.contenders.base import CONCURRENT_CLIENTS
from benchmarks.peak import KEPT_UP_S, PeakRound
from benchmarks.protocol import Race, Rows, Timed, largest_difference
from benchmarks.results import Figures
from benchmarks.shape import EncoderShape

__all__ = ["REFERENCE", "SAME_SCORES", "Measured", "add_race", "peak_figure"]

REFERENCE = "predict"

# (ratio, faster, slower): both from one run.
SPEED_RATIOS = (
    ("engine_vs_predict", "engine", "predict"),
    ("service_vs_engine", "service", "engine"),
    ("service_vs_fastapi", "service", "fastapi"),
    ("service_vs_infinity", "service", "infinity"),
    ("http_vs_grpc", "service_http", "service"),
    ("int8_vs_predict", "int8", "predict"),
)

# Scores further from the reference's than this are not the same scores, and their speed isn't compared.
SAME_SCORES = 1e-3
QUANTISED = frozenset({"int8"})


@dataclass(slots=True)
class Measured:
    """What a run found out, and what it could not."""

    figures: Figures = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def peak_figure(rounds: Sequence[PeakRound]) -> dict[str, Any]:
    """What the best size kept up in the best round, and the best of every size."""
    best = max(rounds, key=lambda found: found.gflops)
    return {
        "what": f"the fastest float32 linear layer of torch, usual or oneDNN, kept up for {KEPT_UP_S:.0f} s; "
        "rows x inputs x outputs",
        "gflops": best.gflops,
        "size": best.best,
        "spread": best.gflops / min(found.gflops for found in rounds) - 1,
        "gflops_by_size": {
            size: max(found.tried[size] for found in rounds if size in found.tried) for size in best.tried
        },
    }


def add_race(measured: Measured, race: Race, token_counts: Sequence[int], shape: EncoderShape) -> None:
    """Add the figures of everybody who took part, and the ratios that follow from them."""
    measured.absent.update(race.absent)
    measured.figures["workload"] = _workload_figure(race, token_counts)
    gflop = sum(map(shape.pair_flops, token_counts)) / 1e9
    reference = race.timed[REFERENCE].rows if REFERENCE in race.timed else None
    for name, timed in race.timed.items():
        figure = _figure(timed, token_counts, gflop, reference)
        measured.figures[name] = figure
        if name not in QUANTISED and figure.get("largest_difference", 0.0) > SAME_SCORES:
            measured.absent[name] = (
                f"its scores are up to {figure['largest_difference']:.2g} away from those of {REFERENCE}"
            )
    _add_ratios(measured)


def _workload_figure(race: Race, token_counts: Sequence[int]) -> dict[str, Any]:
    deciles = statistics.quantiles(token_counts, n=20)
    return {
        "what": "summary lines of standard-library docstrings against the bodies that BM25 finds for them",
        "requests": len(race.requests),
        "pairs": len(token_counts),
        "tokens": sum(token_counts),
        "mean_tokens": statistics.mean(token_counts),
        "p5_tokens": deciles[0],
        "median_tokens": statistics.median(token_counts),
        "p95_tokens": deciles[-1],
        "max_tokens": max(token_counts),
        "concurrent_clients": CONCURRENT_CLIENTS,
    }


def _figure(
    timed: Timed, token_counts: Sequence[int], gflop: float, reference: Rows | None
) -> dict[str, Any]:
    figure: dict[str, Any] = {
        "what": timed.what,
        "pairs": len(token_counts),
        "pairs_per_s": len(token_counts) / timed.best_s,
        "tokens_per_s": sum(token_counts) / timed.best_s,
        "gflops": gflop / timed.best_s,
        "rounds_s": timed.rounds_s,
        "spread": timed.spread,
    }
    if reference is not None and timed.name != REFERENCE:
        figure["largest_difference"] = largest_difference(timed.rows, reference)
    return figure


def _add_ratios(measured: Measured) -> None:
    figures = {name: figure for name, figure in measured.figures.items() if name not in measured.absent}
    for ratio, faster, slower in SPEED_RATIOS:
        if faster in figures and slower in figures:
            measured.ratios[ratio] = figures[faster]["pairs_per_s"] / figures[slower]["pairs_per_s"]
    if "engine" in figures and "peak" in figures:
        measured.ratios["engine_vs_peak"] = figures["engine"]["gflops"] / figures["peak"]["gflops"]
