"""The race: which parts need whom, and what is measured beside it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders.engine import Int8, engine
from benchmarks.contenders.fastapi_peer import FastApi
from benchmarks.contenders.http_service import ServiceOverHttp
from benchmarks.contenders.infinity_peer import Infinity
from benchmarks.contenders.predict import predict
from benchmarks.contenders.service import Service, ServiceThroughNginx
from benchmarks.figures import Measured, add_race, peak_figure
from benchmarks.peak import LinearPeak, PeakRound, square_layers
from benchmarks.processes import Isolated
from benchmarks.protocol import Contender, RaceRules, Score, Watcher, race
from benchmarks.shape import EncoderShape, token_counts
from benchmarks.workload import Request, load, warm_up_load
from server.models.quality import mean_reciprocal_rank, ranking_tasks

__all__ = ["COMPARED", "ThroughputPlan", "measure_throughput"]

# By part: whom it needs. The reference always runs, for its scores.
COMPARED: dict[str, frozenset[str]] = {
    "predict": frozenset({"predict"}),
    "peak": frozenset({"predict", "peak"}),
    "fastapi": frozenset({"predict", "fastapi", "service"}),
    "infinity": frozenset({"predict", "infinity", "service"}),
    "engine": frozenset({"predict", "engine", "peak"}),
    "service": frozenset({"predict", "engine", "service_direct", "service"}),
    "http": frozenset({"predict", "service", "service_http"}),
    "int8": frozenset({"predict", "engine", "int8"}),
}

# More take too long whatever the first impression was.
MAX_PAIRS = 1024
# Scored once to size the load.
SIZING_PAIRS = 48


@dataclass(frozen=True, slots=True)
class ThroughputPlan:
    """How much to measure."""

    rounds: int = 3
    reference_s: float = 16.0
    """What a round of the reference should take: the load is sized to it."""
    min_pairs: int = 160
    """At least so many, however slow the machine is: with fewer requests than clients all of them
    wait at once, and whoever sorts what waits looks better than under any steady load."""
    ranking_tasks: int = 300


def measure_throughput(
    parts: Collection[str],
    model: Path,
    plan: ThroughputPlan,
    watcher: Watcher,
    on_load: Callable[[int], None] = lambda pairs: None,
) -> Measured:
    """One race for all the parts that are asked for; `on_load` hears how many pairs a round has."""
    names = frozenset[str]().union(*(COMPARED[part] for part in parts))
    shape = EncoderShape.of_checkpoint(model)
    measured = Measured()
    peaks: list[PeakRound] = []

    def sized_load(score: Score) -> Sequence[Request]:
        sample = load(SIZING_PAIRS)
        pairs_per_s = _pairs(sample) / score(sample).elapsed_s
        requests = load(max(plan.min_pairs, min(MAX_PAIRS, round(pairs_per_s * plan.reference_s))))
        on_load(_pairs(requests))
        return requests

    with ExitStack() as stack:
        peak = stack.enter_context(Isolated(LinearPeak)) if "peak" in names else None

        def measure_peak() -> None:
            if peak is not None:
                watcher.doing("peak of a float32 linear layer")
                peaks.append(peak.call("measure", shape.linear_layers() + square_layers()))

        def measure_quality(scores: Mapping[str, Score]) -> None:
            if {"engine", "int8"} <= scores.keys():
                watcher.doing(f"quality of int8 on {plan.ranking_tasks} ranking tasks")
                measured.figures["int8_quality"] = quality = _quality(scores, plan.ranking_tasks)
                measured.ratios["int8_mrr_loss"] = quality["float32_mrr"] - quality["int8_mrr"]

        rules = RaceRules(warm_up_load(), sized_load, plan.rounds, measure_peak, measure_quality)
        result = race(_contenders(model, names), rules, watcher)
    if peaks:
        measured.figures["peak"] = peak_figure(peaks)
    if result.timed:
        counts = token_counts(model, result.requests, shape.max_tokens)
        add_race(measured, result, counts, shape)
    return measured


def _contenders(model: Path, names: Collection[str]) -> list[Contender]:
    # The reference comes first: the load is sized to it.
    everybody: list[Contender] = [
        predict(model),
        FastApi(model),
        Infinity(model),
        engine(model),
        Int8(model),
        Service(model),
        ServiceThroughNginx(model),
        ServiceOverHttp(model),
    ]
    return [contender for contender in everybody if contender.name in names]


def _quality(scores: Mapping[str, Score], tasks_wanted: int) -> dict[str, Any]:
    tasks = ranking_tasks(tasks_wanted)
    requests = [Request(task.query, task.documents) for task in tasks]
    first_stage = [[-float(rank) for rank in range(len(request.documents))] for request in requests]
    return {
        "what": "mean reciprocal rank of a docstring's own body among BM25's top ten",
        "tasks": len(tasks),
        "bm25_mrr": mean_reciprocal_rank(tasks, first_stage),
        "float32_mrr": mean_reciprocal_rank(tasks, scores["engine"](requests).rows),
        "int8_mrr": mean_reciprocal_rank(tasks, scores["int8"](requests).rows),
    }


def _pairs(requests: Sequence[Request]) -> int:
    return sum(len(request.documents) for request in requests)
