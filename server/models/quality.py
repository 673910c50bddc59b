"""A small ranking task that every machine has, to tell by how much a faster form of a model ranks worse.

The summary line of a standard-library docstring is the query; among ten bodies that BM25 finds
for it, its own is the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from server.models.docstrings import bodies_found_for, shuffled_docstrings

__all__ = ["CANDIDATES", "Task", "calibration_pairs", "mean_reciprocal_rank", "ranking_tasks"]

CANDIDATES = 10


@dataclass(frozen=True, slots=True)
class Task:
    """A query, its candidates in BM25's order, and which of them is the answer."""

    query: str
    documents: tuple[str, ...]
    answer: int


def ranking_tasks(count: int) -> list[Task]:
    """`count` tasks (fewer if the corpus has no more), the same for the same version of Python."""
    corpus = shuffled_docstrings()
    tasks: list[Task] = []
    for position, docstring in enumerate(corpus):
        if len(tasks) == count:
            break
        found = bodies_found_for(docstring.summary, CANDIDATES)
        if position in found:
            documents = tuple(corpus[i].body for i in found)
            tasks.append(Task(docstring.summary, documents, found.index(position)))
    return tasks


def calibration_pairs(count: int) -> list[tuple[str, str]]:
    """Pairs of queries that are in no task with documents that answer them, nearly do, or do not."""
    corpus = shuffled_docstrings()
    pairs: list[tuple[str, str]] = []
    for docstring in reversed(corpus):
        if len(pairs) >= count:
            break
        found = bodies_found_for(docstring.summary, CANDIDATES)
        bodies = [docstring.body, *(corpus[i].body for i in (found[-1:] + found[:1]))]
        pairs += [(docstring.summary, body) for body in bodies]
    return pairs[:count]


def mean_reciprocal_rank(tasks: Sequence[Task], scores: Sequence[Sequence[float]]) -> float:
    """The mean over tasks of 1 / rank of the answer; a tie counts against the model.

    Args:
        tasks: what was ranked.
        scores: of each task, the scores of its documents.
    """
    total = 0.0
    for task, row in zip(tasks, scores, strict=True):
        total += 1 / sum(score >= row[task.answer] for score in row)
    return total / len(tasks)
