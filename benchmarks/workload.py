"""What is scored for speed: a load of mixed lengths.

Queries are summary lines of standard-library docstrings, documents the bodies that BM25 finds
for them, cut into requests of 16 documents in the mean: the same in every run on one Python version.
"""

from dataclasses import dataclass

from server.models.docstrings import bodies_found_for, shuffled_docstrings

__all__ = ["Request", "load", "passages", "warm_up_load"]

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


def load(pairs: int) -> list[Request]:
    """At least `pairs` pairs as requests of mixed size, each document a BM25 hit of its query."""
    # From the other end of the corpus than the ranking tasks, so that the two share few queries.
    requests: list[Request] = []
    planned = 0
    corpus = shuffled_docstrings()
    for docstring in reversed(corpus):
        if planned >= pairs or len(requests) == MAX_REQUESTS:
            break
        size = REQUEST_SIZES[len(requests) % len(REQUEST_SIZES)]
        found = bodies_found_for(docstring.summary, size)
        if len(found) == size:
            requests.append(Request(docstring.summary, tuple(corpus[i].body for i in found)))
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
    corpus = shuffled_docstrings()
    if n > len(corpus):
        raise ValueError(f"{n} documents were asked for; the standard library has {len(corpus)}")
    return [docstring.body for docstring in corpus[:n]]
