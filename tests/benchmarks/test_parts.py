"""Small parts: percentiles, client loops, the GPU benchmark on a CPU."""

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.contenders.base import drive
from benchmarks.fairness import percentile
from benchmarks.goals import GOALS
from benchmarks.workload import Request


def test_percentiles_are_values_that_occurred() -> None:
    """With few values the 99th percentile is the largest."""
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0
    assert percentile([float(n) for n in range(1, 201)], 99) == 198.0
    assert percentile([5.0], 50) == 5.0


async def test_clients_keep_as_many_requests_in_flight_as_there_are_clients() -> None:
    """No more and, while there is work, no fewer; rows come back in order."""
    requests = [Request(str(number), ("d",)) for number in range(20)]
    in_flight, most = 0, 0

    async def score(request: Request) -> list[float]:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0)
        in_flight -= 1
        return [float(request.query)]

    outcome = await drive(requests, score, clients=8)
    assert most == 8
    assert outcome.rows == [[float(number)] for number in range(20)]


async def test_one_failed_request_fails_the_run_with_its_own_error() -> None:
    """Not with a group that nobody can read."""

    async def score(request: Request) -> list[float]:
        raise RuntimeError(f"no answer to {request.query}")

    with pytest.raises(RuntimeError, match="no answer to"):
        await drive([Request("q", ("d",))] * 3, score, clients=2)


def test_goals_know_their_side() -> None:
    """Losses and waits are to be small, everything else large."""
    assert GOALS["engine_vs_predict"].is_met(1.9)
    assert not GOALS["engine_vs_predict"].is_met(1.89)
    assert GOALS["int8_mrr_loss"].is_met(-0.001)
    assert not GOALS["small_request_p99_vs_idle"].is_met(4.1)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_and_scores_agree(tmp_path: Path) -> None:
    """The whole path: random checkpoint, both ways of execution, figures and ratios."""
    from benchmarks.gpu import main

    output = tmp_path / "gpu.json"
    assert (
        main(["--device", "cpu", "--tiny", "--rounds", "1", "--requests", "1", "--output", str(output)]) == 0
    )
    results = json.loads(output.read_text())
    assert results["largest_difference"] < 1e-4
    assert results["score_range"][1] - results["score_range"][0] > 0.1
    assert "packed" in results["execution"]
    assert results["pairs"] == 32
    assert set(results["ratios"]) == {"packed_vs_predict", "packed_vs_predict_per_request", "packed_vs_peak"}
