"""The ranking task by which fast forms of a model are judged, and the search that makes it hard."""

import pytest

from server.models.bm25 import Bm25, words
from server.models.quality import CANDIDATES, Task, calibration_pairs, mean_reciprocal_rank, ranking_tasks


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


def test_ranking_tasks_have_their_answer_among_the_candidates() -> None:
    """Each can be solved, BM25 alone does not solve them all, and calibration uses other queries."""
    tasks = ranking_tasks(50)
    assert len(tasks) == 50
    assert all(0 <= task.answer < len(task.documents) == CANDIDATES for task in tasks)
    first_stage = [[-float(rank) for rank in range(CANDIDATES)] for _ in tasks]
    assert 0.2 < mean_reciprocal_rank(tasks, first_stage) < 0.9
    assert {task.query for task in tasks}.isdisjoint(query for query, _ in calibration_pairs(120))


def test_mean_reciprocal_rank_counts_ties_against_the_model() -> None:
    """A model that gives everything one score ranks nothing."""
    documents = ("a", "b", "c", "d")
    tasks = [Task("q", documents, answer=1), Task("q", documents, answer=0)]
    assert mean_reciprocal_rank(tasks, [[0.1, 0.9, 0.2, 0.3], [0.5, 0.9, 0.2, 0.3]]) == 0.75
    assert mean_reciprocal_rank(tasks, [[0.5] * 4, [0.5] * 4]) == pytest.approx(0.25)
