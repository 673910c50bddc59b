"""A small ranking task that every machine has: docstrings of Python's standard library.

The summary line of a docstring is the query; among ten bodies that BM25 finds for it, its own
is the answer. It tells by how much a faster form of a model ranks worse. The files are read,
never imported.
"""

import ast
import hashlib
import math
import re
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Task", "calibration_pairs", "mean_reciprocal_rank", "ranking_tasks"]

CANDIDATES = 10
_SATURATION, _LENGTH_WEIGHT = 1.2, 0.75
_SKIPPED = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "site-packages", "ensurepip", "turtledemo", "tkinter"}
)

Scorer = Callable[[str, Sequence[str]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Task:
    """A query, its candidates in BM25's order, and which of them is the answer."""

    query: str
    documents: tuple[str, ...]
    answer: int


def ranking_tasks(count: int) -> list[Task]:
    """The first `count` tasks of the corpus, in an order that is the same for the same Python."""
    corpus, index = _corpus(), _index()
    tasks: list[Task] = []
    for position, (summary, _) in enumerate(corpus):
        found = index.best(summary)
        if position in found:
            documents = tuple(corpus[i][1] for i in found)
            tasks.append(Task(summary, documents, found.index(position)))
            if len(tasks) == count:
                break
    return tasks


def calibration_pairs(count: int) -> list[tuple[str, str]]:
    """Pairs of queries that are in no task with documents that answer them, nearly do, or do not."""
    corpus, index = _corpus(), _index()
    pairs: list[tuple[str, str]] = []
    for summary, body in reversed(corpus):
        found = index.best(summary)
        pairs += [(summary, body), *((summary, corpus[i][1]) for i in (found[-1:] + found[:1]))]
        if len(pairs) >= count:
            break
    return pairs[:count]


def mean_reciprocal_rank(tasks: Sequence[Task], score: Scorer, done: Callable[[int], None]) -> float:
    """The mean over tasks of 1 / rank of the answer; a tie counts against the model.

    Args:
        tasks: what to rank.
        score: logits of one query's documents.
        done: called with the number of tasks finished.
    """
    total = 0.0
    for number, task in enumerate(tasks, 1):
        scores = score(task.query, task.documents)
        total += 1 / sum(other >= scores[task.answer] for other in scores)
        done(number)
    return total / len(tasks)


@cache
def _corpus() -> list[tuple[str, str]]:
    """(summary, body) in the order of a hash, so that neighbours are unrelated."""
    found: dict[str, str] = {}
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not _SKIPPED.isdisjoint(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # some files are broken on purpose
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                summary, _, body = (ast.get_docstring(node) or "").partition("\n")
                if len(summary) >= 20 and len(body.strip()) >= 80:
                    found.setdefault(summary.strip(), body.strip())
    return sorted(found.items(), key=lambda item: hashlib.blake2b(item[0].encode()).digest())


class _Bm25:
    def __init__(self, documents: Sequence[str]) -> None:
        counts = [Counter(_words(document)) for document in documents]
        mean = sum(counter.total() for counter in counts) / max(1, len(counts))
        postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for position, counter in enumerate(counts):
            penalty = _SATURATION * (1 - _LENGTH_WEIGHT + _LENGTH_WEIGHT * counter.total() / mean)
            for word, times in counter.items():
                postings[word].append((position, times * (_SATURATION + 1) / (times + penalty)))
        self._postings = {
            word: (math.log(1 + (len(documents) - len(hits) + 0.5) / (len(hits) + 0.5)), hits)
            for word, hits in postings.items()
        }

    def best(self, query: str) -> list[int]:
        scores: dict[int, float] = defaultdict(float)
        for word in _words(query):
            rarity, hits = self._postings.get(word, (0.0, []))
            for position, weight in hits:
                scores[position] += rarity * weight
        return sorted(scores, key=lambda position: (-scores[position], position))[:CANDIDATES]


@cache
def _index() -> _Bm25:
    return _Bm25([body for _, body in _corpus()])


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
