"""The workload: the same in every run, with known answers."""

import subprocess
import sys

import pytest

from benchmarks.bm25 import Bm25, words
from benchmarks.processes import REPOSITORY
from benchmarks.workload import (
    CANDIDATES,
    RankingTask,
    Request,
    load,
    mean_reciprocal_rank,
    passages,
    ranking_tasks,
    warm_up_load,
)

WORKLOAD = "from benchmarks.workload import load, ranking_tasks; print(repr((load(100), ranking_tasks(20))))"


def test_words_are_lower_case_and_split_at_underscores() -> None:
    """Identifiers are found by the words that they are made of."""
    assert words("Read_Line, 2nd!") == ["read", "line", "2nd"]


def test_bm25_prefers_rare_words_and_short_documents() -> None:
    """A word that few documents have decides, and padding a document with others makes it worse."""
    documents = ["the cat", "the dog", "the dog " + "and so on " * 20, "the the the"]
    assert Bm25(documents).top("the dog", 2) == [1, 2]


def test_bm25_gives_ties_to_the_lower_index_and_leaves_out_what_shares_no_word() -> None:
    """The order of equals is fixed, and nothing is made up to fill the list."""
    assert Bm25(["a fox", "a fox", "an owl"]).top("fox", 10) == [0, 1]
    assert Bm25([]).top("fox", 10) == []


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


def test_ranking_tasks_have_their_answer_among_the_candidates() -> None:
    """Each task can be solved, and BM25 alone does not solve them all."""
    tasks = ranking_tasks(50)
    assert len(tasks) == 50
    assert all(len(task.request.documents) == CANDIDATES for task in tasks)
    first_stage = [[-float(rank) for rank in range(CANDIDATES)] for _ in tasks]
    assert 0.2 < mean_reciprocal_rank(tasks, first_stage) < 0.9


def test_mean_reciprocal_rank_counts_ties_against_the_model() -> None:
    """A model that gives everything one score ranks nothing."""
    request = Request("q", ("a", "b", "c", "d"))
    tasks = [RankingTask(request, answer=1), RankingTask(request, answer=0)]
    assert mean_reciprocal_rank(tasks, [[0.1, 0.9, 0.2, 0.3], [0.5, 0.9, 0.2, 0.3]]) == 0.75
    assert mean_reciprocal_rank(tasks, [[0.5] * 4, [0.5] * 4]) == 0.25


def test_passages_are_different_and_run_out_with_an_error() -> None:
    """A benchmark that needs more than there are says so instead of repeating itself."""
    assert len(set(passages(500))) == 500
    with pytest.raises(ValueError, match="were asked for"):
        passages(10**6)
