"""The workload: the same in every run, with known answers."""

import subprocess
import sys

import pytest

from benchmarks.processes import REPOSITORY
from benchmarks.workload import load, passages, warm_up_load
from server.models.quality import ranking_tasks

WORKLOAD = (
    "from benchmarks.workload import load; from server.models.quality import ranking_tasks;"
    "print(repr((load(100), ranking_tasks(20))))"
)


def test_the_workload_is_the_same_in_another_process() -> None:
    """Nothing depends on the hash seed, the time or the machine."""
    there = subprocess.run(
        [sys.executable, "-c", WORKLOAD],
        cwd=REPOSITORY,
        env={"PYTHONHASHSEED": "1", "PYTHONIOENCODING": "utf-8"},
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    assert there.stdout.strip() == repr((load(100), ranking_tasks(20)))


def test_a_load_has_mixed_sizes_and_never_the_same_pair_twice() -> None:
    """A server that computes identical pairs once must not gain by it here."""
    requests = load(300)
    pairs = [pair for request in requests for pair in request.pairs]
    assert 300 <= len(pairs) < 300 + 24
    assert len(set(pairs)) == len(pairs)
    assert len({len(request.documents) for request in requests}) > 4
    lengths = sorted(len(document) for _, document in pairs)
    assert lengths[-1] > 10 * lengths[0]


def test_a_longer_load_begins_like_a_shorter_one_and_warming_up_uses_other_queries() -> None:
    """Runs of different length are comparable, and nothing of a short load was seen before."""
    assert load(300)[: len(load(100))] == load(100)
    assert not {request.query for request in warm_up_load()} & {request.query for request in load(300)}


def test_passages_are_different_and_run_out_with_an_error() -> None:
    """A benchmark that needs more than there are says so instead of repeating itself."""
    assert len(set(passages(500))) == 500
    with pytest.raises(ValueError, match="were asked for"):
        passages(10**6)
