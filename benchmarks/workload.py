"""What is scored: a ranking task with known answers, and a load of mixed lengths.

The task: the summary line of a standard-library docstring is the query, and its own
body, which BM25 found among its top ten, is the one relevant document. The load: the
same kind of pairs, cut into requests of 16 documents in the mean. Both are the same in
every run on one Python version.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from benchmarks.bm25 import Bm25
from benchmarks.docstrings import Docstring, read_docstrings

__all__ = [
    "RankingTask",
    "Request",
    "load",
    "mean_reciprocal_rank",
    "passages",
    "ranking_tasks",
    "warm_up_load",
]

CANDIDATES = 10
# Documents of consecutive requests; 16 in the mean.
REQUEST_SIZES = (16, 8, 20, 12, 24, 16, 10, 22)
MAX_REQUESTS = 256
WARM_UP_DOCUMENTS = 4


@dataclass(frozen=True, slots=True)
class Request:
    """One query with its documents."""

    query: str
    documents: tuple[str, ...]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs as CrossEncoder takes them."""
        return [(self.query, document) for document in self.documents]


@dataclass(frozen=True, slots=True)
class RankingTask:
    """A request in BM25's order of which one document is the answer."""

    request: Request
    answer: int
    """The index of the relevant document."""


def mean_reciprocal_rank(tasks: Sequence[RankingTask], scores: Sequence[Sequence[float]]) -> float:
    """The mean of 1 / rank of the answers; a tie counts against the model."""
    total = 0.0
    for task, row in zip(tasks, scores, strict=True):
        rank = sum(score >= row[task.answer] for score in row)
        total += 1 / rank
    return total / len(tasks)


def ranking_tasks(n: int) -> list[RankingTask]:
    """`n` tasks (fewer if the corpus has no more), drawn by hash and so the same everywhere."""
    tasks: list[RankingTask] = []
    corpus, index = _shuffled(), _index()
    for position, docstring in enumerate(corpus):
        if len(tasks) == n:
            break
        found = index.top(docstring.summary, CANDIDATES)
        if position in found:
            request = Request(docstring.summary, tuple(corpus[i].body for i in found))
            tasks.append(RankingTask(request, answer=found.index(position)))
    return tasks


def load(pairs: int) -> list[Request]:
    """At least `pairs` pairs as requests of mixed size, each document a BM25 hit of its query."""
    # From the other end of the corpus than the tasks, so that the two share few queries.
    requests: list[Request] = []
    planned = 0
    for docstring in reversed(_shuffled()):
        if planned >= pairs or len(requests) == MAX_REQUESTS:
            break
        size = REQUEST_SIZES[len(requests) % len(REQUEST_SIZES)]
        found = _index().top(docstring.summary, size)
        if len(found) == size:
            requests.append(Request(docstring.summary, tuple(_shuffled()[i].body for i in found)))
            planned += size
    return requests


def warm_up_load() -> list[Request]:
    """Eight small requests, on other queries than a short `load` begins with."""
    last = load(4 * sum(REQUEST_SIZES))[-len(REQUEST_SIZES) :]
    return [Request(request.query, request.documents[:WARM_UP_DOCUMENTS]) for request in last]


def passages(n: int) -> list[str]:
    """`n` different documents, of any length, that answer nothing in particular.

    Raises:
        ValueError: the corpus has fewer.
    """
    corpus = _shuffled()
    if n > len(corpus):
        raise ValueError(f"{n} documents were asked for; the standard library has {len(corpus)}")
    return [docstring.body for docstring in corpus[:n]]


@cache
def _shuffled() -> tuple[Docstring, ...]:
    # By hash: neighbours in the library are alike, and a seeded shuffle may differ between Pythons.
    return tuple(
        sorted(read_docstrings(), key=lambda d: hashlib.blake2b(d.summary.encode(), digest_size=8).digest())
    )


@cache
def _index() -> Bm25:
    return Bm25([docstring.body for docstring in _shuffled()])
